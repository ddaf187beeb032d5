//! Histories that reach the far ends: many versions of a key, many changes since, keys with zero bytes, several changes of
//! one key at one revision, deletes of whole ranges.

use super::*;

/// Keys that are prefixes of each other, and that escaping must keep apart.
const NAMES: [&[u8]; 12] =
    [b"a", b"a\0", b"a\0\0", b"a\0\x01", b"a\0\xff", b"aa", b"a\x01", b"a\xff", b"b", b"\0", b"\xff", b"b\0\xff\0"];

/// A naive history that is fed with finished transactions.
#[derive(Default)]
struct Naive {
    history: History,
}

impl Naive {
    /// A transaction at the next revision: `Some` puts, `None` deletes; changes of one key follow each other.
    fn txn(&mut self, steps: &[(&[u8], Option<&str>)]) -> TxnEffect {
        self.history.revision += 1;
        let revision = self.history.revision;
        let mut changes = Vec::new();
        for (name, value) in steps {
            let key = user_key(name);
            let before = self.history.at(&key, revision).cloned();
            let record = value.map(|value| Record {
                create_revision: before.as_ref().map_or(revision, |before| before.create_revision),
                mod_revision: revision,
                version: before.as_ref().map_or(1, |before| before.version + 1),
                lease: if value.len() > 3 { 77 } else { 0 },
                value: Bytes::copy_from_slice(value.as_bytes()),
            });
            changes.push(pb::Change {
                key: key.clone(),
                supersedes: before.as_ref().map_or(0, |before| before.mod_revision),
                delete: record.is_none(),
                create_revision: record.as_ref().map_or(0, |record| record.create_revision),
                version: record.as_ref().map_or(0, |record| record.version),
                lease: record.as_ref().map_or(0, |record| record.lease),
                value: record.as_ref().map_or(Bytes::new(), |record| record.value.clone()),
                superseded: Bytes::new(),
            });
            self.history.versions.entry(key).or_default().push((revision, record));
        }
        TxnEffect { revision, changes, subs: Vec::new() }
    }
}

/// Every way to read the whole of `ranges` at `revision`, the ones that are only taken at a distance forced.
fn check_all_ways(data: &RegionData, history: &History, revision: i64, ranges: &[KeyRange]) {
    let snapshot = data.snapshot().expect("readable");
    for range in ranges {
        let expected = history.live(range, revision);
        assert_eq!(scanned(&snapshot, range, revision), expected, "{range:?} @{revision}");
        assert_eq!(snapshot.count_at(range, revision), Ok(expected.len() as u64), "{range:?} @{revision}");
        let reader = snapshot.reader();
        let mut walked = Vec::new();
        let read = reader.scan_versions(range, revision, &mut |key, record| {
            walked.push((key.clone(), record.clone()));
            ControlFlow::Continue(())
        });
        assert_eq!((read, walked), (Ok(()), expected.clone()), "side by side, {range:?} @{revision}");
        assert_eq!(reader.count_versions(range, revision), Ok(expected.len() as u64), "{range:?} @{revision}");
        for most in 1..=expected.len().min(4) {
            let mut first = Vec::new();
            let read = reader.scan_versions(range, revision, &mut |key, _| {
                first.push(key.clone());
                if first.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            assert!(read.is_ok() && first.iter().eq(expected[..most].iter().map(|(key, _)| key)));
        }
    }
    for key in history.versions.keys() {
        let expected = history.at(key, revision);
        assert_eq!(data.get_at(key, revision).expect("readable").as_ref(), expected, "{key:?} @{revision}");
        assert_eq!(snapshot.get_at(key, revision).expect("readable").as_ref(), expected, "{key:?} @{revision}");
    }
}

fn whole() -> KeyRange {
    KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") }
}

fn ranges(names: &[Vec<u8>]) -> Vec<KeyRange> {
    let mut ranges = vec![whole()];
    for start in names {
        ranges.push(KeyRange::single(user_key(start)));
        ranges.push(KeyRange { start: user_key(start), end: user_key(&names[4]) });
    }
    ranges
}

#[test]
fn keys_with_thirty_versions_and_zero_bytes_are_read_at_every_revision() {
    // Bloom filters over prefixes treat rows of a dozen bytes and less apart, so keys come short and long.
    for (prefix, first) in [(&b""[..], 0), (b"registry/pods/namespace-0001/", 1)] {
        let names: Vec<Vec<u8>> = NAMES.iter().map(|name| [prefix, name].concat()).collect();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let db = open(&dir);
        let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
        let mut naive = Naive::default();
        naive.history.revision = 1;
        let mut random = Random(0xdeeb + first);
        for round in 0..30 {
            let mut txns = Vec::new();
            for name in &names {
                let value = format!("v{round}");
                // One in six rounds deletes; what is deleted may stay away for a while.
                let live = naive.history.at(&user_key(name), i64::MAX).is_some();
                match random.below(6) {
                    0 if live => txns.push(naive.txn(&[(name, None)])),
                    0 => {}
                    _ => txns.push(naive.txn(&[(name, Some(&value))])),
                }
            }
            data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
            if round == 15 {
                for family in [LATEST, HISTORY] {
                    db.flush_cf(db.cf_handle(family).expect("a family of the engine")).expect("flushed");
                }
            }
        }
        for revision in (first as i64..=naive.history.revision + 1).step_by(2) {
            check_all_ways(&data, &naive.history, revision, &ranges(&names));
        }
    }
}

#[test]
fn several_changes_of_a_key_at_one_revision_leave_the_last_and_keep_the_others() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let mut naive = Naive::default();
    naive.history.revision = 1;
    let put = Some("put");
    let txns = [
        naive.txn(&[(b"a", put), (b"a", None)]),
        naive.txn(&[(b"a", put), (b"b", put), (b"a", None), (b"a", Some("again"))]),
        naive.txn(&[(b"a", None), (b"a", put), (b"b", Some("leased"))]),
        naive.txn(&[(b"a", None), (b"b", None)]),
    ];
    // One batch, then each by itself onto what the one before left on disk.
    data.apply(&txns[..1], &[], &[], WriteBatch::default()).expect("applied");
    data.apply(&txns[1..3], &[], &[], WriteBatch::default()).expect("applied");
    data.apply(&txns[3..], &[], &[], WriteBatch::default()).expect("applied");
    let names: Vec<Vec<u8>> = NAMES.iter().map(|name| name.to_vec()).collect();
    for revision in 0..=6 {
        check_all_ways(&data, &naive.history, revision, &ranges(&names));
    }
    let mut seen = Vec::new();
    let snapshot = data.snapshot().expect("readable");
    let all = snapshot.changes_after(1, &mut |change| {
        seen.push((change.revision, change.sub, change.kind));
        ControlFlow::Continue(())
    });
    assert_eq!(all, Ok(Completeness::Complete));
    use ChangeKind::{Created, Deleted, Updated};
    let kinds = [(2, 0, Created), (2, 1, Deleted), (3, 0, Created), (3, 1, Created), (3, 2, Deleted), (3, 3, Created)];
    assert_eq!(seen[..6], kinds);
    assert_eq!(seen[6..], [(4, 0, Deleted), (4, 1, Created), (4, 2, Updated), (5, 0, Deleted), (5, 1, Deleted)]);
}

/// More changes since a revision than are corrected key by key, more than memory keeps, and a mark in between.
#[test]
fn reads_far_below_the_newest_revision_agree_whichever_way_they_take() {
    const KEYS: usize = 600;
    const ROUNDS: usize = 12;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    data.build_counts().expect("counted");
    let mut naive = Naive::default();
    naive.history.revision = 1;
    let names: Vec<Vec<u8>> = (0..KEYS).map(|i| format!("k{i:04}").into_bytes()).collect();
    for round in 0..ROUNDS {
        let mut txns = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let live = naive.history.at(&user_key(name), i64::MAX).is_some();
            // Every key has its own rhythm of coming and going.
            match (round + i) % (3 + i % 4) {
                0 if live => txns.push(naive.txn(&[(name, None)])),
                0 => {}
                _ => txns.push(naive.txn(&[(name, Some("v"))])),
            }
        }
        data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
    }
    let newest = naive.history.revision;
    assert!(newest as usize > recent::CHUNK_ROWS * recent::CHUNKS_MAX, "memory keeps no more than a part");
    let key = |i: usize| user_key(&names[i]);
    let ranges = [whole(), KeyRange { start: key(17), end: key(530) }, KeyRange { start: key(300), end: key(301) }];
    for distance in [0, 1, 100, 255, 256, 257, 300, 1_000, 3_000, 4_000, 4_200, 5_500, newest - 2, newest - 1] {
        check_all_ways(&data, &naive.history, newest - distance, &ranges);
    }
    data.trim();
    check_all_ways(&data, &naive.history, newest - 50, &ranges);
    let reopened = RegionData::open(db, &region(), Arc::default());
    assert_eq!(reopened.max_applied(), newest);
    for distance in [0, 50, 3_000] {
        check_all_ways(&reopened, &naive.history, newest - distance, &ranges);
    }
}

#[test]
fn deletes_of_whole_ranges_keep_what_they_delete() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let mut naive = Naive::default();
    naive.history.revision = 1;
    let names: Vec<Vec<u8>> = (0..200).map(|i| format!("k{i:04}").into_bytes()).collect();
    let puts: Vec<TxnEffect> = names.iter().map(|name| naive.txn(&[(name, Some("v"))])).collect();
    data.apply(&puts, &[], &[], WriteBatch::default()).expect("applied");
    // In the same batch: an overwrite, a delete of most neighbours (with a gap), and one of some that is not in key order.
    let overwrite = naive.txn(&[(&names[40], Some("new"))]);
    let gap = |i: &usize| *i != 60 && *i != 61;
    let run: Vec<(&[u8], Option<&str>)> = (20..150).filter(gap).map(|i| (&names[i][..], None)).collect();
    let run = naive.txn(&run);
    let mixed: Vec<(&[u8], Option<&str>)> = (150..200).rev().map(|i| (&names[i][..], None)).collect();
    let mixed = naive.txn(&mixed);
    data.apply(&[overwrite, run, mixed], &[], &[], WriteBatch::default()).expect("applied");
    for revision in [1, 2, 100, 201, 202, 203, 204] {
        check_all_ways(&data, &naive.history, revision, &[whole()]);
    }
    assert_eq!(data.snapshot().expect("readable").count(&whole(), &[]), Ok(22));
}
