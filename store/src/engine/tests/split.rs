//! Splits: the data stays where it is, and both sides go on as if they had always been.

use super::*;

fn key(n: u64) -> Bytes {
    user_key(format!("k{n:03}").as_bytes())
}

fn at_20() -> (Region, Region) {
    let left = Region { end: key(20), ..region() };
    let right = Region { id: 8, start: key(20), ..region() };
    (left, right)
}

/// A range inside `region`.
fn inside(region: &Region, random: &mut Random) -> KeyRange {
    range(random, 40).intersect(&region.range())
}

fn check_side(data: &RegionData, side: &Region, history: &History, revision: i64, random: &mut Random) {
    let snapshot = data.snapshot().expect("readable");
    for _ in 0..4 {
        let range = inside(side, random);
        let expected = if range.is_empty() { Vec::new() } else { history.live(&range, revision) };
        assert_eq!(scanned(&snapshot, &range, revision), expected, "{range:?} @{revision}");
        assert_eq!(snapshot.count_at(&range, revision), Ok(expected.len() as u64), "{range:?} @{revision}");
    }
}

#[test]
fn both_sides_of_a_split_read_what_was_before_it_and_after() {
    for counted in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let db = open(&dir);
        let parent = RegionData::open(Arc::clone(&db), &region(), Arc::default());
        if counted {
            parent.build_counts().expect("counted");
        }
        let mut random = Random(0x5b117 + u64::from(counted));
        let mut history = History { revision: 1, ..Default::default() };
        for _ in 0..60 {
            let txn = history.txn(&mut random, 40);
            parent.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
        let before = history.revision;
        let (left_region, right_region) = at_20();
        parent.on_region(&left_region);
        let left = parent;
        let mut right = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
        assert!(right.max_applied() >= left.max_applied(), "what the parent applied counts for the child too");
        // The child was opened, and the process died before it did anything: opening it again finds the same.
        let again = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
        assert_eq!(again.max_applied(), right.max_applied());
        if counted {
            right = again;
            right.build_counts().expect("counted");
        }
        for step in 0..80 {
            let mut txn = history.txn(&mut random, 40);
            let (low, high) = std::mem::take(&mut txn.changes).into_iter().partition(|change| change.key < key(20));
            // A region's transaction lies inside it; the other half gets its own number here.
            left.apply(
                &[TxnEffect { revision: txn.revision, changes: low, subs: Vec::new() }],
                &[],
                &[],
                WriteBatch::default(),
            )
            .expect("applied");
            right
                .apply(
                    &[TxnEffect { revision: txn.revision, changes: high, subs: Vec::new() }],
                    &[],
                    &[],
                    WriteBatch::default(),
                )
                .expect("applied");
            if step % 8 == 0 {
                for revision in [1, before - 3, before, before + 1, history.revision - 2, history.revision] {
                    check_side(&left, &left_region, &history, revision, &mut random);
                    check_side(&right, &right_region, &history, revision, &mut random);
                }
            }
        }
        let reopened = RegionData::open(db, &right_region, Arc::default());
        for revision in [1, before - 3, before, before + 1, history.revision] {
            check_side(&reopened, &right_region, &history, revision, &mut random);
        }
    }
}

#[test]
fn a_child_says_which_changes_it_does_not_know() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let parent = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let mut random = Random(3);
    let mut history = History { revision: 1, ..Default::default() };
    while history.live(&at_20().1.range(), i64::MAX).is_empty() {
        let txn = history.txn(&mut random, 40);
        parent.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    let split_at = parent.max_applied();
    let child = RegionData::open(Arc::clone(&db), &at_20().1, Arc::default());
    let put = pb::Change { key: key(39), create_revision: split_at + 5, version: 1, ..Default::default() };
    let mut fresh = put.clone();
    fresh.key = user_key(b"k999");
    child
        .apply(
            &[TxnEffect { revision: split_at + 5, changes: vec![fresh], subs: Vec::new() }],
            &[],
            &[],
            WriteBatch::default(),
        )
        .expect("applied");
    let after = |data: &RegionData, revision| {
        let mut seen = 0;
        let complete = data.snapshot().expect("readable").changes_after(revision, &mut |_| {
            seen += 1;
            ControlFlow::Continue(())
        });
        (complete.expect("readable"), seen)
    };
    for data in [&child, &RegionData::open(db, &at_20().1, Arc::default())] {
        assert_eq!(after(data, split_at - 1), (Completeness::CompleteAbove(split_at), 0));
        assert_eq!(after(data, split_at), (Completeness::Complete, 1));
        assert_eq!(after(data, split_at + 5), (Completeness::Complete, 0));
    }
}

#[test]
fn an_empty_region_knows_everything_there_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let parent = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let put = pb::Change { key: key(1), create_revision: 2, version: 1, ..Default::default() };
    parent
        .apply(&[TxnEffect { revision: 2, changes: vec![put], subs: Vec::new() }], &[], &[], WriteBatch::default())
        .expect("applied");
    let (_, right) = at_20();
    let child = RegionData::open(db, &right, Arc::default());
    assert_eq!(child.max_applied(), 1);
    let snapshot = child.snapshot().expect("readable");
    assert_eq!(snapshot.changes_after(0, &mut |_| ControlFlow::Continue(())), Ok(Completeness::Complete));
}

#[test]
fn the_data_of_a_region_lies_in_its_ranges_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left_region, right_region) = at_20();
    let left = RegionData::open(Arc::clone(&db), &left_region, Arc::default());
    let right = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
    let mut random = Random(11);
    let mut history = History { revision: 1, ..Default::default() };
    for _ in 0..60 {
        let mut txn = history.txn(&mut random, 40);
        let (low, high) = std::mem::take(&mut txn.changes).into_iter().partition(|change| change.key < key(20));
        left.apply(
            &[TxnEffect { revision: txn.revision, changes: low, subs: Vec::new() }],
            &[],
            &[],
            WriteBatch::default(),
        )
        .expect("applied");
        right
            .apply(
                &[TxnEffect { revision: txn.revision, changes: high, subs: Vec::new() }],
                &[],
                &[],
                WriteBatch::default(),
            )
            .expect("applied");
    }
    // What destroying the left peer does.
    for lies in data_ranges(&left_region) {
        let mut batch = WriteBatch::default();
        let family = db.cf_handle(lies.cf).expect("a family of the engine");
        batch.delete_range_cf(family, &lies.start, &lies.end);
        db.write(batch).expect("written");
    }
    let gone = RegionData::open(Arc::clone(&db), &left_region, Arc::default());
    assert_eq!(gone.max_applied(), 1);
    for revision in 1..=history.revision {
        assert_eq!(scanned(&gone.snapshot().expect("readable"), &left_region.range(), revision), []);
        check_side(&right, &right_region, &history, revision, &mut random);
    }
}

/// Raft snapshots and the removal of a peer walk these ranges knowing nothing of the engine: no row may hide behind a
/// prefix filter.
#[test]
fn a_plain_walk_over_the_ranges_of_a_region_meets_every_row() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let name = |n: u64| user_key(format!("registry/configmaps/namespace-0000/name-{n:03}").as_bytes());
    let side = Region { start: name(100), end: name(300), ..region() };
    let data = RegionData::open(Arc::clone(&db), &side, Arc::default());
    let put = |revision: i64, n: u64, supersedes| TxnEffect {
        subs: Vec::new(),
        revision,
        changes: vec![pb::Change { key: name(n), supersedes, create_revision: 2, version: 1, ..Default::default() }],
    };
    let all = 100..300_u64;
    let created: Vec<TxnEffect> = all.clone().map(|n| put(2, n, 0)).collect();
    let updated: Vec<TxnEffect> = all.clone().map(|n| put(3, n, 2)).collect();
    data.apply(&created, &[], &[], WriteBatch::default()).expect("applied");
    data.apply(&updated, &[], &[], WriteBatch::default()).expect("applied");
    let history = db.cf_handle(HISTORY).expect("a family of the engine");
    let walked = || {
        let lies = data_ranges(&side).into_iter().find(|lies| lies.cf == HISTORY).expect("history is data");
        let options = || {
            let mut options = rocksdb::ReadOptions::default();
            options.set_iterate_lower_bound(lies.start.clone());
            options.set_iterate_upper_bound(lies.end.clone());
            options
        };
        let (mut forward, mut rows) = (0, db.raw_iterator_cf_opt(history, options()));
        rows.seek_to_first();
        while rows.valid() {
            forward += 1;
            rows.next();
        }
        let (mut backward, mut rows) = (0, db.raw_iterator_cf_opt(history, options()));
        rows.seek_to_last();
        while rows.valid() {
            backward += 1;
            rows.prev();
        }
        (forward, backward)
    };
    assert_eq!(walked(), (200, 200), "in memory");
    db.flush_cf(history).expect("flushed");
    assert_eq!(walked(), (200, 200), "in a file");
    let again: Vec<TxnEffect> = all.clone().map(|n| put(4, n, 3)).collect();
    data.apply(&again, &[], &[], WriteBatch::default()).expect("applied");
    db.flush_cf(history).expect("flushed");
    assert_eq!(walked(), (400, 400), "in two files");
    db.compact_range_cf(history, None::<&[u8]>, None::<&[u8]>);
    assert_eq!(walked(), (400, 400), "compacted");
    for n in all {
        assert_eq!(data.get_at(&name(n), 2).expect("readable").map(|record| record.mod_revision), Some(2));
    }
}

/// All regions of a store lie in one database: what the neighbours hold must not be counted, neither when a bucket is
/// split nor when the region is.
#[test]
fn a_region_between_others_counts_its_own_keys() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let cut = |id, start: u64, end: u64| Region { id, start: key(start), end: key(end), ..region() };
    let sides: Vec<_> = [cut(7, 0, 100), cut(8, 100, 900), cut(9, 900, 999)]
        .into_iter()
        .map(|side| (RegionData::open(Arc::clone(&db), &side, Arc::default()), side))
        .collect();
    for (data, _) in &sides {
        data.build_counts().expect("counted");
    }
    let mut revision = 1;
    for n in (0..999).rev() {
        revision += 1;
        let put = pb::Change { key: key(n), create_revision: revision, version: 1, ..Default::default() };
        let (data, _) = sides.iter().find(|(_, side)| side.range().contains(&put.key)).expect("no gap");
        let effect = TxnEffect { revision, changes: vec![put], subs: Vec::new() };
        data.apply(&[effect], &[], &[], WriteBatch::default()).expect("applied");
    }
    let count = |data: &RegionData, side: &Region| data.snapshot().expect("readable").count_at(&side.range(), revision);
    let (middle, whole) = &sides[1];
    assert_eq!(count(middle, whole), Ok(800));
    for end in [880, 110, 101] {
        let left = cut(8, 100, end);
        middle.on_region(&left);
        assert_eq!(count(middle, &left), Ok(end - 100));
    }
}
