//! What a worker talks with, and how an operation goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Instant;

use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use braid_proto::etcd::v3lockpb::lock_client::LockClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::{Kv, Leases};

/// One worker's clients of all services. Workers on the same connection share it.
pub struct Client {
    /// Keys.
    pub kv: Kv,
    /// Leases.
    pub leases: Leases,
    /// Watches.
    pub watches: WatchClient<Channel>,
    /// The connection, for whatever else is asked of it.
    pub channel: Channel,
    /// Locks, by the server's recipe.
    pub locks: LockClient<Channel>,
    /// Number of the worker.
    pub number: usize,
    /// What all workers of the run share.
    pub common: Arc<Common>,
}

/// What all workers of a run share.
#[derive(Debug)]
pub struct Common {
    /// What times in values count from.
    pub begin: Instant,
    /// Seconds that a lease lasts without being kept alive: longer than the run.
    pub lease_ttl: i64,
    /// Number of the worker that has the lock, plus one; 0: nobody.
    pub holder: AtomicU64,
    /// Revision at which the lock was won last.
    pub won: AtomicI64,
}

impl Common {
    /// For a run whose leases last so many seconds.
    pub fn new(lease_ttl: i64) -> Self {
        Self { begin: Instant::now(), lease_ttl, holder: AtomicU64::new(0), won: AtomicI64::new(0) }
    }
}

impl Client {
    /// The clients of worker `number` on a connection.
    pub fn new(channel: Channel, kv: Kv, number: usize, common: Arc<Common>) -> Self {
        Self {
            kv,
            leases: LeaseClient::new(channel.clone()),
            watches: WatchClient::new(channel.clone()),
            locks: LockClient::new(channel.clone()),
            channel,
            number,
            common,
        }
    }

    /// Grants a lease that outlasts the run.
    pub async fn grant(&mut self) -> Result<i64, Trouble> {
        let ttl = self.common.lease_ttl;
        let reply = self.leases.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
        match reply.id != 0 && reply.ttl == ttl && reply.error.is_empty() {
            true => Ok(reply.id),
            false => Err(wrong(format_args!("{ttl} s were asked for, and granted was {reply:?}"))),
        }
    }

    /// Revokes a lease that must be there.
    pub async fn revoke(&mut self, lease: i64) -> Result<(), Trouble> {
        match self.leases.lease_revoke(LeaseRevokeRequest { id: lease }).await {
            Ok(_) => Ok(()),
            Err(status) => Err(lost(lease, "when it was to be revoked", status)),
        }
    }
}

/// Why an operation, or a look at its traces, did not end well.
#[derive(Debug)]
pub enum Trouble {
    /// The server answered with an error: counted, and the run goes on.
    Failed(Status),
    /// The server broke a promise: the run has no figure.
    Wrong(String),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// A broken promise.
pub(super) fn wrong(what: impl ToString) -> Trouble {
    Trouble::Wrong(what.to_string())
}

/// An error about a lease that is alive by all that is known: that it is not found is wrong.
pub(super) fn lost(lease: i64, when: &str, status: Status) -> Trouble {
    match status.code() {
        Code::NotFound => wrong(format_args!("LOST LEASE: {lease:x} was not found {when}")),
        _ => Trouble::Failed(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lease_that_is_not_found_is_lost() {
        assert!(matches!(lost(10, "now", Status::not_found("")), Trouble::Wrong(text) if text.contains("a was not")));
        assert!(matches!(lost(10, "now", Status::unavailable("")), Trouble::Failed(_)));
    }
}
