//! Three stores in one process with three regions: real raft, RocksDB and fsync. They reach each other's regions as stores
//! do, over ways that a test can cut ([`crate::faults`]).

use std::sync::Arc;
use std::time::Duration;

use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, TransportConfig};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::user_key;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::{
    CreateRegionsRequest, Domain, FrontierRequest, MergeRegionRequest, MergeRegionResponse, Peer, Region, RegionEpoch,
    RegionRequest, SplitRegionRequest, SplitRegionResponse, TransferLeaderRequest, refusal, region_request,
    region_response,
};
use braid_proto::service::{NumberService, RegionService};
use braid_store::{RegionStoreService, SpaceLimits, Store, StoreConfig};
use braid_store_client::Regions;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::Ask;
use braid_store_client::retry::Kind;
use braid_store_client::route::Route;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::faults::{CLIENT, Faults, Link, Wire};
use crate::sequencer::Sequencer;

const CLUSTER: ClusterId = ClusterId(78);
/// How long the cluster may take to be as a test wants it before it begins.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a store asks for a number before it gives up: long enough for every hiccup, short enough for a test.
const NUMBER_PATIENCE: Duration = Duration::from_millis(1_500);
/// Between two looks at a condition that nobody tells of.
pub const LOOK: Duration = Duration::from_millis(20);

/// First letter of a key in each region: region 1 holds keys below "m", region 2 those below "t", region 3 the rest.
/// Each is led by the store of its number when a scenario begins.
pub const LETTERS: [char; 3] = ['a', 'n', 'u'];

/// What every part of a test may use at any time.
pub struct World {
    /// The way of a proxy to the regions.
    pub client: Arc<Regions>,
    /// The revisions.
    pub sequencer: Arc<Sequencer>,
    /// What goes wrong.
    pub faults: Arc<Faults>,
}

/// The stores.
pub struct Cluster {
    /// What others use beside it.
    pub world: Arc<World>,
    dirs: Vec<TempDir>,
    stores: [Option<Open>; 3],
    registry: LocalRegistry,
    opened: u64,
}

struct Open {
    store: Store,
    numbers: Arc<Numbers>,
    way: Arc<Regions>,
}

impl Cluster {
    /// Three stores, each leading one region.
    pub async fn start() -> Self {
        let faults = Faults::none();
        let world = World { client: way_to_regions(CLIENT, &faults), sequencer: Arc::new(Sequencer::start()), faults };
        let mut cluster = Self {
            world: Arc::new(world),
            dirs: (0..3).map(|_| tempfile::tempdir().expect("a temporary folder")).collect(),
            stores: [None, None, None],
            registry: LocalRegistry::default(),
            opened: 0,
        };
        for id in 1..=3 {
            cluster.open(id).await;
        }
        for id in 1..=3 {
            let request = CreateRegionsRequest { cluster_id: CLUSTER.0, regions: regions() };
            let answer = cluster.service(id).create_regions(tonic::Request::new(request)).await;
            assert_eq!(answer.expect("an answer").into_inner().failed, "");
        }
        cluster.arrange().await;
        cluster
    }

    /// Opens a store's folder, again if it was killed.
    pub async fn open(&mut self, id: u64) {
        let deadline = Instant::now() + DEADLINE;
        let open = loop {
            match self.try_open(id).await {
                Ok(open) => break open,
                // Calls of its last life may still hold the folder for a moment.
                Err(why) => assert!(Instant::now() < deadline, "store {id} does not open: {why}"),
            }
            sleep(LOOK).await;
        };
        self.registry.register(Domain::Store, id, open.store.inbound());
        self.world.faults.serve(id, open.store.local());
        self.stores[id as usize - 1] = Some(open);
    }

    async fn try_open(&mut self, id: u64) -> Result<Open, String> {
        self.opened += 1;
        let faults = Arc::clone(&self.world.faults);
        let addresses = AddressBook::default();
        let runtime = tokio::runtime::Handle::current();
        let config = TransportConfig::default();
        let inner = GrpcTransport::new(runtime, CLUSTER, addresses.clone(), self.registry.clone(), config);
        let transport = Arc::new(Wire { inner, faults: Arc::clone(&faults) });
        let placement = nobody();
        let numbers = Numbers::start(
            NumbersConfig { patience: NUMBER_PATIENCE, ..NumbersConfig::new(self.opened, CLUSTER.0) },
            Arc::clone(&placement),
            Some(Arc::clone(&self.world.sequencer) as Arc<dyn NumberService>),
        );
        let config = StoreConfig {
            dir: self.dirs[id as usize - 1].path().join("store"),
            cluster_id: CLUSTER,
            store_id: StoreId(id),
            workers: 1,
            block_cache_bytes: 8 << 20,
            record_cache_bytes: 1 << 20,
            memtable_bytes: 8 << 20,
            log_purge_bytes: 64 << 20,
            log_keep_entries: 10_000,
            log_keep_bytes: 64 << 20,
            snapshot_bytes_per_second: 0,
            space: SpaceLimits { quota_bytes: 0, free_bytes_min: 0 },
        };
        let way = way_to_regions(id, &faults);
        let opened = Store::open(config, placement, Arc::clone(&numbers), Arc::clone(&way), transport, addresses).await;
        // Its own regions, too, are called over a way that can be cut.
        way.add_local(StoreId(id), Arc::new(Link { from: id, to: id, faults }));
        match opened {
            Ok(store) => Ok(Open { store, numbers, way }),
            Err(why) => {
                numbers.stop();
                Err(why.to_string())
            }
        }
    }

    /// A store dies: nothing is handed over, nothing that only its memory knew is left.
    pub async fn kill(&mut self, id: u64) {
        self.world.faults.kill(id);
        self.registry.unregister(Domain::Store, id);
        let open = self.stores[id as usize - 1].take().expect("an open store");
        open.numbers.stop();
        open.store.close().await;
    }

    /// Reconnects and reopens whatever is not.
    pub async fn heal(&mut self) {
        self.world.faults.reconnect();
        for id in 1..=3 {
            if self.stores[id as usize - 1].is_none() {
                self.open(id).await;
            }
        }
    }

    /// Sees that each region is led by the store of its number.
    pub async fn arrange(&self) {
        for (letter, store) in LETTERS.into_iter().zip(1..) {
            self.lead(letter, store).await;
        }
    }

    /// Has `store` lead the region of `letter`: a planned transfer, if somebody else does.
    pub async fn lead(&self, letter: char, store: u64) {
        let deadline = Instant::now() + DEADLINE;
        let anchor = anchor(letter);
        loop {
            let (route, from) = self.world.leader(&anchor).await;
            if from == store {
                return;
            }
            let request =
                TransferLeaderRequest { region_id: route.region.0, epoch: Some(route.epoch), to_store: store };
            let answer = self.service(from).transfer_leader(tonic::Request::new(request)).await;
            let answer = answer.expect("an answer").into_inner();
            assert!(Instant::now() < deadline, "store {store} does not take over: {answer:?}");
            sleep(LOOK).await;
        }
    }

    /// Splits the region that holds the user key `key` there, as placement would order it.
    pub async fn split(&self, key: &str, child_id: u64) -> SplitRegionResponse {
        let split_key = user_key(key.as_bytes());
        let (route, leader) = self.world.leader(&split_key).await;
        let split = SplitRegionRequest {
            region_id: route.region.0,
            epoch: Some(route.epoch),
            split_key,
            child_id,
            child_peer_ids: (1..=3).map(|peer| child_id * 10 + peer).collect(),
            ..SplitRegionRequest::default()
        };
        let answer = self.service(leader).split_region(tonic::Request::new(split)).await;
        let answer = answer.expect("an answer").into_inner();
        // Placement would tell who asks; here everybody is told.
        let halves: Vec<Region> = answer.left.iter().chain(&answer.right).cloned().collect();
        for way in self.stores.iter().flatten().map(|open| &open.way).chain([&self.world.client]) {
            way.router.learn(halves.clone());
        }
        answer
    }

    /// Merges the region of `source` into that of `target`, as placement would order it. Nobody is told of what comes of it.
    #[allow(dead_code, reason = "the tests of merges share this cluster")]
    pub async fn merge(&self, source: char, target: char) -> MergeRegionResponse {
        let (into, _) = self.world.leader(&anchor(target)).await;
        let (route, leader) = self.world.leader(&anchor(source)).await;
        let target = Region {
            id: into.region.0,
            start: into.range.start.clone(),
            end: into.range.end.clone(),
            epoch: Some(into.epoch),
            peers: into.peers.clone(),
        };
        let request = MergeRegionRequest { region_id: route.region.0, epoch: Some(route.epoch), target: Some(target) };
        let answer = self.service(leader).merge_region(tonic::Request::new(request)).await;
        answer.expect("an answer").into_inner()
    }

    /// Waits until no replica has a lock or a record left.
    pub async fn forgets_all_locks(&self, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let rows = self.lock_rows();
            if rows == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{rows} locks are left, counted on every store that runs");
            sleep(LOOK).await;
        }
    }

    /// Locks and records that are applied on the stores that run.
    pub fn lock_rows(&self) -> usize {
        self.stores.iter().flatten().map(|open| open.store.lock_rows()).sum()
    }

    /// Listens to what a store says of its regions.
    #[allow(dead_code, reason = "the tests of watch share this cluster")]
    pub fn watch(&self, id: u64) -> braid_store::Following {
        self.stores[id as usize - 1].as_ref().expect("an open store").store.watch()
    }

    fn service(&self, id: u64) -> RegionStoreService {
        self.stores[id as usize - 1].as_ref().expect("an open store").store.service()
    }
}

impl World {
    /// The region of an internal key and the store that leads it, by its own word.
    pub async fn leader(&self, anchor: &[u8]) -> (Arc<Route>, u64) {
        loop {
            let op = region_request::Op::Frontier(FrontierRequest { leader: true, ..Default::default() });
            self.ask(anchor, op, DEADLINE).await;
            let route = self.client.find(anchor, Patience::within(DEADLINE)).await.expect("a route");
            // Somebody else may have found out meanwhile that it leads no more.
            if let Some(leader) = route.leader() {
                return (route, leader.0);
            }
        }
    }

    /// Asks the region of an internal key until it is answered; what is asked may be repeated.
    pub async fn ask(&self, anchor: &[u8], op: region_request::Op, patience: Duration) -> region_response::Result {
        let ask = Ask { anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
        let asked = self.client.ask(ask, Patience::within(patience)).await;
        asked.unwrap_or_else(|why| panic!("no answer about {anchor:?} in {patience:?}: {why:?}"))
    }

    /// Sends a request to whoever is said to lead the region of an internal key, and does nothing about a refusal.
    pub async fn send(&self, anchor: &[u8], op: region_request::Op, patience: Duration) -> region_response::Result {
        let route = self.client.find(anchor, Patience::within(patience)).await.expect("a route");
        self.send_to(route.leader().map_or(1, |store| store.0), anchor, op, patience).await
    }

    /// Sends a request to one store's replica of the region of an internal key.
    pub async fn send_to(
        &self,
        store: u64,
        anchor: &[u8],
        op: region_request::Op,
        patience: Duration,
    ) -> region_response::Result {
        let route = self.client.find(anchor, Patience::within(patience)).await.expect("a route");
        let request = RegionRequest {
            region_id: route.region.0,
            epoch: Some(route.epoch),
            timeout_ms: patience.as_millis() as u32,
            op: Some(op),
        };
        let link = Link { from: CLIENT, to: store, faults: Arc::clone(&self.faults) };
        link.call(request).await.result.expect("a result")
    }

    /// Asks the region of an internal key once: only refusals that say where to ask instead, or later, are followed.
    pub async fn ask_once(&self, anchor: &[u8], op: region_request::Op, patience: Duration) -> region_response::Result {
        let deadline = Instant::now() + patience;
        loop {
            let result = self.send(anchor, op.clone(), patience).await;
            let reason = match &result {
                region_response::Result::Refusal(refusal) => refusal.reason.as_ref(),
                _ => return result,
            };
            assert!(Instant::now() < deadline, "refused for {patience:?}: {result:?}");
            match reason {
                Some(refusal::Reason::Busy(_)) => sleep(LOOK).await,
                Some(
                    refusal::Reason::NotLeader(_)
                    | refusal::Reason::EpochMismatch(_)
                    | refusal::Reason::RegionNotFound(_),
                ) => {
                    let find = region_request::Op::Frontier(FrontierRequest { leader: true, ..Default::default() });
                    self.ask(anchor, find, patience).await;
                }
                _ => return result,
            }
        }
    }
}

/// An internal key of the region of `letter`.
pub fn anchor(letter: char) -> bytes::Bytes {
    user_key(letter.to_string().as_bytes())
}

/// Placement, of which nobody needs anything here.
fn nobody() -> Arc<PlacementClient> {
    Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()]))
}

fn way_to_regions(from: u64, faults: &Arc<Faults>) -> Arc<Regions> {
    let way = Regions::connect(CLUSTER, nobody());
    for to in 1..=3 {
        way.add_local(StoreId(to), Arc::new(Link { from, to, faults: Arc::clone(faults) }));
    }
    way.router.learn(regions());
    way
}

fn regions() -> Vec<Region> {
    let bounds = [b"".as_slice(), b"m", b"t", b""].map(|key| match key {
        b"" => bytes::Bytes::new(),
        key => user_key(key),
    });
    (1..=3_u64)
        .map(|id| {
            // The first peer campaigns at once.
            let stores = (0..3).map(|turn| (id - 1 + turn) % 3 + 1);
            let peers = stores.map(|store| Peer::voter(10 * id + store, store)).collect();
            let (start, end) = (bounds[id as usize - 1].clone(), bounds[id as usize].clone());
            Region { id, start, end, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers }
        })
        .collect()
}
