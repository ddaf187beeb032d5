//! Measures what an idle region costs in memory: three stores in one process, regions with a replica on each, and nobody who
//! asks for anything. Prints heap bytes and allocations of one replica, what the process is resident with for it beside that,
//! and how long the regions took to come.
//!
//! `cargo run --profile release -p braid-store --example idle_regions [REGIONS]` (2,000 unless told otherwise). The heap is
//! what this program's own allocations hold; RocksDB's are resident only.

#![allow(unsafe_code, reason = "an allocator that counts is one by an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, TransportConfig};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::user_key;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::{CreateRegionsRequest, Domain, NumberAnswer, NumberRequest, Peer, Region, RegionEpoch};
use braid_proto::service::NumberService;
use braid_store::{SpaceLimits, Store, StoreConfig};
use braid_store_client::Regions;
use tempfile::TempDir;

const CLUSTER: ClusterId = ClusterId(80);
const STORES: u64 = 3;
/// The heap is looked at so often, and has settled when it is the same within a hundredth after so many looks.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 12;

/// The system's allocator, with what is held of it.
struct Counting {
    bytes: AtomicUsize,
    pieces: AtomicUsize,
}

#[global_allocator]
static HEAP: Counting = Counting { bytes: AtomicUsize::new(0), pieces: AtomicUsize::new(0) };

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        self.pieces.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        self.pieces.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

/// A sequencer that always leads.
struct Counter(AtomicI64);

impl NumberService for Counter {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let base = self.0.fetch_add(i64::from(request.count), Ordering::SeqCst);
        NumberAnswer { seq: request.seq, epoch: 1, base, count: request.count, ..Default::default() }
    }
}

/// What is held at a moment.
#[derive(Clone, Copy)]
struct Held {
    bytes: usize,
    pieces: usize,
    resident: usize,
}

impl Held {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        let (bytes, pieces) = (HEAP.bytes.load(Ordering::Relaxed), HEAP.pieces.load(Ordering::Relaxed));
        Self { bytes, pieces, resident: kib << 10 }
    }

    /// The next moment at which nothing has changed for a while.
    async fn settled() -> Self {
        let mut before = Self::now();
        let mut same = 0;
        while same < LOOKS {
            tokio::time::sleep(LOOK).await;
            let now = Self::now();
            if now.bytes.abs_diff(before.bytes) > before.bytes / 100 {
                (before, same) = (now, 0);
            } else {
                same += 1;
            }
        }
        Self::now()
    }
}

async fn open(id: u64, dir: &TempDir, numbers: &Arc<Counter>, registry: &LocalRegistry) -> Store {
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
    let cluster = Regions::connect(CLUSTER, Arc::clone(&placement));
    let store = Store::open(config, placement, numbers, cluster, Arc::new(transport), addresses).await;
    let store = store.expect("a store");
    registry.register(Domain::Store, id, store.inbound());
    store
}

/// Regions with ids from `first`, each led by another store than the one before.
fn regions(first: u64, count: u64) -> Vec<Region> {
    let key = |id: u64| user_key(format!("idle/{id:012}").as_bytes());
    let peers = |id: u64| {
        (0..STORES).map(move |at| (id + at) % STORES + 1).map(move |store| Peer::voter(id * 10 + store, store))
    };
    let region = |id| Region {
        id,
        start: key(id),
        end: key(id + 1),
        epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers: peers(id).collect(),
    };
    (first..first + count).map(region).collect()
}

/// Has all stores create their peers, those that campaign at once last, as placement does.
async fn create(stores: &[Store], regions: &[Region]) {
    for campaigns in [false, true] {
        for store in stores {
            let first = |region: &&Region| (region.peers[0].store_id == store.store_id().0) == campaigns;
            let regions = regions.iter().filter(first).cloned().collect();
            let request = CreateRegionsRequest { cluster_id: CLUSTER.0, regions };
            let answer = store.service().create_regions(tonic::Request::new(request)).await;
            assert_eq!(answer.expect("an answer").into_inner().failed, "");
        }
    }
}

#[tokio::main]
async fn main() {
    let count = std::env::args().nth(1).map_or(2_000, |count| count.parse().expect("a number of regions"));
    let numbers = Arc::new(Counter(AtomicI64::new(1)));
    let registry = LocalRegistry::default();
    let (mut stores, mut dirs) = (Vec::new(), Vec::new());
    for id in 1..=STORES {
        let dir = tempfile::tempdir().expect("a temporary folder");
        stores.push(open(id, &dir, &numbers, &registry).await);
        dirs.push(dir);
    }
    // The first few bring what all share.
    create(&stores, &regions(1, 30)).await;
    let before = Held::settled().await;
    let begin = Instant::now();
    create(&stores, &regions(1_000, count)).await;
    println!("{count} regions created in {:?}", begin.elapsed());
    let after = Held::settled().await;
    let replicas = (count * STORES) as usize;
    println!("{:>8} bytes of heap a replica", (after.bytes - before.bytes) / replicas);
    println!("{:>8} allocations a replica", (after.pieces - before.pieces) / replicas);
    println!("{:>8} bytes resident a replica", after.resident.saturating_sub(before.resident) / replicas);
    for store in stores {
        store.close().await;
    }
}
