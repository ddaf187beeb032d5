//! Stores as placement sees them: they create, lead, split, merge, change and hand over regions in memory. They keep
//! raft's promises: a quorum of live voters decides, only live voters lead, a learner votes only when it has caught up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::change_peers_request::Change;
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{
    ChangePeersRequest, ChangePeersResponse, CreateRegionsRequest, CreateRegionsResponse, EpochMismatch,
    MergeRegionRequest, MergeRegionResponse, NotLeader, Peer, Refusal, Region, RegionEpoch, RegionReport,
    SplitRegionRequest, SplitRegionResponse, Store, StoreHeartbeatRequest, StoreStats, TransferLeaderRequest,
    TransferLeaderResponse,
};
use bytes::Bytes;
use parking_lot::Mutex;

use super::CLUSTER;
use crate::orders::{Answer, NoAnswer, StoreOrders};

/// What each region weighs.
pub const REGION_BYTES: u64 = 8 << 20;
const CAPACITY: u64 = 100 << 30;

#[derive(Default)]
pub struct FakeStores(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Stores that have a peer, by region.
    peers: BTreeMap<u64, BTreeSet<u64>>,
    regions: BTreeMap<u64, Led>,
    down: BTreeSet<u64>,
    /// Every creation that arrived: store and how many regions.
    creations: Vec<(u64, Vec<u64>)>,
    /// Refusals for the next splits.
    refusals: VecDeque<Refusal>,
    /// Answers to splits that are lost on the way.
    lost_answers: usize,
    /// Orders that changed peers or merged.
    changes: usize,
    /// Why every change of peers is refused.
    change_refused: Option<String>,
    /// Merges are not known here.
    no_merges: bool,
}

#[derive(Clone)]
struct Led {
    region: Region,
    leader: u64,
    term: u64,
    /// Learners that have not caught up: until the leader has reported them so.
    catching_up: BTreeSet<u64>,
}

impl FakeStores {
    /// `store` does not answer.
    pub fn take_down(&self, store: u64) {
        let mut inner = self.0.lock();
        inner.down.insert(store);
        inner.elect();
    }

    /// `store` answers again.
    pub fn bring_back(&self, store: u64) {
        self.0.lock().down.remove(&store);
    }

    pub fn is_down(&self, store: u64) -> bool {
        self.0.lock().down.contains(&store)
    }

    /// Which regions each store was told to create, in order of arrival.
    pub fn creations(&self) -> Vec<(u64, Vec<u64>)> {
        self.0.lock().creations.clone()
    }

    pub fn refuse_next_split(&self, reason: Reason) {
        self.0.lock().refusals.push_back(Refusal { reason: Some(reason) });
    }

    pub fn lose_next_split_answer(&self) {
        self.0.lock().lost_answers += 1;
    }

    pub fn refuse_changes(&self, why: Option<&str>) {
        self.0.lock().change_refused = why.map(str::to_owned);
    }

    pub fn know_no_merges(&self) {
        self.0.lock().no_merges = true;
    }

    /// Orders that changed peers or merged.
    pub fn changes(&self) -> usize {
        self.0.lock().changes
    }

    /// What `store` says about itself and all that it leads.
    pub fn full_beat(&self, store: u64) -> StoreHeartbeatRequest {
        let mut inner = self.0.lock();
        let down = inner.down.clone();
        let led = inner.regions.values_mut().filter(|led| led.leader == store);
        let report = |led: &mut Led| {
            let catching_up = std::mem::take(&mut led.catching_up).into_iter().collect();
            let silent = led.region.peers.iter().filter(|peer| down.contains(&peer.store_id));
            RegionReport {
                leader_peer: led.region.peer_on(StoreId(store)).map_or(0, |peer| peer.id),
                down_peers: silent.map(|peer| peer.id).collect(),
                region: Some(led.region.clone()),
                term: led.term,
                approximate_bytes: REGION_BYTES,
                approximate_keys: 1_000,
                catching_up,
                ..Default::default()
            }
        };
        let leaders: Vec<RegionReport> = led.map(report).collect();
        let used_bytes = REGION_BYTES * inner.regions.len() as u64;
        StoreHeartbeatRequest {
            cluster_id: CLUSTER.0,
            store_id: store,
            incarnation: 1,
            stats: Some(StoreStats {
                capacity_bytes: CAPACITY,
                available_bytes: CAPACITY - used_bytes,
                used_bytes,
                ..StoreStats::default()
            }),
            leaders,
            full: true,
            ..Default::default()
        }
    }

    /// The region that placement does not know of yet, because a store split it by itself.
    pub fn split_unheard(&self, region: RegionId, key: &'static [u8], child: u64) {
        let mut inner = self.0.lock();
        let led = inner.regions[&region.0].clone();
        let peers = led.region.peers.iter().map(|peer| peer.id + 1_000).collect();
        let order = SplitRegionRequest {
            region_id: region.0,
            epoch: led.region.epoch,
            split_key: key.into(),
            child_id: child,
            child_peer_ids: peers,
            ..SplitRegionRequest::default()
        };
        let answer = inner.split(led.leader, order);
        assert_eq!(answer.refusal, None);
    }

    /// Leadership moved, and placement has not heard.
    pub fn transfer_unheard(&self, region: RegionId, to: u64) -> u64 {
        let mut inner = self.0.lock();
        let led = inner.regions.get_mut(&region.0).expect("created");
        led.leader = to;
        led.term += 1;
        to
    }

    /// A learner that somebody began to add, and nobody looks after.
    pub fn leave_learner(&self, region: RegionId, peer: u64, store: u64) {
        let mut inner = self.0.lock();
        let led = inner.regions.get_mut(&region.0).expect("created");
        led.region.peers.push(Peer::learner(peer, store));
        changed(&mut led.region, 1, 0);
    }

    pub fn leader_of(&self, region: RegionId) -> u64 {
        self.0.lock().regions[&region.0].leader
    }

    /// Every region as its leader knows it, in key order.
    pub fn regions(&self) -> Vec<Region> {
        let mut regions: Vec<Region> = self.0.lock().regions.values().map(|led| led.region.clone()).collect();
        regions.sort_by(|one, other| one.start.cmp(&other.start));
        regions
    }

    /// Peers on `store`.
    pub fn held(&self, store: u64) -> usize {
        self.regions().iter().filter(|region| region.peer_on(StoreId(store)).is_some()).count()
    }

    /// Every region has so many peers, all of them voters on stores that are up.
    pub fn all_have(&self, replicas: usize) -> bool {
        self.regions().iter().all(|region| {
            region.peers.len() == replicas
                && region.peers.iter().all(|peer| !peer.learner && !self.is_down(peer.store_id))
        })
    }

    fn answer<T: Send + 'static>(&self, store: &Store, answer: impl FnOnce(&mut Inner) -> T) -> Answer<T> {
        let mut inner = self.0.lock();
        let answered = match inner.down.contains(&store.id) {
            true => Err(NoAnswer::new(StoreId(store.id), "down")),
            false => Ok(answer(&mut inner)),
        };
        Box::pin(std::future::ready(answered))
    }
}

/// A later epoch.
fn changed(region: &mut Region, conf_ver: u64, version: u64) {
    let epoch = region.epoch.get_or_insert_default();
    (epoch.conf_ver, epoch.version) = (epoch.conf_ver + conf_ver, epoch.version + version);
}

impl Inner {
    /// A region is led by the first of its peers; where that store is down, by another one as soon as a majority has
    /// peers.
    fn create(&mut self, store: u64, request: CreateRegionsRequest) -> CreateRegionsResponse {
        assert_eq!(request.cluster_id, CLUSTER.0);
        self.creations.push((store, request.regions.iter().map(|region| region.id).collect()));
        for region in request.regions {
            assert!(region.peer_on(StoreId(store)).is_some(), "{region:?} has no peer on s{store}");
            let peers = self.peers.entry(region.id).or_default();
            peers.insert(store);
            let first = region.peers[0].store_id;
            let majority = peers.len() > region.peers.len() / 2;
            if majority && (store == first || self.down.contains(&first)) {
                let led = Led { region, leader: store, term: 6, catching_up: BTreeSet::new() };
                self.regions.entry(led.region.id).or_insert(led);
            }
        }
        CreateRegionsResponse::default()
    }

    /// Regions whose leader is down elect another voter, if a quorum is up.
    fn elect(&mut self) {
        for led in self.regions.values_mut().filter(|led| self.down.contains(&led.leader)) {
            let voters: Vec<u64> =
                led.region.peers.iter().filter(|peer| !peer.learner).map(|peer| peer.store_id).collect();
            let live: Vec<u64> = voters.iter().filter(|store| !self.down.contains(store)).copied().collect();
            if live.len() > voters.len() / 2 {
                (led.leader, led.term) = (live[0], led.term + 1);
            }
        }
    }

    fn check(&self, store: u64, region: u64, epoch: Option<RegionEpoch>) -> Result<Led, Refusal> {
        let led = self.regions[&region].clone();
        let leader = led.region.peer_on(StoreId(led.leader)).copied();
        let reason = if led.leader != store {
            Reason::NotLeader(NotLeader { leader })
        } else if led.region.epoch != epoch {
            Reason::EpochMismatch(EpochMismatch { current: vec![led.region] })
        } else {
            return Ok(led);
        };
        Err(Refusal { reason: Some(reason) })
    }

    fn split(&mut self, store: u64, order: SplitRegionRequest) -> SplitRegionResponse {
        let mut led = match self.check(store, order.region_id, order.epoch) {
            Ok(led) => led,
            Err(refusal) => return SplitRegionResponse { refusal: Some(refusal), ..Default::default() },
        };
        assert_eq!(order.child_peer_ids.len(), led.region.peers.len());
        let key = match order.split_key.is_empty() {
            true => Bytes::from([&led.region.start[..], b"\x20m"].concat()),
            false => order.split_key,
        };
        let mut right = Region { id: order.child_id, start: key.clone(), ..led.region.clone() };
        led.region.end = key;
        for (peer, id) in right.peers.iter_mut().zip(&order.child_peer_ids) {
            peer.id = *id;
        }
        for region in [&mut led.region, &mut right] {
            changed(region, 0, 1);
        }
        let answer =
            SplitRegionResponse { left: Some(led.region.clone()), right: Some(right.clone()), ..Default::default() };
        self.regions.insert(right.id, Led { region: right, ..led.clone() });
        self.regions.insert(led.region.id, led);
        answer
    }

    fn change(&mut self, store: u64, order: ChangePeersRequest) -> ChangePeersResponse {
        if let Some(failed) = self.change_refused.clone() {
            return ChangePeersResponse { failed, ..Default::default() };
        }
        let mut led = match self.check(store, order.region_id, order.epoch) {
            Ok(led) => led,
            Err(refusal) => return ChangePeersResponse { refusal: Some(refusal), ..Default::default() },
        };
        self.changes += 1;
        let region = &mut led.region;
        match order.change.expect("an order says what changes") {
            Change::AddLearner(peer) => {
                assert!(peer.learner && region.peer_on(StoreId(peer.store_id)).is_none(), "{peer:?} in {region:?}");
                region.peers.push(peer);
                led.catching_up.insert(peer.id);
                changed(region, 1, 0);
            }
            Change::Voters(voters) => {
                assert!(!voters.demote.contains(&led.leader), "the leader keeps its vote");
                for peer in &mut region.peers {
                    let promoted = voters.promote.contains(&peer.store_id);
                    assert!(!promoted || !led.catching_up.contains(&peer.id), "it has not caught up: {peer:?}");
                    peer.learner = (peer.learner && !promoted) || voters.demote.contains(&peer.store_id);
                }
                let voters: Vec<&Peer> = region.peers.iter().filter(|peer| !peer.learner).collect();
                let live = voters.iter().filter(|peer| !self.down.contains(&peer.store_id)).count();
                assert!(live > voters.len() / 2, "the quorum is given away: {region:?}");
                changed(region, 2, 0);
            }
            Change::RemoveStore(store) => {
                let at = region.peers.iter().position(|peer| peer.store_id == store).expect("the epoch has it");
                let peer = region.peers.remove(at);
                assert!(peer.learner, "a voter was to be removed");
                changed(region, 1, 0);
            }
        }
        let region = Some(led.region.clone());
        self.regions.insert(led.region.id, led);
        ChangePeersResponse { region, ..Default::default() }
    }

    fn merge(&mut self, store: u64, order: MergeRegionRequest) -> MergeRegionResponse {
        let source = match self.check(store, order.region_id, order.epoch) {
            Ok(led) => led,
            Err(refusal) => return MergeRegionResponse { refusal: Some(refusal), ..Default::default() },
        };
        let target = order.target.expect("an order names the target");
        let mut led = self.regions[&target.id].clone();
        assert_eq!(led.region, target);
        let stores =
            |region: &Region| region.peers.iter().map(|peer| (peer.store_id, peer.learner)).collect::<BTreeSet<_>>();
        assert_eq!(stores(&source.region), stores(&target), "a merge of regions on different stores");
        if led.region.end == source.region.start {
            led.region.end = source.region.end.clone();
        } else {
            assert_eq!(led.region.start, source.region.end, "a merge of regions that are no neighbours");
            led.region.start = source.region.start.clone();
        }
        self.changes += 1;
        let above = source.region.region_epoch().version.saturating_sub(led.region.region_epoch().version);
        changed(&mut led.region, 0, above + 1);
        self.regions.remove(&source.region.id);
        let region = Some(led.region.clone());
        self.regions.insert(led.region.id, led);
        MergeRegionResponse { region, ..Default::default() }
    }
}

impl StoreOrders for FakeStores {
    fn create_regions(
        &self,
        store: &Store,
        request: CreateRegionsRequest,
        _: Duration,
    ) -> Answer<CreateRegionsResponse> {
        self.answer(store, |inner| inner.create(store.id, request))
    }

    fn split_region(&self, store: &Store, request: SplitRegionRequest, _: Duration) -> Answer<SplitRegionResponse> {
        let (id, mut lost) = (store.id, false);
        let answer = self.answer(store, |inner| match inner.refusals.pop_front() {
            Some(refusal) => SplitRegionResponse { refusal: Some(refusal), ..Default::default() },
            None => {
                lost = inner.lost_answers > 0;
                inner.lost_answers -= usize::from(lost);
                inner.split(id, request)
            }
        });
        match lost {
            true => Box::pin(std::future::ready(Err(NoAnswer::new(StoreId(id), "lost")))),
            false => answer,
        }
    }

    fn transfer_leader(
        &self,
        store: &Store,
        request: TransferLeaderRequest,
        _: Duration,
    ) -> Answer<TransferLeaderResponse> {
        self.answer(store, |inner| match inner.check(store.id, request.region_id, request.epoch) {
            Ok(_) if inner.down.contains(&request.to_store) => {
                TransferLeaderResponse { refusal: None, failed: "the target does not answer".into() }
            }
            Ok(led) => {
                let moved = Led { leader: request.to_store, term: led.term + 1, ..led };
                inner.regions.insert(request.region_id, moved);
                TransferLeaderResponse::default()
            }
            Err(refusal) => TransferLeaderResponse { refusal: Some(refusal), ..Default::default() },
        })
    }

    fn change_peers(&self, store: &Store, request: ChangePeersRequest, _: Duration) -> Answer<ChangePeersResponse> {
        self.answer(store, |inner| inner.change(store.id, request))
    }

    fn merge_region(&self, store: &Store, request: MergeRegionRequest, _: Duration) -> Answer<MergeRegionResponse> {
        if self.0.lock().no_merges {
            let none = NoAnswer { unknown_order: true, ..NoAnswer::new(StoreId(store.id), "unimplemented") };
            return Box::pin(std::future::ready(Err(none)));
        }
        self.answer(store, |inner| inner.merge(store.id, request))
    }
}
