//! Stores as placement sees them: they create, lead, split and hand over regions in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{
    CreateRegionsRequest, CreateRegionsResponse, EpochMismatch, NotLeader, Refusal, Region, RegionReport,
    SplitRegionRequest, SplitRegionResponse, Store, StoreHeartbeatRequest, TransferLeaderRequest,
    TransferLeaderResponse,
};
use parking_lot::Mutex;

use super::CLUSTER;
use crate::orders::{Answer, NoAnswer, StoreOrders};

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
}

#[derive(Clone)]
struct Led {
    region: Region,
    leader: u64,
    term: u64,
}

impl FakeStores {
    /// `store` does not answer.
    pub fn take_down(&self, store: u64) {
        self.0.lock().down.insert(store);
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

    /// What `store` says about itself and all that it leads.
    pub fn full_beat(&self, store: u64) -> StoreHeartbeatRequest {
        let inner = self.0.lock();
        let led = inner.regions.values().filter(|led| led.leader == store);
        let report = |led: &Led| RegionReport {
            leader_peer: led.region.peer_on(StoreId(store)).map_or(0, |peer| peer.id),
            region: Some(led.region.clone()),
            term: led.term,
            ..Default::default()
        };
        StoreHeartbeatRequest {
            cluster_id: CLUSTER.0,
            store_id: store,
            incarnation: 1,
            leaders: led.map(report).collect(),
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

    pub fn leader_of(&self, region: RegionId) -> u64 {
        self.0.lock().regions[&region.0].leader
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
                self.regions.entry(region.id).or_insert(Led { region, leader: store, term: 6 });
            }
        }
        CreateRegionsResponse::default()
    }

    fn check(&self, store: u64, region: u64, epoch: Option<braid_proto::pb::RegionEpoch>) -> Result<Led, Refusal> {
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
        let mut right = Region { id: order.child_id, start: order.split_key.clone(), ..led.region.clone() };
        led.region.end = order.split_key;
        for (peer, id) in right.peers.iter_mut().zip(&order.child_peer_ids) {
            peer.id = *id;
        }
        for region in [&mut led.region, &mut right] {
            region.epoch.as_mut().expect("it has one").version += 1;
        }
        let answer =
            SplitRegionResponse { left: Some(led.region.clone()), right: Some(right.clone()), ..Default::default() };
        self.regions.insert(right.id, Led { region: right, ..led.clone() });
        self.regions.insert(led.region.id, led);
        answer
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
            Ok(led) => {
                let moved = Led { leader: request.to_store, term: led.term + 1, ..led };
                inner.regions.insert(request.region_id, moved);
                TransferLeaderResponse::default()
            }
            Err(refusal) => TransferLeaderResponse { refusal: Some(refusal), ..Default::default() },
        })
    }
}
