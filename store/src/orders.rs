//! What placement orders this store to do: create the first peers of regions, split a region,
//! merge it into its neighbour, change its peers, hand over leadership.
//!
//! A split, a merge and a planned transfer are barriers (rules S1, O7): evaluation stops, what is in flight gets its number, is
//! proposed and applied, then the change itself is made. So neither leaves a hole in the revision order.

use std::sync::Arc;
use std::time::Duration;

use braid_host::{ChangeRefused, Host, Outcome, PeerChange, PeerHandle, SplitSpec};
use braid_proto::id::{PeerId, RegionId, StoreId, Term};
use braid_proto::key::{TAG_USER, lease_of};
use braid_proto::pb::change_peers_request::Change;
use braid_proto::pb::split_region_request::By;
use braid_proto::pb::{
    ChangePeersRequest, ChangePeersResponse, CreateRegionsResponse, MergeRegionRequest, MergeRegionResponse, Refusal,
    Region, SplitRegionRequest, SplitRegionResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use braid_store_core::load::Unsplit;
use braid_store_core::pipeline::{BarrierId, Until, busy, timed_out, unknown};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;

use crate::engine::NoHalf;
use crate::machine::Regions;
use crate::merge;
use crate::region::{NotDrained, RegionPeer};

/// How long a barrier may take to stand, and a change to be applied, before the order is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an order to merge waits for a frozen region to end or go on.
const MERGE_PATIENCE: Duration = Duration::from_secs(20);

/// Why a region has no half.
const TOO_SMALL: &str = "the region is too small to split: no key of user data has a part of its data before it";

/// Carries out placement's orders on one store.
pub struct Orders {
    store_id: StoreId,
    host: Arc<Host>,
    regions: Arc<Regions>,
}

impl Orders {
    /// Orders for the regions of `host`.
    pub fn new(store_id: StoreId, host: Arc<Host>, regions: Arc<Regions>) -> Self {
        Self { store_id, host, regions }
    }

    /// Creates this store's peers of `regions`; the store that is named first in a region's peers campaigns at once.
    pub async fn create(&self, regions: Vec<Region>) -> CreateRegionsResponse {
        let host = Arc::clone(&self.host);
        let mine: Vec<Region> = regions.into_iter().filter(|r| r.peer_on(self.store_id).is_some()).collect();
        let first: Vec<RegionId> = mine
            .iter()
            .filter(|region| region.peers.first().is_some_and(|peer| peer.store_id == self.store_id.0))
            .map(Region::region_id)
            .collect();
        let created = tokio::task::spawn_blocking(move || host.create_regions(mine)).await;
        let failed = match created {
            Ok(Ok(())) => String::new(),
            Ok(Err(why)) => why,
            Err(error) => format!("creating regions was given up: {error}"),
        };
        if failed.is_empty() {
            for region in first.into_iter().filter_map(|id| self.regions.get(id)) {
                if region.handle().leader().is_none() {
                    region.handle().campaign();
                }
            }
        }
        CreateRegionsResponse { failed }
    }

    /// Splits `region` at the key of `request`, or where it is to be found.
    pub async fn split(&self, region: Arc<RegionPeer>, mut request: SplitRegionRequest) -> SplitRegionResponse {
        if request.split_key.is_empty() {
            request.split_key = match self.split_key(&region, &request).await {
                Ok(key) => key,
                Err(refused) => return *refused,
            };
        }
        let current = region.handle().region();
        if let Err(invalid) = check_split(&current, &request) {
            return SplitRegionResponse { invalid, ..Default::default() };
        }
        let (term, barrier) = match barrier(&region, request.epoch, Until::Unlocked, PATIENCE).await {
            Ok(drained) => drained,
            Err(refusal) => return SplitRegionResponse { refusal: Some(refusal), ..Default::default() },
        };
        let (tell, told) = oneshot::channel();
        let child_id = RegionId(request.child_id);
        let spec = SplitSpec { key: request.split_key, child_id, child_peer_ids: request.child_peer_ids };
        region.handle().propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
        match region.outcome(barrier, told, PATIENCE).await {
            Some(Outcome::Applied) => {
                let left = Some((*region.handle().region()).clone());
                let right = self.regions.get(child_id).map(|child| (*child.handle().region()).clone());
                SplitRegionResponse { left, right, ..Default::default() }
            }
            Some(Outcome::Dropped) => {
                let refusal = Some(region.with(|pipeline, _| pipeline.not_leader()));
                SplitRegionResponse { refusal, ..Default::default() }
            }
            Some(Outcome::Unknown) | None => {
                let refusal = Some(timed_out("the split was proposed, and may still happen"));
                SplitRegionResponse { refusal, ..Default::default() }
            }
        }
    }

    /// Where to split a region that this store leads.
    async fn split_key(
        &self,
        region: &Arc<RegionPeer>,
        request: &SplitRegionRequest,
    ) -> Result<Bytes, Box<SplitRegionResponse>> {
        let invalid =
            |invalid: &str| Box::new(SplitRegionResponse { invalid: invalid.to_owned(), ..Default::default() });
        let refused = |refusal| Box::new(SplitRegionResponse { refusal: Some(refusal), ..Default::default() });
        // Before the work: only the leader knows the load, and what it finds is of use for this epoch only.
        if region.with(|pipeline, _| pipeline.leading()).is_none() {
            return Err(refused(region.not_leader()));
        }
        if request.epoch != region.handle().region().epoch {
            return Err(refused(region.epoch_mismatch()));
        }
        match By::try_from(request.by) {
            Ok(By::Load) => {
                let range = region.handle().region().range();
                let found = region.load().middle(&range, region.shared().now());
                found.map_err(|why| match why {
                    Unsplit::Idle => invalid("there is too little load to tell where half of it lies"),
                    Unsplit::OneKey => invalid("all load is on one key: a split would not spread it"),
                    Unsplit::Moving => invalid(
                        "the load moves on through the keys in order: a split would leave all of it on one side",
                    ),
                })
            }
            Ok(By::Size) => {
                let searched = Arc::clone(region);
                let found = tokio::task::spawn_blocking(move || searched.data().half()).await;
                match found {
                    Ok(Ok(key)) => Ok(key),
                    Ok(Err(NoHalf::TooSmall)) => Err(invalid(TOO_SMALL)),
                    Ok(Err(NoHalf::Damaged(damage))) => {
                        region.poison(&damage.0);
                        Err(refused(busy("the region's data cannot be read here")))
                    }
                    Err(error) => Err(refused(timed_out(&format!("the search for a key was given up: {error}")))),
                }
            }
            Err(_) => Err(invalid("the request asks for a kind of split that this version does not know")),
        }
    }

    /// Changes the peers of `region`. Nothing has to be drained: what is in flight does not depend on who keeps copies of it
    /// ([`braid_store_core::epoch`]). A change of several voters is answered once the joint configuration stands; the leader
    /// leaves that by itself.
    pub async fn change_peers(&self, region: Arc<RegionPeer>, request: ChangePeersRequest) -> ChangePeersResponse {
        let refused = |refusal| ChangePeersResponse { refusal: Some(refusal), ..Default::default() };
        let change = match peer_change(&request) {
            Ok(change) => change,
            Err(failed) => return ChangePeersResponse { failed, ..Default::default() },
        };
        let Some(term) = region.with(|pipeline, _| pipeline.leading()) else { return refused(region.not_leader()) };
        let epoch = region.handle().region().region_epoch();
        if request.epoch != Some(epoch) {
            return refused(region.epoch_mismatch());
        }
        let (tell, told) = oneshot::channel();
        region.handle().propose_change(term, epoch, change, Box::new(move |ended| _ = tell.send(ended)));
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(Ok(()))) => {
                let region = Some((*region.handle().region()).clone());
                ChangePeersResponse { region, ..Default::default() }
            }
            Ok(Ok(Err(ChangeRefused::NotLeader))) => refused(region.not_leader()),
            Ok(Ok(Err(ChangeRefused::Epoch))) => refused(region.epoch_mismatch()),
            Ok(Ok(Err(ChangeRefused::NotNow(why)))) => refused(busy(&why)),
            Ok(Ok(Err(ChangeRefused::Invalid(failed)))) => ChangePeersResponse { failed, ..Default::default() },
            Ok(Ok(Err(ChangeRefused::Unknown)) | Err(_)) | Err(_) => {
                refused(unknown("the change was proposed, and may still happen"))
            }
        }
    }

    /// Hands leadership of `region` to the peer on `request.to_store`.
    pub async fn transfer_leader(
        &self,
        region: Arc<RegionPeer>,
        request: TransferLeaderRequest,
    ) -> TransferLeaderResponse {
        let target = StoreId(request.to_store);
        let current = region.handle().region();
        let Some(to) = current.peer_on(target).filter(|peer| !peer.learner).map(|peer| PeerId(peer.id)) else {
            let failed = format!("{} has no voting peer on store {target}", current.region_id());
            return TransferLeaderResponse { failed, ..Default::default() };
        };
        if target == self.store_id && region.with(|pipeline, _| pipeline.leading()).is_some() {
            return TransferLeaderResponse::default();
        }
        let (term, barrier) = match barrier(&region, request.epoch, Until::Idle, PATIENCE).await {
            Ok(drained) => drained,
            Err(refusal) => return TransferLeaderResponse { refusal: Some(refusal), ..Default::default() },
        };
        let (tell, told) = oneshot::channel();
        let handle = region.handle().clone();
        let peers = current.peers.clone();
        let own = self.store_id;
        // On a task of its own: what has been begun is seen through, also when the caller has gone.
        tokio::spawn(async move {
            let mut ended = hand_to(&handle, term, to).await;
            let others = peers.iter().filter(|peer| !peer.learner && peer.id != to.0 && peer.store_id != own.0);
            for other in others {
                if ended.is_ok() || !handle.is_leader(term) || handle.lease(term) {
                    break;
                }
                // The target was told and is silent: this leader has no lease in this term any more, so nothing here can be
                // promised to watches. Somebody else leads rather than nobody well.
                tracing::info!(region = %handle.region().region_id(), to = other.store_id, "handing over to another store instead");
                if hand_to(&handle, term, PeerId(other.id)).await.is_ok() {
                    ended = Err(format!("the target did not take over; store {} leads instead", other.store_id));
                    break;
                }
            }
            _ = tell.send(ended);
        });
        let failed = match region.outcome(barrier, told, PATIENCE).await {
            Some(Ok(())) => String::new(),
            Some(Err(why)) => why,
            None => "the target did not take over in time; leadership stays where it is".to_owned(),
        };
        TransferLeaderResponse { failed, ..Default::default() }
    }

    /// Hands leadership of every region led here to another store, as far as that goes in `patience`: a planned stop
    /// then costs clients nothing.
    pub async fn hand_over_all(&self, patience: Duration) {
        let led = self.regions.all().into_iter().filter(|region| region.handle().report().is_some());
        let handed = led.map(|region| self.hand_over(region)).collect::<FuturesUnordered<_>>().collect::<Vec<()>>();
        if tokio::time::timeout(patience, handed).await.is_err() {
            tracing::warn!("some regions were not handed over before the stop; their next leaders are elected");
        }
    }

    async fn hand_over(&self, region: Arc<RegionPeer>) {
        let current = region.handle().region();
        let others = current.peers.iter().filter(|peer| !peer.learner && peer.store_id != self.store_id.0);
        for target in others {
            let request =
                TransferLeaderRequest { region_id: current.id, epoch: current.epoch, to_store: target.store_id };
            let answer = self.transfer_leader(Arc::clone(&region), request).await;
            if answer.refusal.is_none() && answer.failed.is_empty() {
                return;
            }
        }
    }

    /// Merges `region` into its neighbour: freezes it, and waits for what becomes of that. Once it is frozen, whoever leads it
    /// goes on with the merge by itself.
    pub async fn merge(&self, region: Arc<RegionPeer>, request: MergeRegionRequest) -> MergeRegionResponse {
        let refused = |refusal| MergeRegionResponse { refusal: Some(refusal), ..Default::default() };
        let failed = |failed| MergeRegionResponse { failed, ..Default::default() };
        let target = request.target.unwrap_or_default();
        let into = target.region_id();
        match region.handle().frozen() {
            Some(frozen) if frozen.target == into => return self.merged(&region, &target).await,
            Some(frozen) => return failed(format!("{} is being merged into {}", region.id(), frozen.target)),
            None => {}
        }
        let current = region.handle().region();
        if region.with(|pipeline, _| pipeline.leading()).is_none() {
            return refused(region.not_leader());
        }
        if request.epoch != current.epoch {
            return refused(region.epoch_mismatch());
        }
        let wrong = match (merge::check(&current, &target), self.regions.get(into)) {
            (Err(wrong), _) => Some(wrong),
            (Ok(()), None) => Some(format!("{into} has no peer on this store")),
            (Ok(()), Some(peer)) if *peer.handle().region() != target => {
                let known = peer.handle().region().region_epoch();
                Some(format!("{into} is at {known} here, and otherwise in the order, at {}", target.region_epoch()))
            }
            (Ok(()), Some(peer)) if peer.is_frozen() => Some(format!("{into} is being merged itself")),
            _ if merge::is_awaited(&self.regions, region.id()) => {
                Some(format!("another region is being merged into {}", region.id()))
            }
            _ => region
                .handle()
                .report()
                .filter(|report| !report.down_peers.is_empty())
                .map(|report| format!("{} has peers that do not answer: {:?}", region.id(), report.down_peers)),
        };
        if let Some(wrong) = wrong {
            return failed(wrong);
        }
        let (term, barrier) = match barrier(&region, request.epoch, Until::Empty, PATIENCE).await {
            Ok(drained) => drained,
            Err(refusal) => return refused(refusal),
        };
        let (tell, told) = oneshot::channel();
        region.handle().propose_freeze(term, target.clone(), Box::new(move |ended| _ = tell.send(ended)));
        match region.outcome(barrier, told, PATIENCE).await {
            // Freezing has ended the barrier.
            Some(Ok(())) => self.merged(&region, &target).await,
            Some(Err(ChangeRefused::NotLeader)) => refused(region.not_leader()),
            Some(Err(ChangeRefused::Epoch)) => refused(region.epoch_mismatch()),
            Some(Err(ChangeRefused::NotNow(why))) => refused(busy(&why)),
            Some(Err(ChangeRefused::Invalid(why))) => failed(why),
            Some(Err(ChangeRefused::Unknown)) | None => refused(unknown("the merge was begun, and may still happen")),
        }
    }

    /// What becomes of a region that is frozen for `target`.
    async fn merged(&self, source: &RegionPeer, target: &Region) -> MergeRegionResponse {
        let into = target.region_id();
        if tokio::time::timeout(MERGE_PATIENCE, source.settled()).await.is_err() {
            let refusal = Some(unknown("the region is frozen: it will be merged, or go on as it was"));
            return MergeRegionResponse { refusal, ..Default::default() };
        }
        let region = self.regions.get(into).map(|peer| (*peer.handle().region()).clone());
        match source.is_gone() {
            true => MergeRegionResponse { region, ..Default::default() },
            false => {
                let failed = format!("{into} has not taken the region in; it goes on as it was");
                MergeRegionResponse { failed, ..Default::default() }
            }
        }
    }
}

/// Stops the region's writes and waits until nothing is in flight, and for what `until` says beside that: a split cuts no lock
/// in two (rule S3), a merge meets none (rule S4). Returns the term the change may be made in, and the
/// barrier, which must be ended.
pub async fn barrier(
    region: &RegionPeer,
    epoch: Option<braid_proto::pb::RegionEpoch>,
    until: Until,
    patience: Duration,
) -> Result<(Term, BarrierId), Refusal> {
    let Some(term) = region.with(|pipeline, _| pipeline.leading()) else {
        return Err(region.with(|pipeline, _| pipeline.not_leader()));
    };
    if epoch != region.handle().region().epoch {
        return Err(region.with(|pipeline, _| pipeline.epoch_mismatch()));
    }
    match region.drain(until, patience).await {
        // Peers may have changed meanwhile, and the order was given for those that were.
        Ok(barrier) if epoch != region.handle().region().epoch => {
            region.release(barrier);
            Err(region.epoch_mismatch())
        }
        Ok(barrier) if region.with(|pipeline, _| pipeline.leading()) == Some(term) => Ok((term, barrier)),
        Ok(barrier) => {
            region.release(barrier);
            Err(region.with(|pipeline, _| pipeline.not_leader()))
        }
        Err(NotDrained::Otherwise) => {
            Err(busy("another split, merge or transfer of this region is under way, or its leader changed"))
        }
        Err(NotDrained::InTime) => Err(timed_out("the region's writes did not drain in time")),
    }
}

fn peer_change(request: &ChangePeersRequest) -> Result<PeerChange, String> {
    let stores = |ids: &[u64]| ids.iter().map(|id| StoreId(*id)).collect();
    match &request.change {
        Some(Change::AddLearner(peer)) => Ok(PeerChange::AddLearner(*peer)),
        Some(Change::Voters(change)) => {
            Ok(PeerChange::Voters { promote: stores(&change.promote), demote: stores(&change.demote) })
        }
        Some(Change::RemoveStore(store)) => Ok(PeerChange::Remove(StoreId(*store))),
        None => Err("the request names no change of peers that this version knows".to_owned()),
    }
}

fn check_split(region: &Region, request: &SplitRegionRequest) -> Result<(), String> {
    let key = &request.split_key;
    // Between two records of leases, too: each lies at one key, and goes to the leader of its half.
    let of_user = key.first() == Some(&TAG_USER) && key.len() >= 2;
    if !of_user && lease_of(key).is_none() {
        return Err("a region is split at a key of user data or of a lease; name one with --key".to_owned());
    }
    if !region.range().contains(key) || *key == region.start {
        return Err(format!("the key does not lie inside {} (or is its first key)", region.region_id()));
    }
    if request.child_peer_ids.len() != region.peers.len() {
        return Err(format!(
            "{} has {} peers but {} ids were given for the new region's",
            region.region_id(),
            region.peers.len(),
            request.child_peer_ids.len()
        ));
    }
    Ok(())
}

/// Hands leadership to `to`, and says how that ended.
async fn hand_to(handle: &PeerHandle, term: Term, to: PeerId) -> Result<(), String> {
    let (tell, told) = oneshot::channel();
    handle.transfer_leader(term, to, Box::new(move |ended| _ = tell.send(ended)));
    told.await.unwrap_or_else(|_| Err("the peer went away meanwhile".to_owned()))
}
