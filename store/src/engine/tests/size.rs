//! Sizes and halves of regions, wherever their data lies.

use super::*;

const MB: u64 = 1 << 20;

fn fill(data: &RegionData, revision: &mut i64, keys: impl Iterator<Item = String>, bytes: usize) {
    let mut random = Random(0x512e);
    for key in keys {
        *revision += 1;
        // No compressor foresees it.
        let value: Vec<u8> = std::iter::repeat_with(|| random.below(256) as u8).take(bytes).collect();
        let change = pb::Change {
            key: user_key(key.as_bytes()),
            create_revision: *revision,
            version: 1,
            value: value.into(),
            ..Default::default()
        };
        let txn = TxnEffect { revision: *revision, changes: vec![change], subs: Vec::new() };
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
}

fn flush(db: &DB) {
    for family in [LATEST, HISTORY, EVENTS] {
        db.flush_cf(db.cf_handle(family).expect("a family")).expect("flushed");
    }
}

fn near(found: u64, expected: u64, what: &str) {
    let off = found.abs_diff(expected);
    assert!(off <= expected / 5 + MB / 2, "{what}: {found} instead of {expected}");
}

fn open_large(dir: &TempDir, boundary: &Boundary) -> Arc<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let families = column_families(&EngineOptions { block_cache_bytes: 4 << 20, memtable_bytes: 64 << 20 }, boundary);
    Arc::new(DB::open_cf_descriptors(&options, dir.path(), families).expect("a database"))
}

fn named(id: u64, start: &[u8], end: &[u8]) -> Region {
    let key = |key: &[u8]| if key.is_empty() { Bytes::new() } else { user_key(key) };
    Region { id, start: key(start), end: key(end), ..region() }
}

#[test]
fn sizes_are_right_in_memory_in_files_after_a_split_and_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let boundary = Arc::new(Boundary::default());
    let db = open_large(&dir, &boundary);
    let open = |region: &Region| RegionData::open(Arc::clone(&db), region, Arc::clone(&boundary));
    let (mut revision, bytes) = (1, 64 << 10);
    let a = open(&named(7, b"a", b"b"));
    fill(&a, &mut revision, (0..96).map(|n| format!("a{n:04}")), bytes);
    near(a.approximate_size().0, 6 * MB, "all in memory");
    flush(&db);
    near(a.approximate_size().0, 6 * MB, "all in files");
    // What others write later is not this region's, however much of it lies in memory.
    let b = open(&named(8, b"b", b"c"));
    fill(&b, &mut revision, (0..256).map(|n| format!("b{n:04}")), bytes);
    near(a.approximate_size().0, 6 * MB, "beside a busy neighbour");
    near(b.approximate_size().0, 16 * MB, "the neighbour");
    fill(&a, &mut revision, (96..128).map(|n| format!("a{n:04}")), bytes);
    near(a.approximate_size().0, 8 * MB, "in files and in memory");
    let (left, right) = (named(8, b"b", b"b0128"), named(9, b"b0128", b"c"));
    b.on_region(&left);
    let child = RegionData::open_child(
        Arc::clone(&db),
        &right,
        Arc::clone(&boundary),
        &Arc::new(NewestRecords::new(1 << 20)),
        &mut || Some(b.max_applied()),
    );
    child.inherit(&b);
    assert_eq!(child.max_applied(), b.max_applied());
    near(b.approximate_size().0, 8 * MB, "the left half");
    near(child.approximate_size().0, 8 * MB, "the right half");
    drop((a, b, child, db));
    let db = open_large(&dir, &boundary);
    let open = |region: &Region| RegionData::open(Arc::clone(&db), region, Arc::clone(&boundary));
    for (region, expected) in [(named(7, b"a", b"b"), 128), (left, 128), (right, 128)] {
        let (size, keys) = open(&region).approximate_size();
        near(size, 8 * MB, "after a restart");
        assert!(u64::abs_diff(keys, expected) < 40, "{keys} keys instead of {expected}");
    }
}

/// How much of the region lies before its half, in keys of the same size.
fn part_before_half(data: &RegionData, region: &Region) -> f64 {
    let half = data.half().expect("a half");
    assert!(half > region.start && region.range().contains(&half), "{half:?} lies strictly inside");
    let snapshot = data.snapshot().expect("readable");
    let all = snapshot.count(&region.range(), &[]).expect("counted");
    let left = KeyRange { start: region.start.clone(), end: half };
    snapshot.count(&left, &[]).expect("counted") as f64 / all as f64
}

/// The keys of a test, by number.
type Shape = fn(u64) -> String;

#[test]
fn the_half_is_found_in_memory_and_in_files_whatever_the_keys_look_like() {
    let shapes: [(&str, Shape); 4] = [
        ("even", |n| format!("k{:08}", n * 7_919 % 100_000_000)),
        ("one after the other", |n| format!("{n:020}")),
        ("one cluster behind a single key", |n| if n == 0 { "a".into() } else { format!("users/of/the/house/{n:06}") }),
        ("clusters", |n| format!("{}{:06}", ["alpha/alpha/alpha/", "beta/"][usize::from(n % 4 > 0)], n)),
    ];
    for (name, shape) in shapes {
        for in_files in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let db = open(&dir);
            let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
            fill(&data, &mut 1, (0..1_200).map(shape), 8 << 10);
            if in_files {
                flush(&db);
            }
            let part = part_before_half(&data, &region());
            // What is not flushed yet, up to three of ten megabytes, is not looked at where there are files.
            assert!((0.35..0.65).contains(&part), "{name}, in files: {in_files}: {part}");
        }
    }
}

#[test]
fn history_counts_for_the_half() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    let mut revision = 1;
    fill(&data, &mut revision, (0..100).map(|n| format!("k{n:03}")), 1_000);
    let hot = user_key(b"k010");
    let mut supersedes = 12;
    for version in 2..400 {
        revision += 1;
        let change = pb::Change {
            key: hot.clone(),
            supersedes,
            create_revision: 12,
            version,
            value: vec![b'v'; 1_000].into(),
            ..Default::default()
        };
        supersedes = revision;
        let txn = TxnEffect { revision, changes: vec![change], subs: Vec::new() };
        data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
    }
    let half = data.half().expect("a half");
    assert!(half == hot || half == user_key(b"k011"), "{half:?}");
}

#[test]
fn a_region_without_two_keys_has_no_half() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    assert!(matches!(data.half(), Err(NoHalf::TooSmall)));
    fill(&data, &mut 1, ["only".to_owned()].into_iter(), 100);
    assert!(matches!(data.half(), Err(NoHalf::TooSmall)));
    fill(&data, &mut 10, ["second".to_owned()].into_iter(), 100);
    assert_eq!(data.half().expect("a half"), user_key(b"second"));
    // A region of leases, and one that begins with its only key.
    let leases = Region { id: 8, start: Bytes::from_static(&[0x10]), end: Bytes::from_static(&[0x20]), ..region() };
    assert!(matches!(RegionData::open(Arc::clone(&db), &leases, Arc::default()).half(), Err(NoHalf::TooSmall)));
    let tail = Region { id: 9, start: user_key(b"second"), ..region() };
    assert!(matches!(RegionData::open(db, &tail, Arc::default()).half(), Err(NoHalf::TooSmall)));
}
