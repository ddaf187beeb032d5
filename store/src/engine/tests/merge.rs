//! Merges: the data stays where it is, and what the merged region says of its past leaves nothing out.

use braid_proto::pb::{LeaseRow, LockRange, LockRow, LockToken, StoredLease, StoredLock};

use super::*;

const KEYS: u64 = 40;

fn key(n: u64) -> Bytes {
    user_key(format!("k{n:03}").as_bytes())
}

/// Regions 7 and 8, side by side, and what they make together under `id`.
fn sides() -> (Region, Region) {
    let epoch = Some(RegionEpoch { conf_ver: 1, version: 3 });
    let left = Region { end: key(20), epoch, ..region() };
    (left.clone(), Region { id: 8, start: key(20), end: Bytes::new(), ..left })
}

fn whole(id: u64) -> Region {
    Region {
        id,
        start: Bytes::new(),
        end: Bytes::new(),
        epoch: Some(RegionEpoch { conf_ver: 1, version: 4 }),
        ..region()
    }
}

fn apply(data: &RegionData, revision: i64, changes: Vec<pb::Change>) {
    let txn = TxnEffect { revision, changes, subs: Vec::new() };
    data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
}

/// Puts each change of the next transaction where it belongs. Changes of both sides have one revision, as those of a
/// transaction over both have.
fn step(history: &mut History, random: &mut Random, left: &RegionData, right: &RegionData) {
    let txn = history.txn(random, KEYS);
    let (low, high): (Vec<_>, Vec<_>) = txn.changes.into_iter().partition(|change| change.key < key(20));
    for (data, changes) in [(left, low), (right, high)] {
        if !changes.is_empty() {
            apply(data, txn.revision, changes);
        }
    }
}

/// Merges as the host does: a batch, then memory.
fn join(db: &Arc<DB>, (target, data): (&Region, &RegionData), (source, other): (&Region, &RegionData)) -> Region {
    let mut batch = WriteBatch::default();
    merge(db, &Boundary::default(), target, source, &mut batch).expect("nothing is in the way");
    db.write(batch).expect("written");
    let merged = whole(target.id);
    data.absorb(&merged, Some(other)).expect("readable");
    // The host says it once more, as of every change of a region.
    data.on_region(&merged);
    merged
}

struct Merged {
    _dir: TempDir,
    db: Arc<DB>,
    data: RegionData,
    region: Region,
    history: History,
    random: Random,
    /// Newest revision before the merge.
    before: i64,
}

/// A region with a past on both sides, and with a future. `into_left`: the left one takes the right one in.
fn scene(seed: u64, into_left: bool, counted: bool) -> Merged {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left_region, right_region) = sides();
    let left = RegionData::open(Arc::clone(&db), &left_region, Arc::default());
    let right = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
    if counted {
        left.build_counts().expect("counted");
        right.build_counts().expect("counted");
    }
    let mut random = Random(0x3e76e + seed);
    let mut history = History { revision: 1, ..Default::default() };
    for _ in 0..80 {
        step(&mut history, &mut random, &left, &right);
    }
    let before = left.max_applied().max(right.max_applied());
    let ((target, data), (source, other)) = match into_left {
        true => ((left_region, left), (right_region, right)),
        false => ((right_region, right), (left_region, left)),
    };
    let region = join(&db, (&target, &data), (&source, &other));
    drop(other);
    Merged { _dir: dir, db, data, region, history, random, before }
}

#[test]
fn a_merged_region_reads_and_counts_what_was_on_both_sides_and_what_comes() {
    for seed in 0..4 {
        let Merged { _dir, db, data, region, mut history, mut random, before } = scene(seed, seed % 2 == 0, seed < 2);
        assert_eq!(data.max_applied(), before);
        assert_eq!(data.frontier(), before);
        for revision in [1, before / 2, before - 1, before] {
            check(&data, &history, revision, &mut random, KEYS);
        }
        for step in 0..80 {
            let txn = history.txn(&mut random, KEYS);
            data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
            if step == 40 {
                data.build_counts().expect("counted");
            }
            if step % 8 == 0 {
                for revision in [1, before - 3, before, before + 1, history.revision - 2, history.revision] {
                    check(&data, &history, revision, &mut random, KEYS);
                }
            }
        }
        let reopened = RegionData::open(db, &region, Arc::default());
        assert_eq!(reopened.max_applied(), data.max_applied());
        for revision in [1, before - 3, before, before + 1, history.revision] {
            check(&reopened, &history, revision, &mut random, KEYS);
        }
    }
}

/// (revision, key) of everything that a watch from behind `after` is shown, in order.
fn past(data: &RegionData, after: i64) -> Vec<(i64, Bytes)> {
    let snapshot = data.snapshot().expect("readable");
    let (mut all, mut cursor) = (Vec::new(), (after, u32::MAX));
    loop {
        match snapshot.past(&whole(7).range(), cursor, i64::MAX, false).expect("readable") {
            Page::Events { events, next } => {
                all.extend(
                    events.into_iter().map(|event| (event.revision, user_key(&event.event.kv.expect("kv").key))),
                );
                match next {
                    Some(next) => cursor = next,
                    None => return all,
                }
            }
            Page::Compacted(boundary) => panic!("compacted below {boundary}"),
        }
    }
}

#[test]
fn a_watch_from_below_the_merge_sees_the_events_of_both_sides_and_one_from_above_those_since() {
    for seed in 0..4 {
        let Merged { _dir, db, data, region, mut history, mut random, before } = scene(seed, seed % 2 == 0, false);
        let other = if region.id == 7 { 8 } else { 7 };
        for _ in 0..40 {
            let txn = history.txn(&mut random, KEYS);
            data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
        let wanted = |after: i64| {
            let mut all: Vec<(i64, Bytes)> = Vec::new();
            for (key, versions) in &history.versions {
                all.extend(versions.iter().filter(|(at, _)| *at > after).map(|(at, _)| (*at, key.clone())));
            }
            all.sort_unstable();
            all
        };
        let sorted = |mut found: Vec<(i64, Bytes)>| {
            assert!(found.is_sorted_by_key(|(revision, _)| *revision), "in order");
            found.sort_unstable();
            found
        };
        let reopened = RegionData::open(Arc::clone(&db), &region, Arc::default());
        for after in [0, 5, before / 2, before - 1, before, before + 1, history.revision - 3] {
            assert_eq!(sorted(past(&data, after)), wanted(after), "behind {after}, merged at {before}");
            assert_eq!(sorted(past(&reopened, after)), wanted(after), "behind {after} after a restart");
        }
        // Nothing of the ended region is left to be found.
        let events = db.cf_handle(EVENTS).expect("a family");
        let mut rows = db.raw_iterator_cf(events);
        rows.seek(u64::to_be_bytes(other));
        let left = rows.key().is_some_and(|row| row.starts_with(&u64::to_be_bytes(other)));
        assert!(!left, "{:02x?}", rows.key());
    }
}

/// Each half of it goes on, and may be split off again at once: the other one's past is in its keys.
#[test]
fn a_merged_region_is_split_again() {
    let Merged { _dir, db, data, mut history, mut random, before, .. } = scene(9, true, true);
    let (left, right) = sides();
    let epoch = Some(RegionEpoch { conf_ver: 1, version: 5 });
    data.on_region(&Region { epoch, ..left });
    let child = Region { id: 9, epoch, ..right };
    let other = RegionData::open_child(db, &child, Arc::default(), &Arc::new(NewestRecords::new(1 << 20)), &mut || {
        Some(data.max_applied())
    });
    other.inherit(&data);
    for _ in 0..40 {
        step(&mut history, &mut random, &data, &other);
    }
    for revision in [before - 2, before, before + 1, history.revision] {
        let range = child.range();
        assert_eq!(scanned(&other.snapshot().expect("readable"), &range, revision), history.live(&range, revision));
    }
}

/// What a region has written before a split is not what its keys are when they come back.
#[test]
fn what_has_changed_elsewhere_is_read_anew_when_it_comes_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left, right) = sides();
    let data = RegionData::open(Arc::clone(&db), &whole(7), Arc::default());
    let mut random = Random(0x7e1d);
    let mut history = History { revision: 1, ..Default::default() };
    for _ in 0..40 {
        let txn = history.txn(&mut random, KEYS);
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    for _ in 0..3 {
        data.on_region(&left);
        let other = RegionData::open(Arc::clone(&db), &right, Arc::default());
        other.inherit(&data);
        for _ in 0..40 {
            step(&mut history, &mut random, &data, &other);
        }
        join(&db, (&left, &data), (&right, &other));
        data.build_counts().expect("counted");
        for _ in 0..40 {
            check(&data, &history, history.revision, &mut random, KEYS);
            let txn = history.txn(&mut random, KEYS);
            data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
    }
}

#[test]
fn leases_come_with_the_range_and_locks_forbid_a_merge() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left_region, right_region) = sides();
    let left = RegionData::open(Arc::clone(&db), &left_region, Arc::default());
    let right = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
    let lease = LeaseRow { id: 5, lease: Some(StoredLease { ttl: 10, ..Default::default() }) };
    left.apply(&[], &[], &[lease], WriteBatch::default()).expect("applied");
    let token = Some(LockToken { region_id: 7, term: 1, seq: 1 });
    let range = LockRange { start: key(1), end: key(2), exclusive: true };
    let lock = StoredLock { token, ranges: vec![range], primary: key(1), ..Default::default() };
    let row = |lock| LockRow { key: key(1), token, lock };
    left.apply(&[], &[row(Some(lock))], &[], WriteBatch::default()).expect("applied");
    for (target, source) in [(&left_region, &right_region), (&right_region, &left_region)] {
        let refused = merge(&db, &Boundary::default(), target, source, &mut WriteBatch::default());
        assert!(refused.is_err_and(|why| why.0.contains("locks or records")));
    }
    left.apply(&[], &[row(None)], &[], WriteBatch::default()).expect("applied");
    join(&db, (&right_region, &right), (&left_region, &left));
    assert_eq!(right.leases().expect("readable").iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
    assert_eq!(right.leases_in(&right_region.range()).expect("readable"), []);
}

#[test]
fn the_size_of_a_merged_region_is_that_of_both() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left_region, right_region) = sides();
    let left = RegionData::open(Arc::clone(&db), &left_region, Arc::default());
    let right = RegionData::open(Arc::clone(&db), &right_region, Arc::default());
    let put = |n: u64, revision: i64| pb::Change {
        key: user_key(format!("k{:03}/{revision}", n).as_bytes()),
        create_revision: revision,
        version: 1,
        value: vec![b'v'; 400].into(),
        ..Default::default()
    };
    for revision in 2..402 {
        apply(&left, revision * 2, vec![put(5, revision)]);
        apply(&right, revision * 2 + 1, vec![put(25, revision)]);
    }
    let (before_left, before_right) = (left.approximate_size().0, right.approximate_size().0);
    assert!(before_left > 100_000 && before_right > 100_000, "{before_left} {before_right}");
    join(&db, (&left_region, &left), (&right_region, &right));
    left.build_counts().expect("counted");
    let (bytes, keys) = left.approximate_size();
    assert_eq!(keys, 800);
    let both = before_left + before_right;
    assert!(bytes >= both / 10 * 9 && bytes <= both / 10 * 12, "{bytes} instead of {both}");
}
