//! A server as a target: every request goes to the next of its endpoints, one at a time; regions may be split meanwhile.

use std::time::Duration;

use anyhow::{Context as _, bail};
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::{LeaseGrantRequest, RangeRequest, TxnRequest};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::split::Splitter;
use super::target::Target;
use crate::client::{Address, Kv};
use crate::model::{Answer, Request};

/// A server that has not answered within this time has not answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any run: etcd's largest lease is 285 years.
const LEASE_SECONDS: i64 = 30 * 24 * 3600;

/// A server.
#[derive(Debug)]
pub struct Server {
    connections: Vec<Kv>,
    leases: LeaseClient<Channel>,
    next: usize,
    splitter: Option<Splitter>,
}

impl Server {
    /// Connects to every endpoint.
    pub async fn connect(endpoints: &[Address]) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for endpoint in endpoints {
            connections.push(endpoint.connect().await?);
        }
        let first = endpoints.first().context("no endpoints")?;
        let leases = LeaseClient::connect(first.url().to_owned()).await?;
        Ok(Self { connections, leases, next: 0, splitter: None })
    }

    /// Lets `splitter` split regions while requests are answered.
    pub fn split_with(&mut self, splitter: Splitter) {
        self.splitter = Some(splitter);
    }

    /// Takes the splitter back.
    pub fn take_splitter(&mut self) -> Option<Splitter> {
        self.splitter.take()
    }

    async fn send(&mut self, request: Request) -> Result<Answer, Status> {
        let at = self.next % self.connections.len();
        self.next += 1;
        let several = self.connections.len() > 1;
        let kv = &mut self.connections[at];
        Ok(match request {
            Request::Range(request) => Answer::Range(kv.range(request).await?.into_inner()),
            Request::Put(request) => Answer::Put(kv.put(request).await?.into_inner()),
            Request::DeleteRange(request) => Answer::DeleteRange(kv.delete_range(request).await?.into_inner()),
            Request::Txn(request) => {
                if several && is_answered_locally(&request) {
                    // Makes this endpoint catch up with the others.
                    let _: Response<_> = kv.range(RangeRequest { key: "x".into(), ..RangeRequest::default() }).await?;
                }
                Answer::Txn(kv.txn(request).await?.into_inner())
            }
            Request::Compact(request) => Answer::Compact(kv.compact(request).await?.into_inner()),
        })
    }
}

/// A transaction without operations: etcd answers it from what the member happens to have applied.
fn is_answered_locally(request: &TxnRequest) -> bool {
    request.success.is_empty() && request.failure.is_empty()
}

impl Target for Server {
    async fn answer(&mut self, request: &Request) -> Answer {
        if let Some(splitter) = &mut self.splitter {
            splitter.step();
        }
        match timeout(PATIENCE, self.send(request.clone())).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => Answer::refused(&status),
            Err(_) => Answer::refused(&Status::deadline_exceeded(format!("no answer within {PATIENCE:?}"))),
        }
    }

    async fn grant(&mut self, lease: i64) -> anyhow::Result<bool> {
        let request = LeaseGrantRequest { id: lease, ttl: LEASE_SECONDS };
        match timeout(PATIENCE, self.leases.lease_grant(request)).await.context("a lease grant")? {
            Ok(_) => Ok(true),
            // From an earlier run.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(true),
            Err(status) if status.code() == Code::Unimplemented => Ok(false),
            Err(status) => bail!("cannot grant a lease: {status}"),
        }
    }
}
