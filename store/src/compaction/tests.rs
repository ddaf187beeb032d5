//! When a pass is made, what it goes through, and that it really drops.

use std::sync::mpsc;

use braid_proto::key::user_key;
use braid_proto::pb::{self, Region, RegionEpoch, TxnEffect};
use rocksdb::{IteratorMode, Options, WriteBatch};
use tempfile::TempDir;

use super::*;
use crate::engine::{EngineOptions, RegionData, Unread, column_families};

const LIMIT: Duration = Duration::from_secs(20);
const MB: u64 = 1 << 20;

#[test]
fn a_pass_is_worth_it_when_a_quarter_may_go_and_that_is_not_little() {
    assert!(!is_worth_it(200 * MB, 0, 0, 1_000), "nothing is compacted");
    assert!(!is_worth_it(200 * MB, 0, 249, 1_000));
    assert!(is_worth_it(200 * MB, 0, 250, 1_000));
    assert!(!is_worth_it(127 * MB, 0, 250, 1_000), "less than 32 MiB");
    assert!(is_worth_it(128 * MB, 0, 250, 1_000));
    assert!(!is_worth_it(200 * MB, 500, 500, 1_000), "done before");
    assert!(!is_worth_it(200 * MB, 500, 600, 1_000));
    assert!(is_worth_it(200 * MB, 500, 625, 1_000));
    assert!(is_worth_it(200 * MB, 0, 250, 0), "an idle store may know a boundary and nothing newer");
    assert!(is_worth_it(u64::MAX, 0, i64::MAX, i64::MAX));
}

#[test]
fn a_pass_that_is_waited_for_is_made_once_the_boundary_allows_it() {
    let waits = |drop_below| Heard { drop_below, ..Default::default() };
    assert!(!is_awaited(waits(0), 500, 0));
    assert!(is_awaited(waits(500), 500, 499));
    assert!(!is_awaited(waits(500), 499, 0), "the boundary is still below");
    assert!(!is_awaited(waits(500), 600, 500), "done");
}

fn file(level: i32, start: &str, end: &str, size: usize) -> LiveFile {
    LiveFile {
        column_family_name: HISTORY.to_owned(),
        name: String::new(),
        size,
        level,
        start_key: Some(start.into()),
        end_key: Some(end.into()),
        num_entries: 1,
        num_deletions: 0,
    }
}

#[test]
fn slices_follow_the_files_of_the_largest_level_and_cover_everything() {
    let slice = |start: Option<&str>, end: Option<&str>| (start.map(Vec::from), end.map(Vec::from));
    assert_eq!(slices(Vec::new(), 10), [slice(None, None)], "what lies in memory only");
    assert_eq!(slices(vec![file(0, "a", "z", 99), file(0, "a", "z", 99)], 10), [slice(None, None)]);
    let files = vec![
        file(0, "a", "z", 50),
        file(5, "c", "t", 4),
        file(6, "m", "p", 7),
        file(6, "a", "c", 6),
        file(6, "d", "k", 6),
        file(6, "q", "y", 3),
    ];
    assert_eq!(slices(files, 10), [slice(None, Some("k")), slice(Some("k\0"), Some("y")), slice(Some("y\0"), None)]);
    let files = vec![file(6, "a", "b", 10), file(6, "c", "d", 10)];
    assert_eq!(slices(files, 10), [slice(None, Some("b")), slice(Some("b\0"), Some("d")), slice(Some("d\0"), None)]);
}

struct Scene {
    _dir: TempDir,
    db: Arc<DB>,
    boundary: Arc<Boundary>,
    data: RegionData,
    passes: mpsc::Receiver<()>,
    compaction: Compaction,
}

/// A byte that no compressor foresees.
fn noise(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 24) as u8
}

impl Scene {
    /// One key with a version at each revision from 2 to `newest`, each of `bytes`.
    fn new(newest: i64, bytes: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let boundary = Arc::new(Boundary::default());
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let engine = EngineOptions { block_cache_bytes: 4 << 20, memtable_bytes: 1 << 20 };
        let db = DB::open_cf_descriptors(&options, dir.path(), column_families(&engine, &boundary));
        let db = Arc::new(db.expect("a database"));
        boundary.open(&db).expect("readable");
        let region = Region { id: 7, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), ..Default::default() };
        let data = RegionData::open(Arc::clone(&db), &region, Arc::clone(&boundary));
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for revision in 2..=newest {
            let value: Vec<u8> = std::iter::repeat_with(|| noise(&mut state)).take(bytes).collect();
            let change = pb::Change {
                key: user_key(b"k"),
                supersedes: if revision == 2 { 0 } else { revision - 1 },
                create_revision: 2,
                version: revision - 1,
                value: value.into(),
                ..Default::default()
            };
            let txn = TxnEffect { revision, changes: vec![change], ..Default::default() };
            data.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
        let (pass, passes) = mpsc::channel();
        let compaction =
            Compaction::start(Arc::clone(&db), Arc::clone(&boundary), Duration::ZERO, move || _ = pass.send(()));
        Self { _dir: dir, db, boundary, data, passes, compaction: compaction.expect("a thread") }
    }

    fn versions(&self) -> usize {
        let history = self.db.cf_handle(HISTORY).expect("a family of the engine");
        self.db.iterator_cf(history, IteratorMode::Start).count()
    }

    fn wait_for_boundary(&self, boundary: i64) {
        let begin = Instant::now();
        while self.boundary.get() < boundary {
            assert!(begin.elapsed() < LIMIT, "the boundary is not raised");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_wait_for_the_disk_makes_a_pass_however_little_there_is() {
    let scene = Scene::new(20, 10);
    scene.compaction.look(Heard { compacted: 15, drop_below: 0, newest: 20 });
    scene.wait_for_boundary(15);
    scene.compaction.look(Heard { compacted: 15, drop_below: 15, newest: 20 });
    scene.passes.recv_timeout(LIMIT).expect("a pass");
    assert_eq!(scene.compaction.dropped_below(), 15);
    // The versions of 14 to 19: superseded at 15 to 20.
    assert_eq!(scene.versions(), 6);
    assert_eq!(scene.data.get_at(&user_key(b"k"), 14), Err(Unread::Compacted));
    assert_eq!(scene.data.get_at(&user_key(b"k"), 15).map(|found| found.map(|it| it.mod_revision)), Ok(Some(15)));
}

#[test]
fn a_pass_is_made_by_itself_once_it_frees_enough() {
    let (newest, bytes) = (600, 128 << 10);
    let scene = Scene::new(newest, bytes);
    scene.compaction.look(Heard { compacted: 100, drop_below: 0, newest });
    scene.wait_for_boundary(100);
    scene.compaction.look(Heard { compacted: 400, drop_below: 0, newest });
    scene.passes.recv_timeout(LIMIT).expect("a pass");
    assert_eq!(scene.compaction.dropped_below(), 400);
    assert_eq!(scene.versions(), 201);
    assert!(scene.passes.try_recv().is_err(), "one pass: the first boundary freed too little");
}

#[test]
fn stopping_does_not_wait_for_a_pass_and_nothing_heard_falls() {
    let scene = Scene::new(3, 10);
    scene.compaction.look(Heard { compacted: 3, drop_below: 0, newest: 3 });
    scene.wait_for_boundary(3);
    scene.compaction.look(Heard { compacted: 2, drop_below: 0, newest: 2 });
    scene.compaction.stop();
    assert_eq!(scene.boundary.get(), 3);
    scene.compaction.look(Heard { compacted: 3, drop_below: 3, newest: 3 });
    assert!(scene.passes.try_recv().is_err());
}
