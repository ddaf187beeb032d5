//! A KV service in memory, with one revision counter and no faults but those a test asks for; watches, in `watching`; and
//! leases and locks, in `leasing`.

mod leasing;
mod watching;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_loadtest::client::Address;
use braid_proto::etcd::etcdserverpb::compare::{CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use braid_proto::etcd::etcdserverpb::lease_server::LeaseServer;
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpReply;
use braid_proto::etcd::etcdserverpb::watch_server::WatchServer;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::etcd::v3lockpb::lock_server::LockServer;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, broadcast, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What a put meets.
pub enum Fault {
    /// Done and answered.
    None,
    /// Done, but the answer is an error.
    AnswerLost,
    /// Answered, but not done.
    Forgotten,
    /// Done twice.
    Repeated,
    /// Not done: the server asks to come back later.
    Busy,
    /// Never answered.
    Hangs,
    /// Done, but watches are not told.
    Untold,
    /// Done, and watches are told twice.
    ToldTwice,
}

pub use leasing::LeaseFault;

/// Chooses the fault of the n-th put (from 0).
pub type Faults = fn(u64) -> Fault;

/// A running server; gone when dropped.
pub struct Memory {
    pub address: Address,
    pub state: Arc<Mutex<State>>,
    _stop: watch::Sender<()>,
}

/// All keys.
pub struct State {
    pub revision: i64,
    pub keys: BTreeMap<Bytes, KeyValue>,
    /// The highest revision that was compacted.
    pub compacted: i64,
    /// Where everything that happens is told; a watch that is slower than its queue loses events.
    events: broadcast::Sender<Event>,
    /// All that was told, for watches from the past.
    history: Vec<Event>,
    /// Leases by id.
    leases: BTreeMap<i64, leasing::Lease>,
    lease_fault: LeaseFault,
}

/// Puts that a watch may be behind.
const EVENTS: usize = 100_000;

impl Memory {
    /// Starts one.
    pub async fn start(faults: Faults) -> Self {
        Self::start_with(faults, LeaseFault::None).await
    }

    /// Starts one that also does something wrong with leases.
    pub async fn start_with(faults: Faults, lease_fault: LeaseFault) -> Self {
        let state = Arc::new(Mutex::new(State {
            revision: 1,
            keys: BTreeMap::new(),
            compacted: 0,
            events: broadcast::channel(EVENTS).0,
            history: Vec::new(),
            leases: BTreeMap::new(),
            lease_fault,
        }));
        let service = Service { state: Arc::clone(&state), puts: AtomicU64::new(0), faults };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (stop, mut stopped) = watch::channel(());
        let watches = WatchServer::new(watching::Watches { state: Arc::clone(&state) });
        let leases = LeaseServer::new(leasing::Leases { state: Arc::clone(&state) });
        let locks = LockServer::new(leasing::Locks::new(Arc::clone(&state)));
        let server = tonic::transport::Server::builder().add_service(KvServer::new(service));
        let server = server.add_service(watches).add_service(leases).add_service(locks);
        // A hanging put must not hold the server up, so it is not awaited at the end.
        tokio::spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served.unwrap(),
                _ = stopped.changed() => {}
            }
        });
        Self { address, state, _stop: stop }
    }
}

struct Service {
    state: Arc<Mutex<State>>,
    puts: AtomicU64,
    faults: Faults,
}

impl State {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: self.revision, raft_term: 1 })
    }

    fn put(&mut self, request: &PutRequest) {
        let kv = self.put_untold(request);
        self.tell(EventType::Put, kv);
    }

    /// The lease of a put must be there.
    fn has_lease(&self, request: &PutRequest) -> Result<(), Status> {
        match request.lease == 0 || self.leases.contains_key(&request.lease) {
            true => Ok(()),
            false => Err(Status::not_found("etcdserver: requested lease not found")),
        }
    }

    fn tell(&mut self, kind: EventType, kv: KeyValue) {
        let event = Event { r#type: kind.into(), kv: Some(kv), ..Event::default() };
        self.history.push(event.clone());
        // Nobody may be watching.
        let _ = self.events.send(event);
    }

    /// Deletes a key at a revision; whether it was there.
    fn delete(&mut self, key: &Bytes, revision: i64) -> bool {
        let Some(old) = self.keys.remove(key) else { return false };
        self.revision = self.revision.max(revision);
        if let Some(lease) = self.leases.get_mut(&old.lease) {
            lease.keys.remove(key);
        }
        self.tell(EventType::Delete, KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() });
        true
    }

    fn put_untold(&mut self, request: &PutRequest) -> KeyValue {
        self.revision += 1;
        let revision = self.revision;
        let fresh = KeyValue { key: request.key.clone(), create_revision: revision, ..KeyValue::default() };
        let kv = self.keys.entry(request.key.clone()).or_insert(fresh);
        kv.value = request.value.clone();
        kv.mod_revision = revision;
        kv.version += 1;
        let before = std::mem::replace(&mut kv.lease, request.lease);
        let kv = kv.clone();
        if let Some(lease) = self.leases.get_mut(&before) {
            lease.keys.remove(&kv.key);
        }
        if let Some(lease) = self.leases.get_mut(&request.lease) {
            lease.keys.insert(kv.key.clone());
        }
        kv
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let end = match &request.range_end[..] {
            b"" => Bound::Included(request.key.clone()),
            b"\0" => Bound::Unbounded,
            end => Bound::Excluded(Bytes::copy_from_slice(end)),
        };
        let all = self.keys.range((Bound::Included(request.key.clone()), end)).map(|(_, kv)| kv);
        let newest = request.max_create_revision;
        let mut found: Vec<_> = all.filter(|kv| newest == 0 || kv.create_revision <= newest).collect();
        if request.sort_target() == SortTarget::Create {
            found.sort_by_key(|kv| kv.create_revision);
        }
        if request.sort_order() == SortOrder::Descend {
            found.reverse();
        }
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let shown = if request.count_only { 0 } else { found.len().min(limit) };
        RangeResponse {
            header: self.header(),
            kvs: found[..shown].iter().map(|&kv| kv.clone()).collect(),
            more: !request.count_only && shown < found.len(),
            count: found.len() as i64,
        }
    }
}

#[tonic::async_trait]
impl Kv for Service {
    type RangeStreamStream = tokio_stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let state = self.state.lock().await;
        if (1..state.compacted).contains(&request.get_ref().revision) {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        Ok(Response::new(state.range(request.get_ref())))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let fault = (self.faults)(self.puts.fetch_add(1, Ordering::Relaxed));
        if let Fault::Hangs = fault {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock().await;
        let request = request.get_ref();
        state.has_lease(request)?;
        let prev_kv = state.keys.get(&request.key).filter(|_| request.prev_kv).cloned();
        match fault {
            Fault::Busy => return Err(Status::unavailable("etcdserver: no leader")),
            // The revision passes, as if the write had been lost after it was acknowledged.
            Fault::Forgotten => state.revision += 1,
            Fault::Repeated => {
                state.put(request);
                state.put(request);
            }
            Fault::Untold => {
                state.put_untold(request);
            }
            Fault::ToldTwice => {
                let kv = state.put_untold(request);
                (0..2).for_each(|_| state.tell(EventType::Put, kv.clone()));
            }
            Fault::None | Fault::AnswerLost | Fault::Hangs => state.put(request),
        }
        match fault {
            Fault::AnswerLost => Err(Status::unavailable("etcdserver: request timed out")),
            _ => Ok(Response::new(PutResponse { header: state.header(), prev_kv })),
        }
    }

    /// Only what the workloads send: comparisons of revisions or versions for equality, puts, gets.
    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (mut state, request) = (self.state.lock().await, request.into_inner());
        let succeeded = request.compare.iter().all(|compare| {
            let present = state.keys.get(&compare.key);
            let [modified, created, version] =
                present.map_or([0; 3], |kv| [kv.mod_revision, kv.create_revision, kv.version]);
            compare.target_union
                == match compare.target() {
                    CompareTarget::Mod => Some(TargetUnion::ModRevision(modified)),
                    CompareTarget::Create => Some(TargetUnion::CreateRevision(created)),
                    CompareTarget::Version => Some(TargetUnion::Version(version)),
                    other => panic!("no workload compares {other:?}"),
                }
        });
        let mut responses = Vec::new();
        for op in if succeeded { request.success } else { request.failure } {
            responses.push(ResponseOp {
                response: Some(match op.request {
                    Some(Op::RequestPut(put)) => {
                        state.has_lease(&put)?;
                        state.put(&put);
                        OpReply::ResponsePut(PutResponse { header: state.header(), prev_kv: None })
                    }
                    Some(Op::RequestRange(range)) => OpReply::ResponseRange(state.range(&range)),
                    _ => return Err(Status::unimplemented("put or range")),
                }),
            });
        }
        Ok(Response::new(TxnResponse { header: state.header(), succeeded, responses }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (mut state, request) = (self.state.lock().await, request.into_inner());
        if !request.range_end.is_empty() {
            return Err(Status::unimplemented("delete of a range"));
        }
        let revision = state.revision + 1;
        let deleted = i64::from(state.delete(&request.key, revision));
        Ok(Response::new(DeleteRangeResponse { header: state.header(), deleted, prev_kvs: Vec::new() }))
    }

    /// Keeps no old versions anyhow; remembers the boundary for who asks for what lies below it.
    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let (mut state, revision) = (self.state.lock().await, request.get_ref().revision);
        if revision <= state.compacted {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        state.compacted = revision;
        Ok(Response::new(CompactionResponse { header: state.header() }))
    }

    async fn range_stream(&self, _: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("range stream"))
    }
}
