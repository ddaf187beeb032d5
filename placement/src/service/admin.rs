//! What operators ask for: lists, a split, a transfer of leadership.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::key::TAG_USER;
use braid_proto::pb::admin_server::Admin;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, AdminTransferLeaderResponse, Refusal, Region,
    RegionListRequest, RegionListResponse, RegionReport, SplitRegionRequest, SplitRegionResponse, StatusRequest,
    StatusResponse, Store, StoreListRequest, StoreListResponse, StoreState, TransferLeaderRequest,
    TransferLeaderResponse, refusal,
};
use bytes::Bytes;
use tonic::{Request, Response, Status};

use crate::leader::{OrderError, Shared};
use crate::regions::leader_store;

/// How long an order is repeated while leaders move.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a store may take for one try.
const ATTEMPT: Duration = Duration::from_secs(12);

/// See the module's page.
pub struct AdminService {
    shared: Arc<Shared>,
}

/// Why an order was not carried out, for the operator.
type Failed = String;

impl AdminService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn split(&self, term: Term, key: &Bytes) -> Result<(Option<Region>, Option<Region>), Failed> {
        if key.first() != Some(&TAG_USER) || key.len() < 2 {
            return Err("a region is split at a key of user data; name one with --key".to_owned());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (region, leader) = self.region_at(key)?;
            if region.start == *key {
                return Err(format!("{} already starts at that key; there is nothing to split", region.region_id()));
            }
            let answer = self.split_once(term, &region, &leader, key).await;
            match answer {
                Ok(SplitRegionResponse { invalid, .. }) if !invalid.is_empty() => return Err(invalid),
                Ok(SplitRegionResponse { refusal: None, left, right, .. }) => {
                    self.learn(&left, &right, term);
                    return Ok((left, right));
                }
                Ok(SplitRegionResponse { refusal: Some(refusal), .. }) if may_repeat(&refusal) => {}
                Ok(SplitRegionResponse { refusal: Some(refusal), .. }) => return Err(describe(&refusal)),
                Err(error) => tracing::debug!(%error, "a split was not carried out"),
            }
            pause_until(deadline, "the region's leader did not split it in time; try again").await?;
        }
    }

    async fn split_once(
        &self,
        term: Term,
        region: &Region,
        leader: &Store,
        key: &Bytes,
    ) -> Result<SplitRegionResponse, OrderError> {
        let first = self.shared.allocate(term, 1 + region.peers.len() as u64).await?;
        let request = SplitRegionRequest {
            region_id: region.id,
            epoch: region.epoch,
            split_key: key.clone(),
            child_id: first,
            child_peer_ids: (first + 1..=first + region.peers.len() as u64).collect(),
        };
        let mut client = self.shared.store_client(leader)?;
        let failed = |why: String| OrderError::Store { store: StoreId(leader.id), why };
        let answer = tokio::time::timeout(ATTEMPT, client.split_region(request)).await;
        let answer = answer.map_err(|_| failed("no answer in time".into()))?;
        answer.map(Response::into_inner).map_err(|status| failed(status.message().to_owned()))
    }

    /// Makes the halves known before the next heartbeat: the leader of the left half stays, the right half elects one
    /// on the same store.
    fn learn(&self, left: &Option<Region>, right: &Option<Region>, term: Term) {
        let mut regions = self.shared.regions.write();
        let parent = left.as_ref().and_then(|left| regions.get(left.region_id())).cloned();
        let Some(parent) = parent else { return };
        let store = leader_store(&parent);
        tracing::info!(left = ?left.as_ref().map(|r| r.id), right = ?right.as_ref().map(|r| r.id), %term, "split");
        for half in [left, right].into_iter().flatten() {
            let leader_peer = half.peer_on(store).map_or(0, |peer| peer.id);
            let is_parent = parent.region.as_ref().is_some_and(|region| region.id == half.id);
            let term = if is_parent { parent.term } else { 0 };
            regions.take(RegionReport { region: Some(half.clone()), leader_peer, term, ..Default::default() });
        }
    }

    async fn transfer(&self, region: RegionId, to: StoreId) -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        if self.shared.replica.read(|state| state.store(to).is_none()) {
            return Err(format!("there is no store {to}; `braid admin store list` shows the stores"));
        }
        loop {
            let report = self.shared.regions.read().get(region).cloned();
            let Some(report) = report else {
                return Err(format!("no leader of {region} is known; `braid admin region list` shows the regions"));
            };
            if leader_store(&report) == to {
                return Ok(());
            }
            let answer = self.transfer_once(&report, to).await;
            match answer {
                Ok(TransferLeaderResponse { refusal: None, failed }) if failed.is_empty() => return Ok(()),
                Ok(TransferLeaderResponse { refusal: None, failed }) => return Err(failed),
                Ok(TransferLeaderResponse { refusal: Some(refusal), .. }) if may_repeat(&refusal) => {}
                Ok(TransferLeaderResponse { refusal: Some(refusal), .. }) => return Err(describe(&refusal)),
                Err(error) => tracing::debug!(%error, "a transfer was not carried out"),
            }
            pause_until(deadline, "leadership could not be moved in time; try again").await?;
        }
    }

    async fn transfer_once(&self, report: &RegionReport, to: StoreId) -> Result<TransferLeaderResponse, OrderError> {
        let leader = leader_store(report);
        let failed = |why: String| OrderError::Store { store: leader, why };
        let store = self.shared.replica.read(|state| state.store(leader).map(|record| record.store.clone()));
        let store = store.ok_or_else(|| failed("it is not known".into()))?;
        let region = report.region.as_ref();
        let request = TransferLeaderRequest {
            region_id: region.map_or(0, |region| region.id),
            epoch: region.and_then(|region| region.epoch),
            to_store: to.0,
        };
        let mut client = self.shared.store_client(&store)?;
        let answer = tokio::time::timeout(ATTEMPT, client.transfer_leader(request)).await;
        let answer = answer.map_err(|_| failed("no answer in time".into()))?;
        answer.map(Response::into_inner).map_err(|status| failed(status.message().to_owned()))
    }

    /// The region of `key` and its leader's store.
    fn region_at(&self, key: &[u8]) -> Result<(Region, Store), Failed> {
        let report = self.shared.regions.read().at(key).cloned();
        let report = report.ok_or("no leader of that key's region is known yet; try again in a moment")?;
        let leader = leader_store(&report);
        let store = self.shared.replica.read(|state| state.store(leader).map(|record| record.store.clone()));
        match (report.region, store) {
            (Some(region), Some(store)) => Ok((region, store)),
            _ => Err("no leader of that key's region is known yet; try again in a moment".to_owned()),
        }
    }

    fn store_states(&self) -> Vec<StoreState> {
        let now = Instant::now();
        let presence = self.shared.presence.lock();
        let states = self.shared.stores().into_iter().map(|store| {
            let id = StoreId(store.id);
            let heard = presence.of(id);
            StoreState {
                store: Some(store),
                stats: heard.map(|presence| presence.stats),
                state: presence.state(id, now).to_owned(),
                seconds_since_heartbeat: heard.map_or(0, |presence| now.duration_since(presence.heard).as_secs()),
            }
        });
        states.collect()
    }
}

/// Whether the refusal is about who leads, which the next try may know better.
fn may_repeat(refusal: &Refusal) -> bool {
    use refusal::Reason::{Busy, EpochMismatch, NotLeader, RegionNotFound};
    matches!(refusal.reason, Some(NotLeader(_) | EpochMismatch(_) | RegionNotFound(_) | Busy(_)))
}

fn describe(refusal: &Refusal) -> Failed {
    match &refusal.reason {
        Some(refusal::Reason::TimedOut(timed_out)) => timed_out.what.clone(),
        Some(refusal::Reason::Unknown(unknown)) => unknown.why.clone(),
        Some(refusal::Reason::DiskFull(_)) => "the store's disk is full".to_owned(),
        _ => "the region's leader refuses".to_owned(),
    }
}

async fn pause_until(deadline: Instant, otherwise: &str) -> Result<(), Failed> {
    if Instant::now() + PAUSE >= deadline {
        return Err(otherwise.to_owned());
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn store_list(&self, _: Request<StoreListRequest>) -> Result<Response<StoreListResponse>, Status> {
        let (header, term) = self.shared.header();
        let stores = if term.is_some() { self.store_states() } else { Vec::new() };
        Ok(Response::new(StoreListResponse { header: Some(header), stores }))
    }

    async fn region_list(&self, request: Request<RegionListRequest>) -> Result<Response<RegionListResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let regions = match term {
            Some(_) => self.shared.regions.read().list(&request.start, &request.end),
            None => Vec::new(),
        };
        Ok(Response::new(RegionListResponse { header: Some(header), regions }))
    }

    async fn region_split(&self, request: Request<AdminSplitRequest>) -> Result<Response<AdminSplitResponse>, Status> {
        let (header, term) = self.shared.header();
        let mut answer = AdminSplitResponse { header: Some(header), ..Default::default() };
        if let Some(term) = term {
            match self.split(term, &request.into_inner().key).await {
                Ok((left, right)) => (answer.left, answer.right) = (left, right),
                Err(failed) => answer.failed = failed,
            }
        }
        Ok(Response::new(answer))
    }

    async fn region_transfer_leader(
        &self,
        request: Request<AdminTransferLeaderRequest>,
    ) -> Result<Response<AdminTransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let mut answer = AdminTransferLeaderResponse { header: Some(header), ..Default::default() };
        if term.is_some() {
            let moved = self.transfer(RegionId(request.region_id), StoreId(request.to_store)).await;
            answer.failed = moved.err().unwrap_or_default();
        }
        Ok(Response::new(answer))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(super::placement::status(&self.shared)))
    }
}
