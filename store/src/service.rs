//! How proxies and placement reach this store's regions: in the same process, or over gRPC.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::error;
use braid_proto::id::{ClusterId, RegionId, StoreId};
use braid_proto::key::{KeyRange, lease_key};
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::{
    Busy, ChangePeersRequest, ChangePeersResponse, CreateRegionsRequest, CreateRegionsResponse, LeaseRange,
    MergeRegionRequest, MergeRegionResponse, Refusal, RegionEpoch, RegionRequest, RegionResponse, RequestFrame,
    ResponseFrame, SplitRegionRequest, SplitRegionResponse, TaggedRequest, TaggedResponse, TransferLeaderRequest,
    TransferLeaderResponse, WatchFeed, WatchOrder, region_request,
};
use braid_proto::service::{BoxFuture, RegionService};
use braid_proto::span::txn_within;
use braid_store_core::eval::Request;
use braid_store_core::pipeline::{LeaseWork, Work, busy};
use bytes::Bytes;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::flow::Turn;
use crate::frontier;
use crate::hash;
use crate::leases;
use crate::machine::Regions;
use crate::merge;
use crate::multi;
use crate::orders;
use crate::read;
use crate::region::{RegionPeer, Reply, etcd_error, refusal};

/// Requests of one connection that may be under way; beyond it they are refused as busy.
const IN_FLIGHT_MAX: usize = 16_384;
/// Answers that wait for one frame.
const FRAME_ANSWERS_MAX: usize = 512;

/// Serves the regions of one store.
pub struct LocalRegions {
    regions: Arc<Regions>,
}

impl LocalRegions {
    /// Serves `regions`.
    pub fn new(regions: Arc<Regions>) -> Self {
        Self { regions }
    }
}

impl RegionService for LocalRegions {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        let Some(region) = self.regions.get(RegionId(request.region_id)) else {
            return ready(refusal(self.regions.missing(RegionId(request.region_id))));
        };
        let epoch = request.epoch.unwrap_or_default();
        let timeout = Duration::from_millis(request.timeout_ms.into());
        if let Some(op) = &request.op {
            region.touched(op);
        }
        match request.op {
            Some(region_request::Op::Read(read)) => Box::pin(read::read(region, read, epoch)),
            Some(region_request::Op::Put(put)) => write(region, epoch, Request::Put(put)),
            Some(region_request::Op::DeleteRange(delete)) => write(region, epoch, Request::DeleteRange(delete)),
            Some(region_request::Op::Txn(txn)) => write(region, epoch, Request::Txn(txn)),
            Some(region_request::Op::Lock(lock)) => {
                let key_ranges = lock.ranges.iter().map(|range| (&range.start, &range.end));
                let reads = lock.reads.iter().map(|read| (&read.start, &read.end));
                let range = region.handle().region().range();
                let within = |(start, end): (&Bytes, &Bytes)| {
                    range.contains_range(&KeyRange { start: start.clone(), end: end.clone() })
                };
                let span_ok = key_ranges.chain(reads).all(within);
                if lock.puts && !region.shared().space.writable() {
                    return ready(etcd_error(error::NO_SPACE));
                }
                let turn = region.shared().flow.admit(|| if lock.puts { lock.encoded_len() } else { 0 });
                in_turn(region, turn, move |region, reply| region.work(Work::Lock(lock), epoch, span_ok, reply))
            }
            Some(region_request::Op::Decide(decide)) => {
                let span_ok = decide.shares.first().is_some_and(|own| holds(&region, &own.key));
                work(&region, epoch, Work::Decide(decide), span_ok)
            }
            Some(region_request::Op::Release(release)) => {
                work(&region, epoch, Work::Release(release.txn.unwrap_or_default()), true)
            }
            Some(region_request::Op::Commit(commit)) => {
                let span_ok = commit.share.as_ref().is_some_and(|share| holds(&region, &share.key));
                work(&region, epoch, Work::Commit(commit), span_ok)
            }
            Some(region_request::Op::Outcome(question)) => Box::pin(multi::outcome(region, question, epoch)),
            Some(region_request::Op::Hold(hold)) => Box::pin(multi::hold(region, hold, epoch)),
            Some(region_request::Op::Frontier(request)) => Box::pin(frontier::serve(region, request, epoch, timeout)),
            Some(region_request::Op::Hash(request)) => {
                Box::pin(hash::serve(Arc::clone(&self.regions), region, request, epoch, timeout))
            }
            // Whoever asks may go away: what was begun is ended all the same.
            Some(region_request::Op::Absorb(request)) => {
                let absorbed = tokio::spawn(merge::absorb(region, request));
                Box::pin(async move { absorbed.await.unwrap_or_else(|_| refusal(unanswered())) })
            }
            Some(region_request::Op::Frozen(_)) => ready(merge::frozen(&region)),
            Some(region_request::Op::GrantLease(grant)) => {
                if !region.shared().space.writable() {
                    return ready(etcd_error(error::NO_SPACE));
                }
                lease_work(&region, epoch, grant.id, LeaseWork::Grant { id: grant.id, ttl: grant.ttl })
            }
            Some(region_request::Op::RevokeLease(revoke)) => {
                lease_work(&region, epoch, revoke.id, LeaseWork::Revoke(revoke.id))
            }
            Some(region_request::Op::RegisterLease(register)) => {
                let LeaseRange { start, end } = register.range.unwrap_or_default();
                let work = LeaseWork::Register { id: register.id, range: KeyRange { start, end } };
                lease_work(&region, epoch, register.id, work)
            }
            Some(region_request::Op::KeepLease(keep)) => Box::pin(leases::keep(region, keep.id, epoch)),
            Some(region_request::Op::LeaseState(state)) => {
                Box::pin(leases::state(region, state.id, state.at_once, epoch))
            }
            Some(region_request::Op::ListLeases(_)) => Box::pin(leases::list(region, epoch)),
            Some(region_request::Op::AttachLease(attach)) => {
                work(&region, epoch, LeaseWork::Attach(attach.id).into(), true)
            }
            Some(region_request::Op::AttachedKeys(keys)) => {
                let keys = LeaseWork::Keys { id: keys.lease, close: keys.close };
                work(&region, epoch, keys.into(), true)
            }
            Some(region_request::Op::DetachLease(detach)) => {
                work(&region, epoch, LeaseWork::Detach(detach.lease).into(), true)
            }
            None => ready(refusal(busy("the request names no operation this version knows"))),
        }
    }

    fn can_be_followed(&self) -> bool {
        true
    }

    fn follow(&self, orders: BoxStream<'static, WatchOrder>) -> Option<BoxStream<'static, WatchFeed>> {
        Some(self.regions.publisher().follow(orders))
    }
}

fn write(region: Arc<RegionPeer>, epoch: RegionEpoch, request: Request) -> BoxFuture<RegionResponse> {
    let turn = region.shared().flow.admit(|| match &request {
        Request::Put(put) => put.encoded_len(),
        Request::Txn(txn) if request.puts() => txn.encoded_len(),
        Request::Txn(_) | Request::DeleteRange(_) => 0,
    });
    in_turn(region, turn, move |region, reply| {
        let range = region.handle().region().range();
        let span_ok = match &request {
            Request::Put(put) => range.contains_range(&KeyRange::user(&put.key, b"")),
            Request::DeleteRange(delete) => range.contains_range(&KeyRange::user(&delete.key, &delete.range_end)),
            Request::Txn(txn) => txn_within(txn, &range),
        };
        region.write(request, epoch, span_ok, reply);
    })
}

/// Has `submit` bring work to the region when its turn has come: at once, as a rule.
fn in_turn(
    region: Arc<RegionPeer>,
    turn: Turn,
    submit: impl FnOnce(&RegionPeer, Reply) + Send + 'static,
) -> BoxFuture<RegionResponse> {
    let (reply, answer) = oneshot::channel();
    let answered = async move { answer.await.unwrap_or_else(|_| refusal(unanswered())) };
    match turn {
        Turn::Now => {
            submit(&region, reply);
            Box::pin(answered)
        }
        Turn::At(turn) => Box::pin(async move {
            sleep_until(turn).await;
            submit(&region, reply);
            drop(region);
            answered.await
        }),
        Turn::Later(wait) => {
            let what = "compaction of this store is behind: puts are slowed down".to_owned();
            ready(refusal(Refusal {
                reason: Some(Reason::Busy(Busy { what, retry_after_ms: wait.as_millis() as u32 })),
            }))
        }
    }
}

fn work(region: &RegionPeer, epoch: RegionEpoch, work: Work, span_ok: bool) -> BoxFuture<RegionResponse> {
    let (reply, answer) = oneshot::channel();
    region.work(work, epoch, span_ok, reply);
    Box::pin(async move { answer.await.unwrap_or_else(|_| refusal(unanswered())) })
}

/// Work on a lease whose record lies in the region.
fn lease_work(region: &RegionPeer, epoch: RegionEpoch, id: i64, lease: LeaseWork) -> BoxFuture<RegionResponse> {
    work(region, epoch, lease.into(), holds(region, &lease_key(id)))
}

fn holds(region: &RegionPeer, key: &[u8]) -> bool {
    region.handle().region().range().contains(key)
}

/// The region's peer went away with the request in hand: nobody can tell any more.
fn unanswered() -> Refusal {
    braid_store_core::pipeline::unknown("the region's peer was removed while the request was under way")
}

fn ready(response: RegionResponse) -> BoxFuture<RegionResponse> {
    Box::pin(std::future::ready(response))
}

/// The gRPC side: proxy -> store (Serve), placement -> store (the rest).
pub struct RegionStoreService {
    cluster_id: ClusterId,
    store_id: StoreId,
    regions: Arc<Regions>,
    local: Arc<LocalRegions>,
    orders: Arc<orders::Orders>,
}

impl RegionStoreService {
    /// Serves the regions of store `store_id`.
    pub fn new(
        cluster_id: ClusterId,
        store_id: StoreId,
        regions: Arc<Regions>,
        local: Arc<LocalRegions>,
        orders: Arc<orders::Orders>,
    ) -> Self {
        Self { cluster_id, store_id, regions, local, orders }
    }

    fn check(&self, frame: &RequestFrame) -> Result<(), Status> {
        if frame.cluster_id != self.cluster_id.0 || frame.to_store != self.store_id.0 {
            return Err(Status::failed_precondition(format!(
                "this is store {} of cluster {}, not store {} of cluster {}",
                self.store_id,
                self.cluster_id,
                StoreId(frame.to_store),
                ClusterId(frame.cluster_id)
            )));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl RegionStore for RegionStoreService {
    type ServeStream = BoxStream<'static, Result<ResponseFrame, Status>>;

    async fn serve(
        &self,
        request: tonic::Request<Streaming<RequestFrame>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?;
        if let Some(frame) = &first {
            self.check(frame)?;
        }
        let (answers, outgoing) = mpsc::channel(16);
        let local = Arc::clone(&self.local);
        tokio::spawn(async move { serve_connection(local, first, frames, answers).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn split_region(
        &self,
        request: tonic::Request<SplitRegionRequest>,
    ) -> Result<Response<SplitRegionResponse>, Status> {
        let request = request.into_inner();
        let id = RegionId(request.region_id);
        let Some(region) = self.regions.get(id) else {
            return Ok(Response::new(SplitRegionResponse {
                refusal: Some(self.regions.missing(id)),
                ..Default::default()
            }));
        };
        let orders = Arc::clone(&self.orders);
        carried_out(tokio::spawn(async move { orders.split(region, request).await })).await
    }

    async fn transfer_leader(
        &self,
        request: tonic::Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let id = RegionId(request.region_id);
        let Some(region) = self.regions.get(id) else {
            return Ok(Response::new(TransferLeaderResponse {
                refusal: Some(self.regions.missing(id)),
                ..Default::default()
            }));
        };
        let orders = Arc::clone(&self.orders);
        carried_out(tokio::spawn(async move { orders.transfer_leader(region, request).await })).await
    }

    async fn change_peers(
        &self,
        request: tonic::Request<ChangePeersRequest>,
    ) -> Result<Response<ChangePeersResponse>, Status> {
        let request = request.into_inner();
        let id = RegionId(request.region_id);
        let Some(region) = self.regions.get(id) else {
            return Ok(Response::new(ChangePeersResponse {
                refusal: Some(self.regions.missing(id)),
                ..Default::default()
            }));
        };
        Ok(Response::new(self.orders.change_peers(region, request).await))
    }

    async fn merge_region(
        &self,
        request: tonic::Request<MergeRegionRequest>,
    ) -> Result<Response<MergeRegionResponse>, Status> {
        let request = request.into_inner();
        let id = RegionId(request.region_id);
        let Some(region) = self.regions.get(id) else {
            return Ok(Response::new(MergeRegionResponse {
                refusal: Some(self.regions.missing(id)),
                ..Default::default()
            }));
        };
        let orders = Arc::clone(&self.orders);
        carried_out(tokio::spawn(async move { orders.merge(region, request).await })).await
    }

    async fn create_regions(
        &self,
        request: tonic::Request<CreateRegionsRequest>,
    ) -> Result<Response<CreateRegionsResponse>, Status> {
        let request = request.into_inner();
        if request.cluster_id != self.cluster_id.0 {
            let failed = format!("this store belongs to cluster {}", self.cluster_id);
            return Ok(Response::new(CreateRegionsResponse { failed }));
        }
        Ok(Response::new(self.orders.create(request.regions).await))
    }
}

/// What comes of an order. Whoever gave it may go away; what was begun, a barrier perhaps, is ended all the same.
async fn carried_out<T>(order: JoinHandle<T>) -> Result<Response<T>, Status> {
    let ended = order.await.map(Response::new);
    ended.map_err(|error| Status::internal(format!("braid: an order was given up: {error}")))
}

/// Serves one proxy's connection: every request on its own, answers in whatever order they come, many to a frame. All go on in
/// this task: what has become ready since its last turn is answered together.
async fn serve_connection(
    local: Arc<LocalRegions>,
    first: Option<RequestFrame>,
    frames: Streaming<RequestFrame>,
    outgoing: mpsc::Sender<Result<ResponseFrame, Status>>,
) {
    // Holds the answers of all that may be under way, so it takes each at once.
    let (answers, mut answered) = mpsc::channel::<TaggedResponse>(IN_FLIGHT_MAX);
    let sender = tokio::spawn(async move {
        let mut batch = Vec::new();
        while answered.recv_many(&mut batch, FRAME_ANSWERS_MAX).await > 0 {
            let frame = ResponseFrame { responses: std::mem::take(&mut batch) };
            if outgoing.send(Ok(frame)).await.is_err() {
                break;
            }
        }
    });
    // A broken one is the last.
    let frames = frames.filter_map(|frame| std::future::ready(frame.ok()));
    let mut frames = futures::stream::iter(first).chain(frames).fuse();
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answer) = under_way.next() => {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
            Some(frame) = frames.next() => {
                for TaggedRequest { id, request } in frame.requests {
                    let answer = match under_way.len() < IN_FLIGHT_MAX {
                        true => local.call(request.unwrap_or_default()),
                        false => ready(refusal(busy("too many requests of this connection are under way"))),
                    };
                    under_way.push(answer.map(move |response| TaggedResponse { id, response: Some(response) }));
                }
            }
            else => break,
        }
    }
    drop(answers);
    _ = sender.await;
}
