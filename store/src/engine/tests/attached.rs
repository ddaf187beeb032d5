//! The keys of leases: index and walk agree with a naive model at every step, whatever is put, deleted and split.

use braid_proto::pb::{LeaseRange, LeaseRow, StoredLease};
use braid_store_core::view::Visit;

use super::*;

/// The last has its sign bit set: ids are any 64 bits.
const LEASES_USED: [i64; 4] = [1, 2, 256, i64::MIN + 1];
const KEYS: u64 = 120;

pub fn key(n: u64) -> Bytes {
    user_key(format!("k{n:03}").as_bytes())
}

/// The live records of all regions.
#[derive(Default)]
pub struct Leased {
    pub live: BTreeMap<Bytes, Record>,
    pub revision: i64,
}

impl Leased {
    fn put(&mut self, key: Bytes, lease: i64) -> pb::Change {
        let before = self.live.get(&key);
        let record = Record {
            create_revision: before.map_or(self.revision, |before| before.create_revision),
            mod_revision: self.revision,
            version: before.map_or(1, |before| before.version + 1),
            lease,
            value: Bytes::from(format!("{}", self.revision)),
        };
        let change = pb::Change {
            key: key.clone(),
            supersedes: before.map_or(0, |before| before.mod_revision),
            delete: false,
            create_revision: record.create_revision,
            version: record.version,
            lease,
            value: record.value.clone(),
            superseded: Bytes::new(),
        };
        self.live.insert(key, record);
        change
    }

    fn delete(&mut self, key: Bytes) -> Option<pb::Change> {
        let supersedes = self.live.remove(&key)?.mod_revision;
        Some(pb::Change { key, supersedes, delete: true, ..Default::default() })
    }

    /// A few changes in `within`, or the end of all keys there that have one lease, or of all there are.
    pub fn txn(&mut self, random: &mut Random, within: &KeyRange) -> TxnEffect {
        self.revision += 1;
        let mut changes = Vec::new();
        let kind = random.below(30);
        if kind < 2 {
            let lease = LEASES_USED[random.below(4) as usize];
            let goes = self.live.iter().filter(|(_, record)| kind == 0 || record.lease == lease);
            let goes: Vec<Bytes> = goes.map(|(key, _)| key.clone()).filter(|key| within.contains(key)).collect();
            changes.extend(goes.into_iter().filter_map(|key| self.delete(key)));
        }
        for _ in 0..1 + random.below(12) {
            // Few keys each time, so that one batch changes the same one again and again.
            let key = key(self.revision as u64 * 7 % KEYS + random.below(9));
            if !within.contains(&key) {
                continue;
            }
            match random.below(8) {
                0 => changes.extend(self.delete(key)),
                1 => changes.push(self.put(key, 0)),
                // As most puts of a key do: with the lease it had.
                2 => {
                    let lease = self.live.get(&key).map_or(0, |record| record.lease);
                    changes.push(self.put(key, lease));
                }
                _ => changes.push(self.put(key, LEASES_USED[random.below(4) as usize])),
            }
        }
        TxnEffect { revision: self.revision, changes, subs: Vec::new() }
    }

    pub fn attached(&self, lease: i64, range: &KeyRange) -> Vec<(Bytes, Record)> {
        let of = self.live.iter().filter(|(key, record)| record.lease == lease && range.contains(key));
        of.map(|(key, record)| (key.clone(), record.clone())).collect()
    }

    /// What the index of a store with all regions holds.
    pub fn rows(&self) -> Vec<(i64, Bytes)> {
        let with = self.live.iter().filter(|(_, record)| record.lease != 0);
        let mut rows: Vec<_> = with.map(|(key, record)| (record.lease, key.clone())).collect();
        rows.sort_by_key(|(lease, key)| (*lease as u64, key.clone()));
        rows
    }
}

/// All rows of the index.
pub fn rows(db: &DB) -> Vec<(i64, Bytes)> {
    let mut options = rocksdb::ReadOptions::default();
    options.set_total_order_seek(true);
    let mut rows = db.raw_iterator_cf_opt(db.cf_handle(ATTACHED).expect("a family of the engine"), options);
    rows.seek_to_first();
    let mut found = Vec::new();
    while let Some(row) = rows.key() {
        match StoredKey::decode(ATTACHED, row).expect("a row of the index") {
            StoredKey::Attached { lease, key } => found.push((lease, key)),
            other => panic!("{other:?}"),
        }
        rows.next();
    }
    rows.status().expect("readable");
    found
}

/// What `walk` visits.
fn visited(walk: &mut dyn FnMut(Visit<'_>) -> Result<(), Damaged>) -> Vec<(Bytes, Record)> {
    let mut found = Vec::new();
    let walked = walk(&mut |key, record| {
        found.push((key.clone(), record.clone()));
        ControlFlow::Continue(())
    });
    walked.expect("readable");
    found
}

/// Index, walk and model agree about every lease in the ranges inside `side`.
pub fn agree(data: &RegionData, side: &Region, model: &Leased, random: &mut Random) {
    let snapshot = data.snapshot().expect("readable");
    let views: [&dyn BaseView; 2] = [data, &snapshot];
    for inside in [side.range(), range(random, KEYS).intersect(&side.range())] {
        for lease in LEASES_USED.into_iter().chain([0, 3, -1]) {
            let expected = model.attached(lease, &inside);
            let expected = if inside.is_empty() { Vec::new() } else { expected };
            for view in views {
                let found = visited(&mut |visit| view.attached(lease, &inside, visit));
                assert_eq!(found, expected, "lease {lease} in {inside:?}");
            }
            if !inside.is_empty() {
                let mut scanned = scanned(&snapshot, &inside, i64::MAX);
                scanned.retain(|(_, record)| record.lease == lease);
                assert_eq!(scanned, expected, "lease {lease} in {inside:?}");
            }
        }
    }
}

#[test]
fn index_and_walk_agree_while_keys_change_and_regions_split() {
    for seed in 1..=4_u64 {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let db = open(&dir);
        let open = |side: &Region| RegionData::open(Arc::clone(&db), side, Arc::default());
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model = Leased { revision: 1, ..Default::default() };
        let mut sides: Vec<(RegionData, Region)> = vec![(open(&region()), region())];
        for step in 0..160_u64 {
            let before: Vec<_> = sides.iter().map(|(data, _)| data.snapshot().expect("readable")).collect();
            let was = model.attached(LEASES_USED[0], &region().range());
            for (data, side) in &sides {
                let txns: Vec<_> = (0..=random.below(3)).map(|_| model.txn(&mut random, &side.range())).collect();
                data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
            }
            for (data, side) in &sides {
                agree(data, side, &model, &mut random);
            }
            assert_eq!(rows(&db), model.rows(), "no row is missing, and none is left");
            let mut then = Vec::new();
            for (snapshot, (_, side)) in before.iter().zip(&sides) {
                then.extend(visited(&mut |visit| snapshot.attached(LEASES_USED[0], &side.range(), visit)));
            }
            assert_eq!(then, was, "a moment stays as it was");
            if step % 40 == 13 {
                db.flush_cf(db.cf_handle(ATTACHED).expect("a family of the engine")).expect("flushed");
            }
            if step % 40 == 27 {
                // The last one gives its upper half away.
                let (data, side) = sides.last_mut().expect("a region");
                let at = key(40 + step / 40 * 25);
                let child = Region { id: side.id + 1, start: at.clone(), ..side.clone() };
                side.end = at;
                data.on_region(side);
                sides.push((open(&child), child));
            }
            if step == 100 {
                sides = sides.into_iter().map(|(_, side)| (open(&side), side)).collect();
            }
        }
        assert_eq!(sides.len(), 5);
    }
}

#[test]
fn rows_too_many_do_no_harm() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let mut random = Random(5);
    let mut model = Leased { revision: 1, ..Default::default() };
    for _ in 0..40 {
        let txn = model.txn(&mut random, &region().range());
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    let family = db.cf_handle(ATTACHED).expect("a family of the engine");
    for lease in LEASES_USED.into_iter().chain([3]) {
        for n in 0..KEYS + 9 {
            db.put_cf(family, StoredKey::Attached { lease, key: key(n) }.encode(), b"").expect("written");
        }
    }
    agree(&data, &region(), &model, &mut random);
    for _ in 0..40 {
        let txn = model.txn(&mut random, &region().range());
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        agree(&data, &region(), &model, &mut random);
    }
    let whole = region().range();
    let mut first = None;
    let stopped = data.attached(LEASES_USED[0], &whole, &mut |key, _| {
        assert_eq!(first.replace(key.clone()), None, "nothing is visited after the visitor had enough");
        ControlFlow::Break(())
    });
    assert_eq!(stopped, Ok(()));
    assert_eq!(first, model.attached(LEASES_USED[0], &whole).first().map(|(key, _)| key.clone()));
}

/// What a raft snapshot does to the index: the rows of what goes are deleted, those of what has come are made; twice is
/// once, and neighbours keep theirs.
#[test]
fn rows_go_and_come_with_the_records_of_a_region() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let (left, right) = (Region { end: key(60), ..region() }, Region { id: 8, start: key(60), ..region() });
    let sides = [&left, &right].map(|side| RegionData::open(Arc::clone(&db), side, Arc::default()));
    let mut random = Random(17);
    let mut model = Leased { revision: 1, ..Default::default() };
    for _ in 0..60 {
        for (data, side) in sides.iter().zip([&left, &right]) {
            let txn = model.txn(&mut random, &side.range());
            data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
    }
    let whole = model.rows();
    let kept: Vec<_> = whole.iter().filter(|(_, key)| right.range().contains(key)).cloned().collect();
    assert!(!kept.is_empty() && kept.len() < whole.len());
    for _ in 0..2 {
        forget(&db, &left).expect("deleted");
        assert_eq!(rows(&db), kept);
    }
    for _ in 0..2 {
        collect(&db, &left).expect("made");
        assert_eq!(rows(&db), whole);
    }
    forget(&db, &region()).expect("deleted");
    assert_eq!(rows(&db), []);
}

#[test]
fn a_damaged_row_is_told() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let whole = KeyRange::default();
    for (family, row, value) in [
        // A record that does not decode, behind a row that says that the lease is attached to it.
        (LATEST, key(1).to_vec(), &b"\xff"[..]),
        (LEASES, b"\x10short".to_vec(), b""),
    ] {
        db.put_cf(db.cf_handle(family).expect("a family of the engine"), row, value).expect("written");
    }
    let row = StoredKey::Attached { lease: 7, key: key(1) };
    db.put_cf(db.cf_handle(ATTACHED).expect("a family of the engine"), row.encode(), b"").expect("written");
    assert!(data.attached(7, &whole, &mut |_, _| ControlFlow::Continue(())).is_err());
    assert!(forget(&db, &region()).is_err() && collect(&db, &region()).is_err());
    assert!(data.leases().is_err());
}

#[test]
fn records_of_leases_follow_their_keys_through_a_split() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let ids = [1, 2, 300, i64::MAX, i64::MIN, -1];
    let record = |ttl| StoredLease {
        ttl,
        ranges: vec![LeaseRange { start: key(1), end: key(2) }],
        remaining: 1,
        revoking: ttl % 2 == 0,
    };
    let write = |data: &RegionData, rows: &[(i64, Option<i64>)]| {
        let rows: Vec<_> = rows.iter().map(|(id, ttl)| LeaseRow { id: *id, lease: ttl.map(record) }).collect();
        data.apply(&[], &[], &rows, WriteBatch::default()).expect("applied");
    };
    let found = |data: &RegionData| data.leases().expect("readable");
    assert_eq!(found(&data), []);
    // The last row of a batch is what counts.
    write(&data, &ids.map(|id| (id, Some(9))));
    write(&data, &[(300, None), (2, Some(4)), (2, Some(5)), (1, None), (1, Some(6))]);
    let wanted = [(1, 6), (2, 5), (i64::MAX, 9), (i64::MIN, 9), (-1, 9)].map(|(id, ttl)| (id, record(ttl)));
    assert_eq!(found(&data), wanted);
    assert_eq!(data.max_applied(), 1, "a lease takes no revision");
    let at = braid_proto::key::lease_key(i64::MAX);
    let (left, right) = (Region { end: at.clone(), ..region() }, Region { id: 8, start: at, ..region() });
    data.on_region(&left);
    let child = RegionData::open(Arc::clone(&db), &right, Arc::default());
    assert_eq!((found(&data), found(&child)), (wanted[..2].to_vec(), wanted[2..].to_vec()));
    assert_eq!(child.max_applied(), 1, "records of leases are no history");
    write(&child, &[(-1, None), (i64::MIN, Some(12))]);
    let wanted = [(i64::MAX, record(9)), (i64::MIN, record(12))];
    assert_eq!(found(&RegionData::open(Arc::clone(&db), &right, Arc::default())), wanted);
    // What destroying the child does, and what a raft snapshot of it carries.
    let lies = data_ranges(&right).into_iter().find(|lies| lies.cf == LEASES).expect("records are data");
    let family = db.cf_handle(LEASES).expect("a family of the engine");
    let mut batch = WriteBatch::default();
    batch.delete_range_cf(family, lies.start, vec![0xff]);
    db.write(batch).expect("written");
    assert_eq!((found(&data).len(), found(&child).len()), (2, 0));
}
