//! Past events come alike from memory, from the events on disk and from the range's versions.

use braid_proto::etcd::mvccpb::event::EventType;

use super::*;

const KEYS: u64 = 30;

/// What a watch should see above `after`, given (revision, sub, key) of every change.
fn wanted(
    history: &History,
    made: &[(i64, u32, Bytes)],
    range: &KeyRange,
    after: i64,
    boundary: i64,
) -> Vec<PastEvent> {
    let above = made.iter().filter(|(revision, _, key)| *revision > after && range.contains(key));
    above
        .map(|(revision, sub, key)| {
            let user = key.slice(1..);
            let now = history.at(key, *revision).cloned();
            let before = history.at(key, *revision - 1).filter(|_| *revision > boundary).cloned();
            let mut event = braid_proto::etcd::mvccpb::Event::default();
            event.kv = Some(match now {
                Some(record) => shown(user.clone(), record),
                None => {
                    event.r#type = EventType::Delete.into();
                    let mut kv = shown(user.clone(), Record::default());
                    kv.mod_revision = *revision;
                    kv
                }
            });
            event.prev_kv = before.map(|record| shown(user, record));
            PastEvent { revision: *revision, sub: *sub, event }
        })
        .collect()
}

/// All pages behind `after`.
fn past(data: &RegionData, range: &KeyRange, after: i64) -> Vec<PastEvent> {
    let snapshot = data.snapshot().expect("readable");
    let (mut all, mut cursor) = (Vec::new(), (after, u32::MAX));
    loop {
        match snapshot.past(range, cursor, i64::MAX, true).expect("readable") {
            Page::Events { events, next } => {
                all.extend(events);
                match next {
                    Some(next) => cursor = next,
                    None => return all,
                }
            }
            Page::Compacted(boundary) => panic!("compacted below {boundary}"),
        }
    }
}

struct Scene {
    dir: TempDir,
    db: Arc<DB>,
    boundary: Arc<Boundary>,
    data: RegionData,
    history: History,
    made: Vec<(i64, u32, Bytes)>,
}

fn scene(transactions: u64) -> Scene {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let boundary = Arc::new(Boundary::default());
    let db = open_with(&dir, &boundary);
    boundary.open(&db).expect("readable");
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
    let mut random = Random(77);
    let mut history = History { revision: 1, ..Default::default() };
    let mut made = Vec::new();
    for _ in 0..transactions {
        let txn = history.txn(&mut random, KEYS);
        let changes = (0_u32..).zip(&txn.changes);
        made.extend(changes.map(|(sub, change)| (txn.revision, sub, change.key.clone())));
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    Scene { dir, db, boundary, data, history, made }
}

fn all_keys() -> KeyRange {
    KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") }
}

#[test]
fn every_source_tells_the_same() {
    // More than a page holds, and less than memory does.
    let Scene { dir, db, boundary, data, history, made } = scene(1_500);
    let reopened = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
    let child = Region { id: 8, ..region() };
    let from_versions = RegionData::open(Arc::clone(&db), &child, Arc::clone(&boundary));
    assert_eq!(from_versions.snapshot().expect("readable").published().events_mark, history.revision);
    let mut random = Random(3);
    let inherited = RegionData::open(Arc::clone(&db), &Region { id: 9, ..region() }, Arc::clone(&boundary));
    inherited.inherit(&data);
    for after in [1, 2, history.revision / 2, history.revision - 5, history.revision] {
        for range in [all_keys(), range(&mut random, KEYS)] {
            let wanted = wanted(&history, &made, &range, after, 0);
            for data in [&data, &reopened, &from_versions, &inherited] {
                assert_eq!(past(data, &range, after), wanted, "{range:?} after {after}");
            }
        }
    }
    let upto = history.revision / 2;
    let mut wanted = wanted(&history, &made, &all_keys(), upto - 9, 0);
    wanted.retain(|event| event.revision <= upto);
    for data in [&data, &reopened, &from_versions] {
        let found = data.snapshot().expect("readable").past(&all_keys(), (upto - 9, u32::MAX), upto, true);
        assert_eq!(found, Ok(Page::Events { events: wanted.clone(), next: None }));
    }
    drop((data, reopened, from_versions, inherited, db, dir));
}

#[test]
fn large_pasts_come_in_pages() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let puts = 10_000_u64;
    let change = |n: u64| pb::Change {
        key: user_key(format!("k{n:06}").as_bytes()),
        create_revision: 2,
        version: 1,
        ..Default::default()
    };
    // One transaction: pages end inside of a revision.
    let txn = TxnEffect { revision: 2, changes: (0..puts).map(change).collect(), subs: Vec::new() };
    data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    let child = RegionData::open(Arc::clone(&db), &Region { id: 8, ..region() }, Arc::default());
    let reopened = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    for data in [&reopened, &child] {
        let subs: Vec<u32> = past(data, &all_keys(), 1).iter().map(|event| event.sub).collect();
        assert_eq!(subs, (0..puts as u32).collect::<Vec<_>>());
    }
}

#[test]
fn the_past_begins_at_the_boundary() {
    let Scene { dir, db, boundary, data, history, made } = scene(400);
    let at = made[made.len() / 2].0;
    boundary.raise(at).expect("written");
    for family in [HISTORY, EVENTS] {
        let handle = db.cf_handle(family).expect("a family of the engine");
        db.flush_cf(handle).expect("flushed");
        db.compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>);
    }
    let reopened = RegionData::open(Arc::clone(&db), &region(), Arc::clone(&boundary));
    let child = RegionData::open(Arc::clone(&db), &Region { id: 8, ..region() }, Arc::clone(&boundary));
    for data in [&data, &reopened, &child] {
        assert_eq!(past(data, &all_keys(), at - 1), wanted(&history, &made, &all_keys(), at - 1, at));
        let below = data.snapshot().expect("readable").past(&all_keys(), (at - 2, u32::MAX), i64::MAX, true);
        assert_eq!(below, Ok(Page::Compacted(at)));
    }
    drop((data, reopened, child, db, dir));
}
