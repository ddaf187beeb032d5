//! Leases that really expire, locks that wait, and what a server could do wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::etcd::etcdserverpb::lease_server::Lease as LeaseService;
use braid_proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest,
};
use braid_proto::etcd::v3lockpb::lock_server::Lock;
use braid_proto::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::State;

/// What goes wrong with leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseFault {
    /// Nothing.
    None,
    /// Keep-alives are answered as if the lease were gone.
    KeepAliveLost,
    /// A keep-alive is answered twice.
    AnsweredTwice,
    /// Leases are forgotten as soon as they are granted.
    Forgotten,
    /// The end of a lease leaves its keys.
    KeysStay,
    /// A lease expires a second before its time.
    Early,
    /// The keys of an expired lease are deleted one after the other.
    Scattered,
    /// Everybody gets the lock at once.
    TwoHolders,
}

/// A lease.
pub struct Lease {
    ttl: i64,
    expires: Instant,
    /// Keys that were put with it last.
    pub keys: BTreeSet<Bytes>,
}

impl State {
    fn end_lease(&mut self, id: i64) -> bool {
        let Some(lease) = self.leases.remove(&id) else { return false };
        if self.lease_fault != LeaseFault::KeysStay {
            let together = self.revision + 1;
            for key in lease.keys {
                let revision = if self.lease_fault == LeaseFault::Scattered { self.revision + 1 } else { together };
                self.delete(&key, revision);
            }
        }
        true
    }
}

/// The lease service.
pub struct Leases {
    pub state: Arc<Mutex<State>>,
}

type KeepAlive = Result<LeaseKeepAliveResponse, Status>;

#[tonic::async_trait]
impl LeaseService for Leases {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = KeepAlive> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let (mut state, ttl) = (self.state.lock().await, request.get_ref().ttl);
        let id = state.leases.last_key_value().map_or(1, |(id, _)| id + 1);
        let early = if state.lease_fault == LeaseFault::Early { Duration::from_secs(1) } else { Duration::ZERO };
        let expires = Instant::now() + Duration::from_secs(ttl.cast_unsigned()) - early;
        if state.lease_fault != LeaseFault::Forgotten {
            state.leases.insert(id, Lease { ttl, expires, keys: BTreeSet::new() });
        }
        tokio::spawn(expire(Arc::clone(&self.state), id, expires));
        Ok(Response::new(LeaseGrantResponse { header: state.header(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let mut state = self.state.lock().await;
        match state.end_lease(request.get_ref().id) {
            true => Ok(Response::new(LeaseRevokeResponse { header: state.header() })),
            false => Err(Status::not_found("etcdserver: requested lease not found")),
        }
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (mut requests, state) = (request.into_inner(), Arc::clone(&self.state));
        let (out, answers) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(Ok(LeaseKeepAliveRequest { id })) = requests.next().await {
                let mut state = state.lock().await;
                let fault = state.lease_fault;
                let lease = state.leases.get_mut(&id).filter(|_| fault != LeaseFault::KeepAliveLost);
                let ttl = lease.map_or(0, |lease| {
                    lease.expires = Instant::now() + Duration::from_secs(lease.ttl.cast_unsigned());
                    lease.ttl
                });
                let answer = LeaseKeepAliveResponse { header: state.header(), id, ttl };
                drop(state);
                for _ in 0..if fault == LeaseFault::AnsweredTwice { 2 } else { 1 } {
                    if out.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let (state, id) = (self.state.lock().await, request.get_ref().id);
        let header = state.header();
        let Some(lease) = state.leases.get(&id) else {
            return Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }));
        };
        let ttl = lease.expires.saturating_duration_since(Instant::now()).as_secs().cast_signed();
        let keys = lease.keys.iter().cloned().collect();
        Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl: lease.ttl, keys }))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let state = self.state.lock().await;
        let leases = state.leases.keys().map(|&id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: state.header(), leases }))
    }
}

/// Ends a lease when its time has come.
async fn expire(state: Arc<Mutex<State>>, id: i64, mut expires: Instant) {
    loop {
        tokio::time::sleep_until(expires.into()).await;
        let mut state = state.lock().await;
        match state.leases.get(&id) {
            Some(lease) if lease.expires > Instant::now() => expires = lease.expires,
            Some(_) => {
                state.end_lease(id);
                return;
            }
            None => return,
        }
    }
}

/// The lock service.
pub struct Locks {
    state: Arc<Mutex<State>>,
    /// By name: whether the lock is free.
    names: Mutex<BTreeMap<Bytes, Arc<Semaphore>>>,
}

impl Locks {
    pub fn new(state: Arc<Mutex<State>>) -> Self {
        Self { state, names: Mutex::new(BTreeMap::new()) }
    }

    async fn free(&self, name: &[u8]) -> Arc<Semaphore> {
        let name = Bytes::copy_from_slice(name);
        Arc::clone(self.names.lock().await.entry(name).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

#[tonic::async_trait]
impl Lock for Locks {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        if self.state.lock().await.lease_fault != LeaseFault::TwoHolders {
            let free = self.free(&name).await;
            free.acquire().await.map_err(|error| Status::internal(error.to_string()))?.forget();
        }
        let mut state = self.state.lock().await;
        let key: Bytes = [&name[..], format!("/{lease:x}").as_bytes()].concat().into();
        state.put(&PutRequest { key: key.clone(), lease, ..PutRequest::default() });
        Ok(Response::new(LockResponse { header: state.header(), key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let key = request.into_inner().key;
        let name = key.rsplitn(2, |&byte| byte == b'/').nth(1).unwrap_or_default();
        let free = self.free(name).await;
        let mut state = self.state.lock().await;
        let revision = state.revision + 1;
        state.delete(&key, revision);
        free.add_permits(1);
        Ok(Response::new(UnlockResponse { header: state.header() }))
    }
}
