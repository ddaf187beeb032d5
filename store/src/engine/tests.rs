//! Every way to read, held against a naive history at every revision, over real RocksDB.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{self, Region, RegionEpoch, TxnEffect};
use braid_store_core::record::Record;
use braid_store_core::view::BaseView;
use bytes::Bytes;
use rocksdb::{DB, Options, WriteBatch};
use tempfile::TempDir;

use super::*;

mod attached;
mod compacted;
mod concurrent;
mod damage;
mod deep;
mod events;
mod gone;
mod hash;
mod merge;
mod size;
mod split;
mod transfer;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A database whose history is never compacted.
pub fn open(dir: &TempDir) -> Arc<DB> {
    open_with(dir, &Boundary::default())
}

fn open_with(dir: &TempDir, boundary: &Boundary) -> Arc<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let families = column_families(&EngineOptions { block_cache_bytes: 4 << 20, memtable_bytes: 1 << 20 }, boundary);
    Arc::new(DB::open_cf_descriptors(&options, dir.path(), families).expect("a database"))
}

fn region() -> Region {
    Region { id: 7, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), ..Default::default() }
}

/// All versions of all keys, and the changes that made them.
#[derive(Default)]
struct History {
    versions: BTreeMap<Bytes, Vec<(i64, Option<Record>)>>,
    revision: i64,
}

impl History {
    fn at(&self, key: &[u8], revision: i64) -> Option<&Record> {
        self.versions.get(key)?.iter().rev().find(|(at, _)| *at <= revision)?.1.as_ref()
    }

    fn live(&self, range: &KeyRange, revision: i64) -> Vec<(Bytes, Record)> {
        let keys = self.versions.keys().filter(|key| range.contains(key));
        keys.filter_map(|key| Some((key.clone(), self.at(key, revision)?.clone()))).collect()
    }

    /// A transaction of up to three changes of different keys.
    fn txn(&mut self, random: &mut Random, keys: u64) -> TxnEffect {
        self.revision += 1 + random.below(2) as i64;
        let mut changes: Vec<pb::Change> = Vec::new();
        for _ in 0..=random.below(3) {
            let key = user_key(format!("k{:03}", random.below(keys)).as_bytes());
            if changes.iter().any(|change| change.key == key) {
                continue;
            }
            let before = self.at(&key, i64::MAX).cloned();
            let supersedes = before.as_ref().map_or(0, |record| record.mod_revision);
            if random.below(3) == 0 {
                if before.is_some() {
                    changes.push(pb::Change { key, supersedes, delete: true, ..Default::default() });
                }
                continue;
            }
            changes.push(pb::Change {
                key,
                supersedes,
                delete: false,
                create_revision: before.as_ref().map_or(self.revision, |record| record.create_revision),
                version: before.as_ref().map_or(1, |record| record.version + 1),
                lease: 0,
                value: Bytes::from(format!("v{}", random.below(1_000))),
                superseded: Bytes::new(),
            });
        }
        for change in &changes {
            let record = (!change.delete).then(|| Record {
                create_revision: change.create_revision,
                mod_revision: self.revision,
                version: change.version,
                lease: 0,
                value: change.value.clone(),
            });
            self.versions.entry(change.key.clone()).or_default().push((self.revision, record));
        }
        TxnEffect { revision: self.revision, changes, subs: Vec::new() }
    }
}

fn range(random: &mut Random, keys: u64) -> KeyRange {
    let (a, b) = (random.below(keys), random.below(keys + 20));
    let key = |n: u64| user_key(format!("k{n:03}").as_bytes());
    KeyRange { start: key(a.min(b)), end: if random.below(4) == 0 { Bytes::from_static(b"!") } else { key(a.max(b)) } }
}

fn scanned(view: &dyn BaseView, range: &KeyRange, revision: i64) -> Vec<(Bytes, Record)> {
    let mut found = Vec::new();
    view.scan_at(range, revision, &mut |key, record| {
        found.push((key.clone(), record.clone()));
        ControlFlow::Continue(())
    })
    .expect("readable");
    found
}

/// Everything that can be asked, at `revision`, in a few ranges.
fn check(data: &RegionData, history: &History, revision: i64, random: &mut Random, keys: u64) {
    let snapshot = data.snapshot().expect("readable");
    for _ in 0..3 {
        let range = range(random, keys);
        let expected = history.live(&range, revision);
        assert_eq!(scanned(&snapshot, &range, revision), expected, "{range:?} @{revision}");
        assert_eq!(snapshot.count_at(&range, revision), Ok(expected.len() as u64), "{range:?} @{revision}");
        let request = RangeRequest {
            key: range.start.slice(1..),
            range_end: Bytes::from_static(b"any"),
            limit: 1 + random.below(6) as i64,
            ..Default::default()
        };
        let page = data.read_range(&request, &range, revision, &[]).expect("readable");
        assert_eq!(page.count, expected.len() as i64, "{range:?} @{revision}");
        assert_eq!(page.more, expected.len() as i64 > request.limit);
        let listed: Vec<_> = page.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision, kv.value.clone())).collect();
        let wanted = expected.iter().take(request.limit as usize);
        let wanted: Vec<_> = wanted.map(|(k, r)| (k.slice(1..), r.mod_revision, r.value.clone())).collect();
        assert_eq!(listed, wanted, "{range:?} @{revision}");
    }
    let key = user_key(format!("k{:03}", random.below(keys)).as_bytes());
    assert_eq!(
        data.get_at(&key, revision).expect("readable").as_ref(),
        history.at(&key, revision),
        "{key:?} @{revision}"
    );
}

#[test]
fn every_read_at_every_revision_shows_what_was() {
    for seed in 1..=4_u64 {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let db = open(&dir);
        let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut history = History { revision: 1, ..Default::default() };
        let keys = 40;
        for step in 0..150 {
            let txns: Vec<TxnEffect> = (0..=random.below(3)).map(|_| history.txn(&mut random, keys)).collect();
            data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
            if step == 60 {
                // What only memory knew is read from disk from now on.
                data.trim();
                for family in [LATEST, HISTORY, EVENTS] {
                    db.flush_cf(db.cf_handle(family).expect("a family of the engine")).expect("flushed");
                }
            }
            let newest = history.revision;
            check(&data, &history, newest, &mut random, keys);
            let older = 1 + random.below(newest as u64) as i64;
            check(&data, &history, older, &mut random, keys);
        }
        assert_eq!(data.max_applied(), history.revision);
        let reopened = RegionData::open(Arc::clone(&db), &region(), Arc::default());
        assert_eq!(reopened.max_applied(), history.revision);
        // Far from the newest revision reads go through all that has happened since; the seeds share the revisions.
        for revision in (seed as i64..=history.revision).step_by(4) {
            check(&reopened, &history, revision, &mut random, keys);
        }
    }
}

#[test]
fn several_transactions_of_one_batch_may_change_the_same_key() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let key = user_key(b"k");
    let put = |revision: i64, supersedes, version| TxnEffect {
        subs: Vec::new(),
        revision,
        changes: vec![pb::Change {
            key: key.clone(),
            supersedes,
            create_revision: 2,
            version,
            value: Bytes::from(revision.to_string()),
            ..Default::default()
        }],
    };
    let gone = TxnEffect {
        subs: Vec::new(),
        revision: 4,
        changes: vec![pb::Change { key: key.clone(), supersedes: 3, delete: true, ..Default::default() }],
    };
    data.apply(&[put(2, 0, 1), put(3, 2, 2), gone], &[], &[], WriteBatch::default()).expect("applied");
    let value = |revision| data.get_at(&key, revision).expect("readable").map(|record| record.value);
    assert_eq!([value(1), value(2), value(3), value(4)], [None, Some("2".into()), Some("3".into()), None]);
}

#[test]
fn what_is_superseded_is_handed_to_whoever_wants_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let txn = |revision: i64, supersedes: [i64; 2]| {
        let change = |(name, supersedes): (&str, i64)| pb::Change {
            key: user_key(name.as_bytes()),
            supersedes,
            create_revision: 2,
            version: revision - 1,
            value: Bytes::from(format!("{name}{revision}")),
            ..Default::default()
        };
        let changes = ["k", "l"].into_iter().zip(supersedes).map(change).collect();
        TxnEffect { subs: vec![1, 4], revision, changes }
    };
    data.apply(&[txn(2, [0, 0])], &[], &[], WriteBatch::default()).expect("applied");
    // From disk, and from the same batch; of one key only.
    let txns = [txn(3, [2, 2]), txn(4, [3, 3])];
    let wanted = |key: &[u8]| key == user_key(b"l");
    let superseded = data.apply_keeping(&txns, &[], &[], WriteBatch::default(), &wanted).expect("applied");
    let value = |revision, sub| superseded.get(revision, sub).map(|record| (record.mod_revision, record.value.clone()));
    assert_eq!([value(3, 1), value(4, 1)], [None, None], "nobody wants it");
    assert_eq!([value(3, 4), value(4, 4)], [Some((2, "l2".into())), Some((3, "l3".into()))]);
}

#[test]
fn a_row_that_the_leader_read_goes_along_and_counts_as_what_is_superseded() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let key = user_key(b"k");
    let put = |revision: i64, supersedes, superseded: &Bytes| TxnEffect {
        subs: vec![7],
        revision,
        changes: vec![pb::Change {
            key: key.clone(),
            supersedes,
            create_revision: 2,
            version: revision - 1,
            value: Bytes::from(revision.to_string()),
            superseded: superseded.clone(),
            ..Default::default()
        }],
    };
    let apply = |txn| data.apply_keeping(&[txn], &[], &[], WriteBatch::default(), &|_| true);
    apply(put(2, 0, &Bytes::new())).expect("applied");
    let find = || data.find(&key).expect("readable").expect("live");
    assert_eq!(find().row, "", "it is in memory");
    data.newest.forget();
    let row = find().row;
    assert!(!row.is_empty());
    let contradiction = apply(put(9, 8, &row)).expect_err("the row is of another revision");
    assert!(contradiction.0.contains("a record of @2"), "{contradiction}");
    let superseded = apply(put(3, 2, &row)).expect("applied");
    assert_eq!(superseded.get(3, 7).map(|record| record.value.clone()), Some("2".into()));
    let value = |revision| data.get_at(&key, revision).expect("readable").map(|record| record.value);
    assert_eq!([value(1), value(2), value(3)], [None, Some("2".into()), Some("3".into())]);
}

#[test]
fn a_change_that_contradicts_the_data_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let change =
        pb::Change { key: user_key(b"k"), supersedes: 9, create_revision: 2, version: 2, ..Default::default() };
    let txn = TxnEffect { revision: 10, changes: vec![change], subs: Vec::new() };
    assert!(data.apply(&[txn], &[], &[], WriteBatch::default()).is_err());
    assert_eq!(data.get_latest(&user_key(b"k")), Ok(None));
}

#[test]
fn counts_stay_right_while_a_region_is_filled_and_split() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let key = |n: u64| user_key(format!("k{n:06}").as_bytes());
    let whole = KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") };
    data.build_counts().expect("counted");
    for batch in 0..30_u64 {
        let txns = (0..200).map(|i| {
            let n = (batch * 200 + i) * 7_919 % 6_000;
            let revision = 2 + (batch * 200 + i) as i64;
            let change = pb::Change { key: key(n), create_revision: revision, version: 1, ..Default::default() };
            TxnEffect { revision, changes: vec![change], subs: Vec::new() }
        });
        data.apply(&txns.collect::<Vec<_>>(), &[], &[], WriteBatch::default()).expect("applied");
        let snapshot = data.snapshot().expect("readable");
        assert_eq!(snapshot.count(&whole, &[]), Ok((batch + 1) * 200));
    }
    let part = KeyRange { start: key(1_234), end: key(4_321) };
    assert_eq!(data.snapshot().expect("readable").count(&part, &[]), Ok(4_321 - 1_234));
    assert_eq!(data.snapshot().expect("readable").count(&part, &[&key(2_000)]), Ok(4_321 - 1_234 - 1));

    let left = Region { end: key(2_500), ..region() };
    data.on_region(&left);
    let snapshot = data.snapshot().expect("readable");
    assert_eq!(snapshot.count(&KeyRange { start: whole.start.clone(), end: key(2_500) }, &[]), Ok(2_500));
    let right = RegionData::open(db, &Region { id: 8, start: key(2_500), ..region() }, Arc::default());
    assert_eq!(
        right.snapshot().expect("readable").count(&KeyRange { start: key(2_500), end: whole.end }, &[]),
        Ok(3_500)
    );
}

#[test]
fn changes_since_a_revision_come_in_order_from_memory_and_from_disk() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let mut random = Random(99);
    let mut history = History { revision: 1, ..Default::default() };
    let mut made = Vec::new();
    for _ in 0..80 {
        let txn = history.txn(&mut random, 30);
        let subs = txn.changes.iter().enumerate();
        made.extend(subs.map(|(sub, change)| (txn.revision, sub as u32, change.key.clone())));
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    let reopened = RegionData::open(db, &region(), Arc::default());
    for data in [&data, &reopened] {
        for after in [0, 1, 20, history.revision] {
            let mut found = Vec::new();
            let complete = data.snapshot().expect("readable").changes_after(after, &mut |change| {
                found.push((change.revision, change.sub, Bytes::copy_from_slice(change.key)));
                ControlFlow::Continue(())
            });
            assert_eq!(complete, Ok(Completeness::Complete));
            let wanted: Vec<_> = made.iter().filter(|(revision, ..)| *revision > after).cloned().collect();
            assert_eq!(found, wanted, "after {after}");
        }
    }
}

#[test]
fn what_was_written_last_is_found_without_the_database_and_is_what_it_says() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let key = |n: u32| user_key(format!("k{n}").as_bytes());
    let change = |n, supersedes, version, delete| pb::Change {
        key: key(n),
        supersedes,
        create_revision: if delete { 0 } else { 2 },
        version,
        delete,
        value: format!("{n} v{version}").into(),
        ..Default::default()
    };
    let apply = |revision, changes| {
        let txn = TxnEffect { revision, changes, subs: Vec::new() };
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    };
    apply(2, (0..50).map(|n| change(n, 0, 1, false)).collect());
    apply(3, (0..25).map(|n| change(n, 2, 2, false)).collect());
    apply(4, (20..30).map(|n| change(n, if n < 25 { 3 } else { 2 }, 0, true)).collect());
    for n in 0..50 {
        let stored = scan::Reader::now(&data.db).live(&key(n)).expect("readable");
        assert_eq!(data.newest.get(&key(n)).as_deref(), stored.as_deref(), "k{n}");
        assert_eq!(stored.is_some(), !(20..30).contains(&n), "k{n}");
    }
    // Keys that come back with a wider range may have been changed elsewhere.
    let [narrow, wide] = [key(10), key(9)].map(|end| Region { end: end.to_vec().into(), ..region() });
    data.on_region(&narrow);
    assert!(data.newest.get(&key(0)).is_some(), "what is left is as it was");
    data.on_region(&wide);
    assert_eq!(data.newest.get(&key(0)), None);
    assert!(data.get_latest(&key(0)).expect("readable").is_some());
}
