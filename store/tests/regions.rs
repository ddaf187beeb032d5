//! Three stores in one process, real raft, RocksDB and fsync; the sequencer is a counter. What a proxy would send goes
//! straight into the stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, TransportConfig};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op,
};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::user_key;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::{
    CreateRegionsRequest, Domain, HashRequest, NumberAnswer, NumberRequest, Peer, ReadRequest, Refusal, Region,
    RegionEpoch, RegionRequest, RegionResponse, SplitRegionRequest, TransferLeaderRequest, refusal, region_request,
    region_response,
};
use braid_proto::service::NumberService;
use braid_store::{SpaceLimits, Store, StoreConfig};
use braid_store_client::Regions;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const CLUSTER: ClusterId = ClusterId(77);
const DEADLINE: Duration = Duration::from_secs(20);

/// A sequencer that always leads.
struct Counter(AtomicI64);

impl NumberService for Counter {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let base = self.0.fetch_add(i64::from(request.count), Ordering::SeqCst);
        NumberAnswer { seq: request.seq, epoch: 1, base, count: request.count, ..Default::default() }
    }
}

struct Cluster {
    dirs: Vec<TempDir>,
    stores: Vec<Option<Store>>,
    numbers: Arc<Counter>,
    registry: LocalRegistry,
    space: SpaceLimits,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(SpaceLimits { quota_bytes: 0, free_bytes_min: 0 }).await
    }

    async fn start_with(space: SpaceLimits) -> Self {
        let dirs = (0..3).map(|_| tempfile::tempdir().expect("a temporary folder")).collect();
        let mut cluster = Self {
            dirs,
            stores: vec![None, None, None],
            numbers: Arc::new(Counter(AtomicI64::new(1))),
            registry: LocalRegistry::default(),
            space,
        };
        for id in 1..=3 {
            cluster.open(id).await;
        }
        for id in [2, 3, 1] {
            let request = CreateRegionsRequest { cluster_id: CLUSTER.0, regions: vec![whole()] };
            let answer = cluster.store(id).service().create_regions(tonic::Request::new(request)).await;
            assert_eq!(answer.expect("an answer").into_inner().failed, "");
        }
        cluster
    }

    async fn open(&mut self, id: u64) {
        let addresses = AddressBook::default();
        let runtime = tokio::runtime::Handle::current();
        let transport =
            GrpcTransport::new(runtime, CLUSTER, addresses.clone(), self.registry.clone(), TransportConfig::default());
        // Nobody answers there: heartbeats fail, nothing else needs placement.
        let placement = Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()]));
        let local = Arc::clone(&self.numbers) as Arc<dyn NumberService>;
        let numbers = Numbers::start(NumbersConfig::new(id, CLUSTER.0), Arc::clone(&placement), Some(local));
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
            space: self.space,
        };
        let cluster = Regions::connect(CLUSTER, Arc::clone(&placement));
        let store =
            Store::open(config, placement, numbers, cluster, Arc::new(transport), addresses).await.expect("a store");
        self.registry.register(Domain::Store, id, store.inbound());
        self.stores[id as usize - 1] = Some(store);
    }

    async fn close(&mut self, id: u64) {
        self.registry.unregister(Domain::Store, id);
        self.stores[id as usize - 1].take().expect("an open store").shutdown().await;
    }

    fn store(&self, id: u64) -> &Store {
        self.stores[id as usize - 1].as_ref().expect("an open store")
    }

    /// Asks whoever leads, as a proxy would: refusals are followed until the deadline.
    async fn ask(&self, region: u64, epoch: RegionEpoch, op: region_request::Op) -> region_response::Result {
        let deadline = Instant::now() + DEADLINE;
        let mut store = 1;
        loop {
            if let Some(open) = self.stores[store as usize - 1].as_ref() {
                let request =
                    RegionRequest { region_id: region, epoch: Some(epoch), timeout_ms: 5_000, op: Some(op.clone()) };
                match open.local().call(request).await.result.expect("a result") {
                    region_response::Result::Refusal(Refusal {
                        reason: Some(refusal::Reason::NotLeader(_) | refusal::Reason::Busy(_)),
                    }) => {}
                    other => return other,
                }
            }
            assert!(Instant::now() < deadline, "no leader of r{region}");
            store = store % 3 + 1;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let put = PutRequest { key: bytes(key), value: bytes(value), ..Default::default() };
        match self.ask(1, EPOCH, region_request::Op::Put(put)).await {
            region_response::Result::Put(put) => put.header.expect("a header").revision,
            other => panic!("{other:?}"),
        }
    }

    async fn get(&self, key: &str) -> Option<String> {
        match self.ask(1, EPOCH, read(key, "", 0)).await {
            region_response::Result::Range(range) => {
                range.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
            }
            other => panic!("{other:?}"),
        }
    }

    /// The store that leads region 1.
    async fn leader(&self) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            for id in (1..=3).filter(|id| self.stores[*id as usize - 1].is_some()) {
                let request =
                    RegionRequest { region_id: 1, epoch: Some(EPOCH), timeout_ms: 0, op: Some(read("x", "", 0)) };
                let answer = self.store(id).local().call(request).await;
                if matches!(answer.result, Some(region_response::Result::Range(_))) {
                    return id;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader");
    }
}

const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };

fn whole() -> Region {
    let peers = (1..=3).map(|store| Peer::voter(10 + store, store)).collect();
    Region { id: 1, epoch: Some(EPOCH), peers, ..Default::default() }
}

fn bytes(text: &str) -> bytes::Bytes {
    text.as_bytes().to_vec().into()
}

fn read(key: &str, end: &str, revision: i64) -> region_request::Op {
    let range = RangeRequest { key: bytes(key), range_end: bytes(end), revision, ..Default::default() };
    region_request::Op::Read(ReadRequest { range: Some(range), read_at: 0 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_gets_deletes_and_transactions_have_etcds_revisions() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.put("a", "1").await, 2);
    assert_eq!(cluster.put("b", "2").await, 3);
    assert_eq!(cluster.get("a").await.as_deref(), Some("1"));
    assert_eq!(cluster.get("nothing").await, None);
    let guarded = |revision| {
        region_request::Op::Txn(TxnRequest {
            compare: vec![Compare {
                target: compare::CompareTarget::Mod.into(),
                key: bytes("a"),
                target_union: Some(compare::TargetUnion::ModRevision(revision)),
                ..Default::default()
            }],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestPut(PutRequest {
                    key: bytes("a"),
                    value: bytes("new"),
                    ..Default::default()
                })),
            }],
            failure: Vec::new(),
        })
    };
    let region_response::Result::Txn(won) = cluster.ask(1, EPOCH, guarded(2)).await else { panic!() };
    assert_eq!((won.succeeded, won.header.unwrap_or_default().revision), (true, 4));
    let region_response::Result::Txn(lost) = cluster.ask(1, EPOCH, guarded(2)).await else { panic!() };
    assert_eq!((lost.succeeded, lost.header.unwrap_or_default().revision), (false, 4));
    let delete = DeleteRangeRequest { key: bytes("a"), range_end: bytes("z"), ..Default::default() };
    let deleted = cluster.ask(1, EPOCH, region_request::Op::DeleteRange(delete)).await;
    let region_response::Result::DeleteRange(deleted) = deleted else { panic!("{deleted:?}") };
    assert_eq!((deleted.deleted, deleted.header.unwrap_or_default().revision), (2, 5));
    // What was there is still there for who asks as of then.
    let then = cluster.ask(1, EPOCH, read("a", "z", 4)).await;
    let region_response::Result::Range(then) = then else { panic!("{then:?}") };
    assert_eq!((then.count, then.kvs[0].value.as_ref()), (2, b"new".as_ref()));
    assert_eq!(then.header.unwrap_or_default().revision, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_of_one_key_lose_nothing() {
    let cluster = Arc::new(Cluster::start().await);
    let writers = (0..32).map(|writer| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for i in 0..20 {
                revisions.push(cluster.put("hot", &format!("{writer}-{i}")).await);
            }
            assert!(revisions.is_sorted(), "one after the other");
            revisions
        })
    });
    let mut all: Vec<i64> = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        all.extend(writer.await.expect("a writer"));
    }
    all.sort_unstable();
    assert_eq!(all, (2..2 + 640).collect::<Vec<i64>>(), "dense and unique");
    let now = cluster.ask(1, EPOCH, read("hot", "", 0)).await;
    let region_response::Result::Range(now) = now else { panic!("{now:?}") };
    assert_eq!((now.kvs[0].version, now.kvs[0].create_revision, now.kvs[0].mod_revision), (640, 2, 641));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_costs_nothing_acknowledged_and_catches_up() {
    let mut cluster = Cluster::start().await;
    for i in 0..50 {
        cluster.put(&format!("k{i}"), "before").await;
    }
    let leader = cluster.leader().await;
    cluster.close(leader).await;
    for i in 0..50 {
        assert_eq!(cluster.get(&format!("k{i}")).await.as_deref(), Some("before"));
        cluster.put(&format!("k{i}"), "after").await;
    }
    cluster.open(leader).await;
    // It has everything once it can lead: leadership is handed to it.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let from = cluster.leader().await;
        let request = TransferLeaderRequest { region_id: 1, epoch: Some(EPOCH), to_store: leader };
        let answer = cluster.store(from).service().transfer_leader(tonic::Request::new(request)).await;
        let answer = answer.expect("an answer").into_inner();
        if answer.refusal.is_none() && answer.failed.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "the returned store does not take over: {answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.leader().await, leader);
    for i in 0..50 {
        assert_eq!(cluster.get(&format!("k{i}")).await.as_deref(), Some("after"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_under_writes_loses_nothing_and_leaves_no_hole() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.put("a", "0").await;
    let leader = cluster.leader().await;
    let writing = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move {
            let mut revisions = Vec::new();
            for i in 0..400 {
                revisions.push(cluster.put_anywhere(&format!("{}{i}", if i % 2 == 0 { "a" } else { "x" })).await);
            }
            revisions
        }
    });
    let split = SplitRegionRequest {
        region_id: 1,
        epoch: Some(EPOCH),
        split_key: user_key(b"m"),
        child_id: 2,
        child_peer_ids: vec![21, 22, 23],
        ..SplitRegionRequest::default()
    };
    let answer = cluster.store(leader).service().split_region(tonic::Request::new(split)).await;
    let answer = answer.expect("an answer").into_inner();
    assert_eq!((answer.invalid.as_str(), answer.refusal), ("", None));
    assert_eq!(answer.right.expect("the right half").start, user_key(b"m"));
    let revisions = writing.await.expect("the writer");
    assert_eq!(revisions, (3..403).collect::<Vec<i64>>(), "every write has the next number");
    let stale = cluster.ask(1, EPOCH, read("x1", "", 0)).await;
    let mismatch = matches!(&stale, region_response::Result::Refusal(r) if matches!(r.reason, Some(refusal::Reason::EpochMismatch(_))));
    assert!(mismatch, "{stale:?}");
}

impl Cluster {
    /// Puts `key` into region 1 or, once it is split, into the half that holds it.
    async fn put_anywhere(&self, key: &str) -> i64 {
        let put = || region_request::Op::Put(PutRequest { key: bytes(key), value: bytes("v"), ..Default::default() });
        let halves = RegionEpoch { conf_ver: 1, version: 2 };
        let half = if key < "m" { 1 } else { 2 };
        for (region, epoch) in [(1, EPOCH), (half, halves)] {
            match self.ask(region, epoch, put()).await {
                region_response::Result::Put(put) => return put.header.expect("a header").revision,
                region_response::Result::Refusal(Refusal { reason: Some(refusal::Reason::EpochMismatch(_)) }) => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("neither region takes {key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_refuses_puts_but_not_deletes() {
    let cluster = Cluster::start_with(SpaceLimits { quota_bytes: 1, free_bytes_min: 0 }).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let put = PutRequest { key: bytes("a"), value: bytes("1"), ..Default::default() };
        match cluster.ask(1, EPOCH, region_request::Op::Put(put)).await {
            region_response::Result::Error(error) => {
                assert_eq!(error.message, "etcdserver: mvcc: database space exceeded");
                break;
            }
            region_response::Result::Put(_) => assert!(Instant::now() < deadline, "the quota is never noticed"),
            other => panic!("{other:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
    let delete = DeleteRangeRequest { key: bytes("a"), ..Default::default() };
    let deleted = cluster.ask(1, EPOCH, region_request::Op::DeleteRange(delete)).await;
    assert!(matches!(deleted, region_response::Result::DeleteRange(_)), "{deleted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_stop_of_all_stores() {
    let mut cluster = Cluster::start().await;
    for i in 0..100 {
        cluster.put(&format!("k{i}"), "v").await;
    }
    for id in 1..=3 {
        cluster.close(id).await;
    }
    for id in 1..=3 {
        cluster.open(id).await;
    }
    for i in 0..100 {
        assert_eq!(cluster.get(&format!("k{i}")).await.as_deref(), Some("v"));
    }
    let response: RegionResponse = cluster.store(1).local().call(RegionRequest::default()).await;
    let unknown = matches!(response.result, Some(region_response::Result::Refusal(_)));
    assert!(unknown, "a region that is not here is refused");
}

fn hash(revision: i64, start: &[u8], end: &[u8]) -> region_request::Op {
    let key = bytes::Bytes::copy_from_slice;
    let request = HashRequest { revision, boundary: 0, start: key(start), end: key(end), catch_up_ms: 200 };
    region_request::Op::Hash(request)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_hashed_once_it_has_everything_and_not_before() {
    let cluster = Cluster::start().await;
    for i in 0..20 {
        cluster.put(&format!("k{}", i % 7), &i.to_string()).await;
    }
    let newest = cluster.put("last", "v").await;
    let leader = cluster.leader().await;
    let ask = async |store: u64, epoch: RegionEpoch, op| {
        let request = RegionRequest { region_id: 1, epoch: Some(epoch), timeout_ms: 5_000, op: Some(op) };
        cluster.store(store).local().call(request).await.result.expect("a result")
    };
    let whole = ask(leader, EPOCH, hash(newest, b"", b"")).await;
    let region_response::Result::Hash(expected) = whole else { panic!("{whole:?}") };
    assert_eq!((expected.keys, expected.versions), (8, 21));
    let part = ask(leader, EPOCH, hash(newest, &user_key(b"k0"), &user_key(b"k3"))).await;
    assert!(matches!(part, region_response::Result::Hash(part) if (part.keys, part.versions) == (3, 9)), "{part:?}");
    let late = |answer: &region_response::Result| {
        let region_response::Result::Refusal(refusal) = answer else { return false };
        matches!(refusal.reason, Some(refusal::Reason::TimedOut(_)))
    };
    for follower in (1..=3).filter(|store| *store != leader) {
        // It hears soon that the last entry is committed.
        let deadline = Instant::now() + DEADLINE;
        loop {
            match ask(follower, EPOCH, hash(newest, b"", b"")).await {
                region_response::Result::Hash(found) => break assert_eq!(found, expected, "s{follower}"),
                refused => assert!(late(&refused), "{refused:?}"),
            }
            assert!(Instant::now() < deadline, "s{follower} does not catch up");
        }
        // Nobody tells it here how far the leader is: it cannot know that there is nothing else.
        let beyond = ask(follower, EPOCH, hash(newest + 1, b"", b"")).await;
        assert!(late(&beyond), "{beyond:?}");
    }
    // The leader knows: nothing is under way.
    let beyond = ask(leader, EPOCH, hash(newest + 1, b"", b"")).await;
    assert!(matches!(beyond, region_response::Result::Hash(found) if found == expected), "{beyond:?}");
    let other_epoch = ask(leader, RegionEpoch { conf_ver: 1, version: 2 }, hash(newest, b"", b"")).await;
    let region_response::Result::Refusal(refused) = &other_epoch else { panic!("{other_epoch:?}") };
    assert!(matches!(refused.reason, Some(refusal::Reason::EpochMismatch(_))), "{refused:?}");
}
