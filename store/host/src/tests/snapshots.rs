//! Catching up past the log, and what a crash in the middle of it leaves.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::pb::{Region, SnapshotFile, SnapshotManifest};
use rocksdb::{Options, SstFileWriter};

use super::cluster::{Cluster, eventually, get, region};
use super::kv::{CF, Kv, assert_indexed};
use crate::StateMachine;
use crate::log::{LogOp, LogWrite};
use crate::mail::SnapshotDir;
use crate::meta::{ApplyState, RaftState};
use crate::peer::Install;
use crate::recover;
use crate::snapshot::{checksum, put_intent, replace_data, write_normal};

/// Leaves host 3 behind by more than the log of the others holds.
fn fall_behind(cluster: &mut Cluster) {
    cluster.keep_entries = 20;
    for host in 1..=3 {
        if cluster.nodes.contains_key(&host) {
            cluster.stop(host);
        }
        cluster.start(host);
    }
    cluster.put(1, "old", "1");
    cluster.await_value(3, "old", "1");
    cluster.stop(3);
    cluster.put(1, "old", "2");
    for n in 0..300 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    eventually("the log is truncated on both hosts", || {
        let truncated = |host: u64| {
            let db = cluster.nodes[&host].host.db();
            let state = db.get_cf(db.cf_handle("host").unwrap(), crate::meta::Key::ApplyState(1).encode()).unwrap();
            ApplyState::decode(&state.unwrap()).unwrap().truncated_index
        };
        (truncated(1) > 200 && truncated(2) > 200).then_some(())
    });
}

#[test]
fn a_host_too_far_behind_catches_up_by_snapshot() {
    let mut cluster = Cluster::three();
    fall_behind(&mut cluster);
    // Every way a snapshot can end is reported: two failures do not wedge the follower.
    cluster.net.snapshots_to_fail.store(2, Ordering::Release);
    for sender in [1, 2] {
        cluster.nodes[&sender].kv.mark.store(42, Ordering::Release);
    }
    cluster.start(3);
    cluster.await_value(3, "k299", "v");
    assert_eq!(cluster.get(3, "old").as_deref(), Some("2"));
    assert_eq!(cluster.nodes[&3].kv.marks_taken.lock().last(), Some(&42), "the sender's mark came with the data");
    assert!(cluster.net.snapshots_sent.load(Ordering::Acquire) > 0);
    cluster.put(1, "after", "v");
    cluster.await_value(3, "after", "v");
    for host in 1..=3 {
        assert_indexed(&cluster.nodes[&host].host.db());
    }
    for host in 1..=3 {
        let snap = cluster.folder(host).join("snap");
        eventually("snapshot files are removed", || fs::read_dir(&snap).unwrap().next().is_none().then_some(()));
    }
    cluster.stop(3);
    cluster.start(3);
    cluster.put(1, "later", "v");
    cluster.await_value(3, "later", "v");
}

#[test]
fn a_new_host_without_the_region_gets_it_by_snapshot() {
    let mut cluster = Cluster::new(2);
    cluster.keep_entries = 20;
    for host in 1..=2 {
        cluster.stop(host);
        cluster.start(host);
    }
    // The region has a peer on host 3 from the start, but that host was never told.
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    for n in 0..300 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    cluster.start(3);
    cluster.await_value(3, "k299", "v");
    let handle = eventually("the region is in the table", || cluster.handle(3, 1));
    assert_eq!((handle.peer().id, handle.region().peers.len()), (13, 3));
    cluster.put(1, "after", "v");
    cluster.await_value(3, "after", "v");
    // Its vote counts like any other.
    cluster.stop(1);
    cluster.put(1, "without 1", "v");
    cluster.await_value(3, "without 1", "v");
}

/// An SST file with one row, as a received snapshot has it, and what installs it.
pub(super) fn received(dir: &Path, region: &Region) -> SnapshotManifest {
    fs::create_dir_all(dir).unwrap();
    let path = dir.join("0.sst");
    let options = Options::default();
    let mut file = SstFileWriter::create(&options);
    file.open(&path).unwrap();
    file.put("new", "from snapshot").unwrap();
    file.finish().unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    let crc32 = checksum(&path).unwrap();
    SnapshotManifest {
        region: Some(region.clone()),
        files: vec![SnapshotFile { cf: CF.to_owned(), bytes, crc32 }],
        mark: 7,
        ..SnapshotManifest::default()
    }
}

/// The last step of an installation before the crash.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Crash {
    Intent,
    Log,
    Deletion,
    /// The files are in; what follows from them is not made.
    Files,
    Data,
    Normal,
}

#[test]
fn an_installation_is_finished_after_a_crash_at_any_step() {
    for crash in [Crash::Intent, Crash::Log, Crash::Deletion, Crash::Files, Crash::Data, Crash::Normal] {
        let mut cluster = Cluster::new(1);
        let old = region(1, "", "", &[1]);
        cluster.create(std::slice::from_ref(&old));
        cluster.put(1, "gone", "old");
        cluster.stop(1);
        let (index, term) = (5000, 50);
        {
            let kv = Kv::default();
            let opened = recover::open(&cluster.config(1), &kv).unwrap();
            let dir = opened.snap_dir.join("in-1");
            let manifest = received(&dir, &old);
            let raft_state = RaftState { peer_id: 11, term, vote: 0, commit: index };
            let install = Install {
                handle: crate::PeerHandle::detached(&old),
                region: old.clone(),
                replaced: Some(old.clone()),
                manifest: manifest.clone(),
                dir: SnapshotDir(None),
                apply: ApplyState::at(index, term),
                raft_state,
            };
            put_intent(&opened.db, &install, "in-1", &[]).unwrap();
            if crash >= Crash::Log {
                let mut write = LogWrite::default();
                write.push(1, LogOp::Clean);
                write.push(1, LogOp::State(raft_state));
                opened.log.write(write, true).unwrap();
            }
            if crash >= Crash::Deletion {
                let none = SnapshotManifest::default();
                replace_data(&opened.db, &kv, Some(&old), &old, &none, &dir).unwrap();
            }
            if crash >= Crash::Files {
                kv.fail_to_index.store(true, Ordering::Release);
                replace_data(&opened.db, &kv, Some(&old), &old, &manifest, &dir).unwrap_err();
                assert_eq!(get(&opened.db, "new").as_deref(), Some("from snapshot"));
            }
            if crash >= Crash::Data {
                replace_data(&opened.db, &kv, Some(&old), &old, &manifest, &dir).unwrap();
            }
            if crash >= Crash::Normal {
                write_normal(&opened.db, &old, &[]).unwrap();
            }
        }
        cluster.start(1);
        let marks: &[i64] = if crash < Crash::Normal { &[7] } else { &[] };
        assert_eq!(*cluster.nodes[&1].kv.marks_taken.lock(), marks, "{crash:?}: known before the data is used");
        assert_eq!(cluster.get(1, "gone"), None, "{crash:?}");
        assert_eq!(cluster.get(1, "new").as_deref(), Some("from snapshot"), "{crash:?}");
        assert_indexed(&cluster.nodes[&1].host.db());
        assert!(fs::read_dir(cluster.folder(1).join("snap")).unwrap().next().is_none(), "{crash:?}");
        cluster.put(1, "after", "v");
        assert!(cluster.handle(1, 1).unwrap().applied_index() > index, "{crash:?}");
        assert!(cluster.handle(1, 1).unwrap().term().0 > term, "{crash:?}");
    }
}

#[test]
fn a_newer_vote_outlives_an_interrupted_installation() {
    let mut cluster = Cluster::new(1);
    let old = region(1, "", "", &[1, 2]);
    cluster.create(std::slice::from_ref(&old));
    cluster.stop(1);
    {
        let kv = Kv::default();
        let opened = recover::open(&cluster.config(1), &kv).unwrap();
        let install = Install {
            handle: crate::PeerHandle::detached(&old),
            region: old.clone(),
            replaced: Some(old.clone()),
            manifest: received(&opened.snap_dir.join("in-1"), &old),
            dir: SnapshotDir(None),
            apply: ApplyState::at(5000, 50),
            raft_state: RaftState { peer_id: 11, term: 50, vote: 0, commit: 5000 },
        };
        let mut write = LogWrite::default();
        write.push(1, LogOp::State(RaftState { peer_id: 11, term: 60, vote: 12, commit: 5 }));
        opened.log.write(write, true).unwrap();
        put_intent(&opened.db, &install, "in-1", &[]).unwrap();
    }
    let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
    let state = opened.log.raft_state(1).unwrap();
    assert_eq!(state, Some(RaftState { peer_id: 11, term: 60, vote: 12, commit: 5000 }));
    assert_eq!(get(&opened.db, "new").as_deref(), Some("from snapshot"));
}

#[test]
fn a_snapshot_whose_files_are_lost_is_refused() {
    let mut cluster = Cluster::new(1);
    let old = region(1, "", "", &[1]);
    cluster.create(std::slice::from_ref(&old));
    cluster.stop(1);
    {
        let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
        let dir = opened.snap_dir.join("in-1");
        let install = Install {
            handle: crate::PeerHandle::detached(&old),
            region: old.clone(),
            replaced: None,
            manifest: received(&dir, &old),
            dir: SnapshotDir(None),
            apply: ApplyState::at(5000, 50),
            raft_state: RaftState { peer_id: 11, term: 50, vote: 0, commit: 5000 },
        };
        put_intent(&opened.db, &install, "in-1", &[]).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
    let error = cluster.try_start(1).unwrap_err().to_string();
    assert!(error.contains("lacks file 0 of a raft snapshot"), "{error}");
}

#[test]
fn deleting_a_range_touches_nothing_beside_it() {
    let cluster = Cluster::new(1);
    let db = cluster.nodes[&1].host.db();
    let cf = db.cf_handle(CF).unwrap();
    for key in ["a", "b", "c", "d"] {
        db.put_cf(cf, key, "v").unwrap();
    }
    let kv: Arc<dyn StateMachine> = Arc::new(Kv::default());
    for range in kv.data_ranges(&region(1, "b", "d", &[1])) {
        crate::snapshot::clear(&db, &range).unwrap();
    }
    let left: Vec<_> = ["a", "b", "c", "d"].into_iter().filter(|key| get(&db, key).is_some()).collect();
    assert_eq!(left, ["a", "d"]);
    for range in kv.data_ranges(&region(1, "b", "", &[1])) {
        crate::snapshot::clear(&db, &range).unwrap();
    }
    assert_eq!((get(&db, "a").is_some(), get(&db, "d").is_some()), (true, false));
}
