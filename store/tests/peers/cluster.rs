//! Four stores in one process: real raft, RocksDB and fsync. Region 1 begins on the first three. Requests keep naming the
//! epoch that it began with.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, TransportConfig};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::etcd::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, compare, request_op,
};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::change_peers_request::Change;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::{
    ChangePeersRequest, ChangePeersResponse, CreateRegionsRequest, Domain, NumberAnswer, NumberRequest, Peer,
    ReadRequest, Refusal, Region, RegionEpoch, RegionRequest, TransferLeaderRequest, refusal, region_request,
    region_response,
};
use braid_proto::service::NumberService;
use braid_store::{RegionStoreService, SpaceLimits, Store, StoreConfig};
use braid_store_client::Regions;
use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const CLUSTER: ClusterId = ClusterId(79);
/// How long anything may take that must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at a condition that nobody tells of.
pub const LOOK: Duration = Duration::from_millis(20);
/// What region 1 begins with.
pub const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };
/// Stores of the cluster.
pub const STORES: u64 = 4;

/// A sequencer that always leads.
struct Counter(AtomicI64);

impl NumberService for Counter {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let base = self.0.fetch_add(i64::from(request.count), Ordering::SeqCst);
        NumberAnswer { seq: request.seq, epoch: 1, base, count: request.count, ..Default::default() }
    }
}

/// See the module's text.
pub struct Cluster {
    stores: Vec<Store>,
    /// The stores' ways to each other's regions.
    ways: Vec<Arc<Regions>>,
    _dirs: Vec<TempDir>,
}

impl Cluster {
    pub async fn start() -> Self {
        let numbers = Arc::new(Counter(AtomicI64::new(1)));
        let registry = LocalRegistry::default();
        let mut cluster = Self { stores: Vec::new(), ways: Vec::new(), _dirs: Vec::new() };
        for id in 1..=STORES {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (store, way) = open(id, &dir, &numbers, &registry).await;
            registry.register(Domain::Store, id, store.inbound());
            cluster.stores.push(store);
            cluster.ways.push(way);
            cluster._dirs.push(dir);
        }
        let peers = (1..=3).map(|store| Peer::voter(10 + store, store)).collect();
        let whole = Region { id: 1, epoch: Some(EPOCH), peers, ..Default::default() };
        for id in [2, 3, 1] {
            let request = CreateRegionsRequest { cluster_id: CLUSTER.0, regions: vec![whole.clone()] };
            let answer = cluster.service(id).create_regions(tonic::Request::new(request)).await;
            assert_eq!(answer.expect("an answer").into_inner().failed, "");
        }
        cluster
    }

    /// Tells the stores where regions are, as placement would.
    pub fn tell(&self, regions: &[Region]) {
        for way in &self.ways {
            for (store, id) in self.stores.iter().zip(1..) {
                way.add_local(StoreId(id), store.local());
            }
            way.router.learn(regions.to_vec());
        }
    }

    pub fn store(&self, id: u64) -> &Store {
        &self.stores[id as usize - 1]
    }

    pub fn service(&self, id: u64) -> RegionStoreService {
        self.store(id).service()
    }

    /// Asks one store about region 1.
    pub async fn ask_store(&self, store: u64, op: region_request::Op) -> region_response::Result {
        self.ask_region(store, 1, EPOCH, op).await
    }

    /// Asks one store about a region.
    pub async fn ask_region(
        &self,
        store: u64,
        region_id: u64,
        epoch: RegionEpoch,
        op: region_request::Op,
    ) -> region_response::Result {
        let request = RegionRequest { region_id, epoch: Some(epoch), timeout_ms: 5_000, op: Some(op) };
        self.store(store).local().call(request).await.result.expect("a result")
    }

    /// Asks whoever leads region 1. Only what certainly did not happen is asked again.
    pub async fn ask(&self, op: region_request::Op) -> region_response::Result {
        let deadline = Instant::now() + DEADLINE;
        let mut store = 1;
        loop {
            match self.ask_store(store, op.clone()).await {
                region_response::Result::Refusal(Refusal {
                    reason:
                        Some(
                            refusal::Reason::NotLeader(_)
                            | refusal::Reason::Busy(_)
                            | refusal::Reason::RegionNotFound(_),
                        ),
                }) => {}
                other => return other,
            }
            assert!(Instant::now() < deadline, "nobody leads");
            store = store % STORES + 1;
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Puts a key; returns the revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let put = PutRequest { key: text(key), value: text(value), ..Default::default() };
        match self.ask(region_request::Op::Put(put)).await {
            region_response::Result::Put(put) => put.header.expect("a header").revision,
            other => panic!("{other:?}"),
        }
    }

    /// Reads a key, linearizably.
    pub async fn get(&self, key: &str) -> RangeResponse {
        match self.ask(read(key, "")).await {
            region_response::Result::Range(range) => range,
            other => panic!("{other:?}"),
        }
    }

    /// Raises a counter that was `from` at `revision`; returns the revision, unless somebody else was first.
    pub async fn raise(&self, key: &str, (from, revision): (i64, i64)) -> Option<i64> {
        let put = PutRequest { key: text(key), value: text(&(from + 1).to_string()), ..Default::default() };
        let txn = TxnRequest {
            compare: vec![Compare {
                target: compare::CompareTarget::Mod.into(),
                key: text(key),
                target_union: Some(compare::TargetUnion::ModRevision(revision)),
                ..Default::default()
            }],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        match self.ask(region_request::Op::Txn(txn)).await {
            region_response::Result::Txn(txn) => txn.succeeded.then(|| txn.header.expect("a header").revision),
            other => panic!("{other:?}"),
        }
    }

    /// The store that leads region 1, by its own word.
    pub async fn leader(&self) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            for store in 1..=STORES {
                let Some(epoch) = self.region(store).await.and_then(|region| region.epoch) else { continue };
                let answer = self.ask_region(store, 1, epoch, read("a", "")).await;
                if matches!(answer, region_response::Result::Range(_)) {
                    return store;
                }
            }
            sleep(LOOK).await;
        }
        panic!("nobody leads");
    }

    /// Region 1 as `store` has applied it.
    pub async fn region(&self, store: u64) -> Option<Region> {
        let elsewhere = RegionEpoch { version: 99, ..EPOCH };
        match self.ask_region(store, 1, elsewhere, read("a", "")).await {
            region_response::Result::Refusal(Refusal { reason: Some(refusal::Reason::EpochMismatch(mismatch)) }) => {
                mismatch.current.first().cloned()
            }
            region_response::Result::Refusal(Refusal { reason: Some(refusal::Reason::RegionNotFound(_)) }) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Has the leader change the peers, as placement would: again until it can be done. Returns the region after it, out of
    /// a joint configuration.
    pub async fn change(&self, change: Change) -> Region {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let leader = self.leader().await;
            let epoch = self.region(leader).await.and_then(|region| region.epoch);
            let request = ChangePeersRequest { region_id: 1, epoch, change: Some(change.clone()) };
            let answer = self.change_once(leader, request).await;
            assert_eq!(answer.failed, "", "{change:?}");
            if answer.refusal.is_none() {
                break assert_ne!(answer.region.expect("the region").epoch, epoch, "a change of peers counts");
            }
            assert!(Instant::now() < deadline, "{change:?} is not done: {:?}", answer.refusal);
            sleep(LOOK).await;
        }
        loop {
            let region = self.region(self.leader().await).await;
            if let Some(region) = region.as_ref().filter(|region| !region.is_joint()) {
                return region.clone();
            }
            assert!(Instant::now() < deadline, "the joint configuration is not left: {region:?}");
            sleep(LOOK).await;
        }
    }

    pub async fn change_once(&self, store: u64, request: ChangePeersRequest) -> ChangePeersResponse {
        self.service(store).change_peers(tonic::Request::new(request)).await.expect("an answer").into_inner()
    }

    /// Has `store` lead region 1.
    pub async fn lead(&self, store: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let leader = self.leader().await;
            if leader == store {
                return;
            }
            let epoch = self.region(leader).await.and_then(|region| region.epoch);
            let request = TransferLeaderRequest { region_id: 1, epoch, to_store: store };
            let answer = self.service(leader).transfer_leader(tonic::Request::new(request)).await;
            assert!(Instant::now() < deadline, "store {store} does not take over: {answer:?}");
            sleep(LOOK).await;
        }
    }
}

async fn open(id: u64, dir: &TempDir, numbers: &Arc<Counter>, registry: &LocalRegistry) -> (Store, Arc<Regions>) {
    let addresses = AddressBook::default();
    let runtime = tokio::runtime::Handle::current();
    let config = TransportConfig::default();
    let transport = GrpcTransport::new(runtime, CLUSTER, addresses.clone(), registry.clone(), config);
    // Nobody answers there: heartbeats fail, nothing else needs placement.
    let placement = Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()]));
    let local = Arc::clone(numbers) as Arc<dyn NumberService>;
    let numbers = Numbers::start(NumbersConfig::new(id, CLUSTER.0), Arc::clone(&placement), Some(local));
    let config = StoreConfig {
        dir: dir.path().join("store"),
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
    let way = Regions::connect(CLUSTER, Arc::clone(&placement));
    let store = Store::open(config, placement, numbers, Arc::clone(&way), Arc::new(transport), addresses).await;
    (store.expect("a store"), way)
}

pub fn text(text: &str) -> Bytes {
    text.as_bytes().to_vec().into()
}

pub fn read(key: &str, end: &str) -> region_request::Op {
    let range = RangeRequest { key: text(key), range_end: text(end), ..Default::default() };
    region_request::Op::Read(ReadRequest { range: Some(range), read_at: 0 })
}
