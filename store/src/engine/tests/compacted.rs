//! Compaction: what lies at or above the boundary is as it was, what lies below is refused and really goes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Scene {
    dir: TempDir,
    db: Arc<DB>,
    boundary: Arc<Boundary>,
    data: RegionData,
    history: History,
    /// (revision, sub, key) of every change, in order.
    made: Vec<(i64, u32, Bytes)>,
    random: Random,
}

const KEYS: u64 = 30;
const FAMILIES: [&str; 2] = [HISTORY, EVENTS];

impl Scene {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let boundary = Arc::new(Boundary::default());
        let db = open_with(&dir, &boundary);
        boundary.open(&db).expect("readable");
        let data = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let history = History { revision: 1, ..Default::default() };
        Self { dir, db, boundary, data, history, made: Vec::new(), random }
    }

    fn apply(&mut self, transactions: u64) {
        for _ in 0..transactions {
            let txn = self.history.txn(&mut self.random, KEYS);
            let changes = (0_u32..).zip(&txn.changes);
            self.made.extend(changes.map(|(sub, change)| (txn.revision, sub, change.key.clone())));
            self.data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
    }

    fn flush(&self) {
        for family in FAMILIES {
            self.db.flush_cf(self.db.cf_handle(family).expect("a family of the engine")).expect("flushed");
        }
    }

    fn compact_all(&self) {
        for family in FAMILIES {
            let handle = self.db.cf_handle(family).expect("a family of the engine");
            self.db.compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>);
        }
    }

    /// Compacts all of history, or some keys of it.
    fn compact(&mut self) {
        for family in FAMILIES {
            let handle = self.db.cf_handle(family).expect("a family of the engine");
            if self.random.below(2) == 0 {
                self.db.compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>);
            } else {
                let n = self.random.below(KEYS);
                let (from, to) = (format!(" k{n:03}"), format!(" k{:03}", n + 10));
                self.db.compact_range_cf(handle, Some(from), Some(to));
            }
        }
    }

    fn reopen(self) -> Self {
        let Self { dir, db, boundary, data, history, made, random } = self;
        let (was, applied) = ((boundary.get(), boundary.dropped()), data.max_applied());
        drop((db, boundary, data));
        let boundary = Arc::new(Boundary::default());
        let db = open_with(&dir, &boundary);
        boundary.open(&db).expect("readable");
        assert_eq!((boundary.get(), boundary.dropped()), was, "the boundary is durable");
        let data = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
        assert_eq!(data.max_applied(), applied, "known without events");
        Self { dir, db, boundary, data, history, made, random }
    }

    fn check_changes_after(&self, after: i64) {
        let mut found = Vec::new();
        let complete = self.data.snapshot().expect("readable").changes_after(after, &mut |change| {
            found.push((change.revision, change.sub, Bytes::copy_from_slice(change.key)));
            ControlFlow::Continue(())
        });
        let boundary = self.boundary.get();
        if after < boundary - 1 {
            assert_eq!(complete, Ok(Completeness::CompleteAbove(boundary - 1)), "after {after}");
            return;
        }
        assert_eq!(complete, Ok(Completeness::Complete), "after {after}");
        let wanted: Vec<_> = self.made.iter().filter(|(revision, ..)| *revision > after).cloned().collect();
        assert_eq!(found, wanted, "after {after}");
    }

    fn check(&mut self) {
        let (boundary, newest) = (self.boundary.get(), self.history.revision);
        let between = boundary + self.random.below((newest - boundary) as u64 + 1) as i64;
        for revision in [boundary.max(1), between.max(1), newest] {
            check(&self.data, &self.history, revision, &mut self.random, KEYS);
        }
        for after in [0, boundary - 2, boundary - 1, boundary, between, newest] {
            self.check_changes_after(after.max(0));
        }
        if boundary > 1 && boundary <= newest {
            self.check_below(boundary - 1);
        }
    }

    /// A read that needs history below the boundary is refused, and one that does not is right.
    fn check_below(&mut self, revision: i64) {
        let range = range(&mut self.random, KEYS);
        let request =
            RangeRequest { key: range.start.slice(1..), range_end: Bytes::from_static(b"any"), ..Default::default() };
        match self.data.read_range(&request, &range, revision, &[]) {
            Ok(_) => assert!(self.data.max_applied() <= revision),
            Err(why) => assert_eq!(why, Unread::Compacted),
        }
        let key = user_key(format!("k{:03}", self.random.below(KEYS)).as_bytes());
        match self.data.get_at(&key, revision) {
            Ok(found) => assert_eq!(found.as_ref(), self.history.at(&key, revision), "{key:?} @{revision}"),
            Err(why) => assert_eq!(why, Unread::Compacted),
        }
    }

    fn rows(&self, family: &'static str) -> Vec<StoredKey> {
        let handle = self.db.cf_handle(family).expect("a family of the engine");
        let rows = self.db.iterator_cf(handle, rocksdb::IteratorMode::Start);
        rows.map(|row| StoredKey::decode(family, &row.expect("readable").0).expect("a key of the engine")).collect()
    }
}

#[test]
fn every_read_from_the_boundary_on_shows_what_was_whatever_is_dropped() {
    for seed in 1..=8 {
        let mut scene = Scene::new(seed);
        for _ in 0..60 {
            let transactions = 1 + scene.random.below(6);
            scene.apply(transactions);
            match scene.random.below(8) {
                0 => scene.flush(),
                1 => scene.compact(),
                2 => scene.data.trim(),
                3 => scene = scene.reopen(),
                4 | 5 => {
                    let (low, newest) = (scene.boundary.get(), scene.history.revision);
                    let to = low + 1 + scene.random.below((newest - low) as u64) as i64;
                    assert!(scene.boundary.raise(to).expect("written"));
                    assert!(!scene.boundary.raise(to - 1).expect("nothing to write"), "it never falls");
                    assert_eq!(scene.boundary.get(), to);
                }
                _ => {}
            }
            scene.check();
        }
        assert!(scene.boundary.get() > 1, "seed {seed} compacted something");
    }
}

#[test]
fn a_full_pass_leaves_exactly_what_the_boundary_needs() {
    let mut scene = Scene::new(77);
    scene.apply(200);
    scene.flush();
    let boundary = scene.history.revision / 2;
    assert!(scene.boundary.raise(boundary).expect("written"));
    scene.compact_all();
    scene.boundary.note_dropped(boundary).expect("written");
    let kept: Vec<_> = scene.made.iter().filter(|(revision, ..)| *revision >= boundary).collect();
    let events = scene.rows(EVENTS).into_iter().filter(|row| matches!(row, StoredKey::Event { .. })).count();
    assert_eq!(events, kept.len());
    assert!(scene.rows(EVENTS).contains(&StoredKey::Boundary));
    // Every version that was superseded at or above the boundary, and nothing else.
    let mut superseded = 0;
    for versions in scene.history.versions.values() {
        let pairs = versions.iter().zip(versions.iter().skip(1));
        superseded += pairs.filter(|((_, old), (at, _))| old.is_some() && *at >= boundary).count();
    }
    assert_eq!(scene.rows(HISTORY).len(), superseded);
    scene = scene.reopen();
    scene.check();
}

/// A deleted key whose deletion is far below the boundary, with its older versions in other files than the newer ones.
#[test]
fn a_deleted_key_never_comes_back() {
    let mut scene = Scene::new(5);
    let key = user_key(b"k");
    let put = |revision: i64, supersedes, version, create_revision| TxnEffect {
        revision,
        changes: vec![pb::Change {
            key: key.clone(),
            supersedes,
            create_revision,
            version,
            value: revision.to_string().into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let delete = |revision, supersedes| TxnEffect {
        revision,
        changes: vec![pb::Change { key: key.clone(), supersedes, delete: true, ..Default::default() }],
        ..Default::default()
    };
    let apply = |scene: &Scene, txn| scene.data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    apply(&scene, put(2, 0, 1, 2));
    apply(&scene, put(3, 2, 2, 2));
    scene.flush();
    apply(&scene, delete(5, 3));
    scene.flush();
    apply(&scene, put(8, 0, 1, 8));
    apply(&scene, delete(9, 8));
    scene.flush();
    let value = |scene: &Scene, at| scene.data.get_at(&key, at).map(|found| found.map(|record| record.value));
    for boundary in [4, 6, 8, 9, 10] {
        assert!(scene.boundary.raise(boundary).expect("written"));
        for round in 0..2 {
            for at in boundary..12 {
                let expected = match at {
                    ..5 => Some("3".into()),
                    8 => Some("8".into()),
                    _ => None,
                };
                assert_eq!(value(&scene, at), Ok(expected), "@{at}, compacted at {boundary}, round {round}");
            }
            scene.compact();
        }
    }
    assert_eq!(value(&scene, 8), Err(Unread::Compacted));
    scene.apply(3);
    assert_eq!(value(&scene, i64::MAX), Ok(None));
}

/// Reads that run while the boundary moves and files are rewritten either are right or say that they were overtaken.
#[test]
fn a_read_that_compaction_overtakes_says_so() {
    let mut scene = Scene::new(9);
    scene.apply(400);
    scene.flush();
    scene.data.build_counts().expect("counted");
    let newest = scene.history.revision;
    let done = AtomicBool::new(false);
    let (mut right, mut overtaken) = (0, 0);
    std::thread::scope(|scope| {
        let (db, boundary, done) = (&scene.db, &scene.boundary, &done);
        scope.spawn(move || {
            for to in (2..=newest).step_by(7) {
                boundary.raise(to).expect("written");
                for family in FAMILIES {
                    let handle = db.cf_handle(family).expect("a family of the engine");
                    db.compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>);
                }
            }
            done.store(true, Ordering::Release);
        });
        let whole = KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") };
        let request = RangeRequest { range_end: Bytes::from_static(b"any"), ..Default::default() };
        while !done.load(Ordering::Acquire) {
            let revision = scene.boundary.get().clamp(1, newest);
            match scene.data.read_range(&request, &whole, revision, &[]) {
                Ok(answer) => {
                    let expected = scene.history.live(&whole, revision);
                    let found: Vec<_> = answer.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
                    let wanted: Vec<_> = expected.iter().map(|(k, r)| (k.slice(1..), r.mod_revision)).collect();
                    assert_eq!(found, wanted, "@{revision}");
                    right += 1;
                }
                Err(why) => {
                    assert_eq!(why, Unread::Compacted);
                    overtaken += 1;
                }
            }
        }
    });
    assert!(right > 0, "{right} right, {overtaken} overtaken");
}

#[test]
fn a_child_opened_above_what_was_dropped_does_not_claim_to_know_it() {
    let mut scene = Scene::new(21);
    scene.apply(50);
    let key = user_key(b"m");
    let revision = scene.history.revision;
    let change = pb::Change { key: key.clone(), create_revision: revision + 1, version: 1, ..Default::default() };
    let put = TxnEffect { revision: revision + 1, changes: vec![change], ..Default::default() };
    let change = pb::Change { key: key.clone(), supersedes: revision + 1, delete: true, ..Default::default() };
    let delete = TxnEffect { revision: revision + 2, changes: vec![change], ..Default::default() };
    scene.data.apply(&[put, delete], &[], &[], WriteBatch::default()).expect("applied");
    scene.boundary.raise(revision + 3).expect("written");
    scene.compact_all();
    let child = Region { id: 8, start: user_key(b"l"), ..region() };
    let child = RegionData::open(Arc::clone(&scene.db), &child, Arc::clone(&scene.boundary));
    assert_eq!(child.frontier(), revision + 2, "an idle child can be read at what it claims to have");
    assert_eq!(child.get_at(&key, child.frontier()), Ok(None));
    let after = |after| child.snapshot().expect("readable").changes_after(after, &mut |_| ControlFlow::Continue(()));
    assert_eq!(after(revision), Ok(Completeness::CompleteAbove(revision + 2)));
    assert_eq!(after(revision + 2), Ok(Completeness::Complete));
    assert_eq!(child.get_at(&key, revision + 1), Err(Unread::Compacted));
    assert_eq!(child.get_at(&key, revision + 3), Ok(None));
}

#[test]
fn parts_of_a_transaction_keep_the_places_that_they_name() {
    let mut scene = Scene::new(1);
    let put = |key: &[u8]| pb::Change { key: user_key(key), create_revision: 5, version: 1, ..Default::default() };
    let mut part = TxnEffect { revision: 5, changes: vec![put(b"a"), put(b"b")], subs: vec![3, 8] };
    scene.data.apply(&[part.clone()], &[], &[], WriteBatch::default()).expect("applied");
    scene.made = vec![(5, 3, user_key(b"a")), (5, 8, user_key(b"b"))];
    scene.check_changes_after(4);
    scene.data.trim();
    scene.check_changes_after(4);
    for subs in [vec![1], vec![1, 1], vec![2, 1], vec![1, 2, 3]] {
        part.subs = subs;
        part.revision += 1;
        assert!(scene.data.apply(&[part.clone()], &[], &[], WriteBatch::default()).is_err());
    }
}
