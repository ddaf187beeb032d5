//! Hashes: the same for the same history, whatever has been dropped where; another one for any damage.

use std::cell::Cell;

use braid_store_core::hash::RangeHash;
use braid_store_core::record::{Head, put_varint};

use super::*;

const KEYS: u64 = 30;

struct Replica {
    db: Arc<DB>,
    boundary: Arc<Boundary>,
    data: RegionData,
    /// Removed when the replica goes, after the database.
    _dir: TempDir,
}

impl Replica {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let boundary = Arc::new(Boundary::default());
        let db = open_with(&dir, &boundary);
        boundary.open(&db).expect("readable");
        let data = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
        Self { db, boundary, data, _dir: dir }
    }

    fn drop_history(&self) {
        let history = self.db.cf_handle(HISTORY).expect("a family of the engine");
        self.db.flush_cf(history).expect("flushed");
        self.db.compact_range_cf(history, None::<&[u8]>, None::<&[u8]>);
    }

    fn history_rows(&self) -> usize {
        self.db.iterator_cf(self.db.cf_handle(HISTORY).expect("a family"), rocksdb::IteratorMode::Start).count()
    }

    fn hash(&self, range: &KeyRange, boundary: i64, revision: i64) -> Result<RangeHash, Unhashed> {
        self.data.snapshot().expect("readable").hash(range, boundary, revision, &|| true)
    }
}

fn user_keys() -> KeyRange {
    KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") }
}

/// Asks of every version at every revision whether a read shows it.
fn naive(history: &History, range: &KeyRange, boundary: i64, revision: i64) -> RangeHash {
    let mut hash = RangeHash::default();
    for (key, versions) in history.versions.iter().filter(|(key, _)| range.contains(key)) {
        let before = hash.versions;
        for (i, (made, record)) in versions.iter().enumerate().rev() {
            let Some(record) = record else { continue };
            let shown = (boundary.max(1)..=revision).any(|at| history.at(key, at) == Some(record));
            if shown {
                let head = Head {
                    create_revision: record.create_revision,
                    mod_revision: *made,
                    version: record.version,
                    lease: record.lease,
                };
                let end = versions.get(i + 1).map_or(0, |(end, _)| *end);
                hash.add(key, &head, &record.value, if end > revision { 0 } else { end });
            }
        }
        hash.keys += u64::from(hash.versions > before);
    }
    hash
}

#[test]
fn replicas_agree_whatever_each_has_dropped() {
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut history = History { revision: 1, ..Default::default() };
        let (keeps, drops) = (Replica::new(), Replica::new());
        let mut dropped = false;
        for step in 0..40 {
            for _ in 0..=random.below(6) {
                let txn = history.txn(&mut random, KEYS);
                for replica in [&keeps, &drops] {
                    replica.data.apply(std::slice::from_ref(&txn), &[], &[], WriteBatch::default()).expect("applied");
                }
            }
            let newest = history.revision;
            let compacted = drops.boundary.get();
            if step % 5 == 4 {
                drops.boundary.raise(compacted.max(1 + random.below(newest as u64) as i64)).expect("raised");
                drops.drop_history();
                dropped |= drops.history_rows() < keeps.history_rows();
            }
            let compacted = drops.boundary.get();
            for _ in 0..6 {
                let revision = newest - random.below((newest - compacted.max(1) + 1) as u64) as i64;
                let boundary = compacted + random.below((revision - compacted + 1) as u64) as i64;
                let range = if random.below(3) == 0 { user_keys() } else { range(&mut random, KEYS) };
                let expected = naive(&history, &range, boundary, revision);
                for replica in [&keeps, &drops] {
                    let found = replica.hash(&range, boundary, revision);
                    assert_eq!(found, Ok(expected), "seed {seed} {range:?} @{boundary} to @{revision}");
                }
            }
        }
        assert!(dropped, "seed {seed}: nothing was ever dropped");
    }
}

#[test]
fn parts_make_the_whole() {
    let mut random = Random(77);
    let mut history = History { revision: 1, ..Default::default() };
    let replica = Replica::new();
    for _ in 0..80 {
        replica.data.apply(&[history.txn(&mut random, KEYS)], &[], &[], WriteBatch::default()).expect("applied");
    }
    let newest = history.revision;
    let whole = replica.hash(&user_keys(), 5, newest).expect("hashed");
    assert!(whole.keys > 20 && whole.versions > whole.keys);
    for _ in 0..30 {
        let cut = user_key(format!("k{:03}", random.below(KEYS)).as_bytes());
        let left = KeyRange { end: cut.clone(), ..user_keys() };
        let right = KeyRange { start: cut, ..user_keys() };
        let part = |range| replica.hash(&range, 5, newest).expect("hashed");
        assert_eq!(part(left).then(part(right)), whole);
    }
}

#[test]
fn damage_anywhere_makes_another_hash() {
    let mut random = Random(5);
    let mut history = History { revision: 1, ..Default::default() };
    let replica = Replica::new();
    for _ in 0..60 {
        replica.data.apply(&[history.txn(&mut random, KEYS)], &[], &[], WriteBatch::default()).expect("applied");
    }
    let newest = history.revision;
    let hash = || replica.hash(&user_keys(), 0, newest).expect("hashed");
    let sound = hash();
    assert_eq!(sound, naive(&history, &user_keys(), 0, newest));
    for family in [LATEST, HISTORY] {
        let handle = replica.db.cf_handle(family).expect("a family of the engine");
        let rows: Vec<_> = replica.db.iterator_cf(handle, rocksdb::IteratorMode::Start).flatten().collect();
        assert!(rows.len() > 5);
        for (key, value) in rows.iter().step_by(3) {
            // A value of the same length, a lease that should not be there, no version at all.
            let mut other_value = value.to_vec();
            *other_value.last_mut().expect("not empty") ^= 1;
            let mut front = Vec::new();
            let mut rest = &value[..];
            let numbers = if family == LATEST { 1 } else { 2 };
            for _ in 0..numbers {
                put_varint(&mut front, braid_store_core::record::take_varint(&mut rest).expect("a number in front"));
            }
            let record = Record { lease: 9, ..Record::decode(rest).expect("a record") };
            record.encode(&mut front);
            for damaged in [Some(other_value), Some(front), None] {
                match &damaged {
                    Some(damaged) => replica.db.put_cf(handle, key, damaged).expect("written"),
                    None => replica.db.delete_cf(handle, key).expect("deleted"),
                }
                assert_ne!(hash().crc, sound.crc, "{family} {key:02x?} became {damaged:02x?}");
                replica.db.put_cf(handle, key, value).expect("written");
                assert_eq!(hash(), sound);
            }
        }
    }
}

#[test]
fn what_the_store_may_have_dropped_is_not_hashed() {
    let mut random = Random(6);
    let mut history = History { revision: 1, ..Default::default() };
    let replica = Replica::new();
    for _ in 0..20 {
        replica.data.apply(&[history.txn(&mut random, KEYS)], &[], &[], WriteBatch::default()).expect("applied");
    }
    replica.boundary.raise(10).expect("raised");
    let newest = history.revision;
    assert_eq!(replica.hash(&user_keys(), 9, newest), Err(Unhashed::Compacted));
    assert_eq!(replica.hash(&user_keys(), 10, 9), Err(Unhashed::Compacted));
    assert!(replica.hash(&user_keys(), 10, 10).is_ok());
    assert!(replica.hash(&user_keys(), 11, newest).is_ok(), "the caller may know of a newer one");
}

#[test]
fn a_scan_that_nobody_waits_for_ends() {
    let replica = Replica::new();
    for revision in 2..3_000 {
        let key = user_key(format!("{revision}").as_bytes());
        let change = pb::Change { key, create_revision: revision, version: 1, ..Default::default() };
        let txn = TxnEffect { revision, changes: vec![change], subs: Vec::new() };
        replica.data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    let looks = Cell::new(0);
    let go_on = || {
        looks.set(looks.get() + 1);
        looks.get() < 2
    };
    let snapshot = replica.data.snapshot().expect("readable");
    assert_eq!(snapshot.hash(&user_keys(), 0, 2_999, &go_on), Err(Unhashed::GivenUp));
    assert_eq!(looks.get(), 2);
}
