//! Measures the engine by itself: one region in a real RocksDB, no raft, no network. Prints one line a figure.
//!
//! `cargo run --profile release -p braid-store --example engine_figures [KEYS] [FOLDER]` (1,000,000 keys in a temporary
//! folder unless told otherwise). Values are 256 bytes, keys look like a Kubernetes registry's.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{Change, Region, RegionEpoch, TxnEffect};
use braid_store::engine::{Boundary, EngineOptions, RegionData, column_families};
use braid_store_core::eval::{Context, Request, evaluate};
use braid_store_core::overlay::Overlay;
use braid_store_core::view::{BaseView, View};
use bytes::Bytes;
use rocksdb::{DB, Options, WriteBatch};

/// Transactions of one batch while loading.
const BATCH: usize = 1_000;
/// Keys of a page.
const PAGE: i64 = 500;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

struct Bench {
    data: RegionData,
    keys: u64,
    revision: i64,
    /// By key: the revision and version of its record.
    live: Vec<(i64, i64)>,
    random: Random,
}

fn name(n: u64) -> String {
    format!("/registry/pods/namespace-{:03}/workload-{:07}", n / 5_000, n)
}

fn region() -> Region {
    Region { id: 1, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), ..Default::default() }
}

fn open(folder: &PathBuf) -> Arc<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    let families = column_families(
        &EngineOptions { block_cache_bytes: 256 << 20, memtable_bytes: 32 << 20 },
        &Boundary::default(),
    );
    Arc::new(DB::open_cf_descriptors(&options, folder, families).expect("a database"))
}

fn report(what: &str, times: u64, spent: Duration) {
    let each = spent.as_secs_f64() * 1e6 / times as f64;
    println!("{what:<58} {each:>12.2} us   {:>12.0} /s", 1e6 / each);
}

/// Runs `step` until a second is over, but at least three times.
fn measure(what: &str, mut step: impl FnMut()) {
    let (begin, mut times) = (Instant::now(), 0);
    while times < 3 || begin.elapsed() < Duration::from_secs(1) {
        step();
        times += 1;
    }
    report(what, times, begin.elapsed());
}

impl Bench {
    fn put(&mut self, n: u64) -> TxnEffect {
        self.revision += 1;
        let (supersedes, version) = self.live[n as usize];
        self.live[n as usize] = (self.revision, version + 1);
        let mut value = vec![0; 256];
        value.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.random.below(u64::MAX).to_le_bytes()));
        let change = Change {
            key: user_key(name(n).as_bytes()),
            supersedes,
            create_revision: if supersedes == 0 { self.revision } else { 2 + n as i64 },
            version: version + 1,
            value: value.into(),
            ..Default::default()
        };
        TxnEffect { revision: self.revision, changes: vec![change], subs: Vec::new() }
    }

    fn any(&mut self) -> u64 {
        self.random.below(self.keys)
    }

    fn apply_random(&mut self, txns: u64) {
        let txns: Vec<TxnEffect> = (0..txns)
            .map(|_| {
                let n = self.any();
                self.put(n)
            })
            .collect();
        self.data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
    }

    fn page(&mut self, revision: i64) {
        let n = self.any();
        let request = RangeRequest {
            key: name(n).into(),
            range_end: Bytes::from_static(b"/registry/pods0"),
            limit: PAGE,
            ..Default::default()
        };
        let range = KeyRange::user(&request.key, &request.range_end);
        let answer = self.data.read_range(&request, &range, revision, &[]).expect("readable");
        assert_eq!(answer.count as u64, self.keys - n);
    }

    fn count(&mut self, revision: i64) {
        let n = self.any();
        let range = KeyRange::user(name(n).as_bytes(), b"/registry/pods0");
        let count = self.data.snapshot().expect("readable").count_at(&range, revision);
        assert_eq!(count, Ok(self.keys - n));
    }

    fn load(&mut self) {
        let begin = Instant::now();
        let mut n = 0;
        while n < self.keys {
            let end = (n + BATCH as u64).min(self.keys);
            let txns: Vec<TxnEffect> = (n..end).map(|n| self.put(n)).collect();
            self.data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
            n = end;
        }
        report("apply: create in key order, 1,000 a batch", self.keys, begin.elapsed());
    }

    fn now(&mut self) {
        let newest = self.revision;
        measure("get latest, random key", || {
            let key = user_key(name(self.any()).as_bytes());
            assert!(self.data.get_at(&key, newest).expect("readable").is_some());
        });
        measure("get latest, absent key", || {
            let key = user_key(format!("{}-absent", name(self.any())).as_bytes());
            assert!(self.data.get_at(&key, newest).expect("readable").is_none());
        });
        measure("evaluate a put on a random key", || {
            let put = PutRequest { key: name(self.any()).into(), value: "v".into(), ..Default::default() };
            let overlay = Overlay::default();
            let view = View { overlay: &overlay, base: &self.data };
            evaluate(&Request::Put(put), &view, &Context::default()).expect("readable");
        });
        measure("snapshot, made and dropped", || drop(self.data.snapshot().expect("readable")));
        measure("page of 500 with count, random start", || self.page(newest));
        measure("count from a random key to the end", || self.count(newest));
        let begin = Instant::now();
        let whole = KeyRange::user(b"\0", b"\0");
        let mut keys = 0;
        let scanned = self.data.scan(&whole, &mut |_, _| {
            keys += 1;
            ControlFlow::Continue(())
        });
        assert_eq!((scanned, keys), (Ok(()), self.keys));
        report("scan of everything, a key", self.keys, begin.elapsed());
    }

    fn then(&mut self) {
        for since in [100_u64, 3_000, 100_000] {
            let at = self.revision;
            for _ in 0..since / 100 {
                self.apply_random(100);
            }
            measure(&format!("page of 500 with count, {since} changes ago"), || self.page(at));
            measure(&format!("count, {since} changes ago"), || self.count(at));
            measure(&format!("get, random key, {since} changes ago"), || {
                let key = user_key(name(self.any()).as_bytes());
                assert!(self.data.get_at(&key, at).expect("readable").is_some());
            });
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let keys: u64 = arguments.next().map_or(1_000_000, |keys| keys.parse().expect("a number of keys"));
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder = arguments.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let db = open(&folder);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let mut bench = Bench { data, keys, revision: 1, live: vec![(0, 0); keys as usize], random: Random(0x5eed) };
    println!("{keys} keys, {}", if cfg!(debug_assertions) { "not optimised" } else { "optimised" });
    bench.load();
    let begin = Instant::now();
    bench.data.build_counts().expect("counted");
    report("building the counts", 1, begin.elapsed());
    bench.now();
    measure("apply: overwrite a random key, 1 a batch", || bench.apply_random(1));
    measure("apply: overwrite random keys, 100 a batch (a batch)", || bench.apply_random(100));
    bench.then();
    let (bytes, counted) = bench.data.approximate_size();
    println!("{:<58} {:>9} MB, {counted} keys", "approximate size", bytes >> 20);
    drop(bench);
    drop(db);
    let begin = Instant::now();
    let db = open(&folder);
    let data = RegionData::open(db, &region(), Arc::default());
    report("opening again", 1, begin.elapsed());
    let begin = Instant::now();
    data.build_counts().expect("counted");
    report("building the counts after that", 1, begin.elapsed());
}
