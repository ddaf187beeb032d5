//! A replica of the target that has not come to the merge: it applies it late, or a raft snapshot takes it past it.

use super::*;
use crate::absorb::Absorbed;
use crate::destroy::clear_data;
use crate::mail::SnapshotDir;
use crate::meta::ApplyState;
use crate::peer::Install;
use crate::snapshot::{put_intent, replace_data, write_normal};
use crate::tests::snapshots::received;

/// As [`two`], with logs that are truncated soon.
fn short_logs() -> Cluster {
    let mut cluster = Cluster::new(0);
    cluster.keep_entries = 20;
    (1..=3).for_each(|host| cluster.start(host));
    fill(&cluster);
    (1..=3).for_each(|host| cluster.await_value(host, "a", "left"));
    (1..=3).for_each(|host| cluster.await_value(host, "x", "right"));
    cluster
}

/// Freezes 2 for 1 everywhere, and merges without the target's peer on the host that is returned.
fn merge_without_one(cluster: &Cluster) -> u64 {
    let frozen = cluster.freeze(2, 1);
    cluster.await_frozen(2, frozen, &[1, 2, 3]);
    let source = cluster.leader(2).1.region();
    let (leader, handle, term) = cluster.leader(1);
    let behind = leader % 3 + 1;
    cluster.net.filter(Box::new(move |_, _, message| !feeds(message, 10 + behind)));
    assert_eq!(merge(&handle, term, &source), Ok(()));
    behind
}

#[test]
fn a_target_that_lags_applies_the_merge_late() {
    let mut cluster = two();
    let behind = merge_without_one(&cluster);
    let others: Vec<u64> = (1..=3).filter(|host| *host != behind).collect();
    cluster.put_among(1, "y", "after", &others);
    // The others are gone; what is left does nothing, and stays, also through a restart.
    others.iter().for_each(|host| cluster.await_merged(2, 1, *host));
    let last = cluster.handle(behind, 2).unwrap();
    let known = RegionEpoch { conf_ver: 9, version: 9 };
    assert!(!cluster.nodes[&behind].host.destroy_peer(RegionId(2), PeerId(20 + behind), known));
    drop(last);
    cluster.stop(behind);
    cluster.start(behind);
    assert!(cluster.handle(behind, 2).unwrap().frozen().is_some());
    assert_eq!(cluster.get(behind, "x").as_deref(), Some("right"));
    cluster.net.heal();
    cluster.await_merged(2, 1, behind);
    cluster.await_value(behind, "y", "after");
    assert_eq!(cluster.get(behind, "x").as_deref(), Some("right"));
    assert_indexed(&cluster.nodes[&behind].host.db());
    assert_eq!(cluster.net.snapshots_sent.load(Ordering::Acquire), 0);
}

fn cut_the_log(cluster: &Cluster, id: u64, key: &str, behind: u64) {
    let others: Vec<u64> = (1..=3).filter(|host| *host != behind).collect();
    for n in 0..200 {
        cluster.put_among(id, &format!("{key}{n}"), "1", &others);
    }
}

#[test]
fn a_target_that_lags_too_far_gets_a_snapshot_which_ends_the_source() {
    let mut cluster = short_logs();
    let behind = merge_without_one(&cluster);
    cut_the_log(&cluster, 1, "y", behind);
    cluster.put_among(1, "x", "new", &[1, 2, 3]);
    assert!(cluster.handle(behind, 2).is_some());
    cluster.net.heal();
    cluster.await_value(behind, "y199", "1");
    cluster.await_value(behind, "x", "new");
    assert!(cluster.net.snapshots_sent.load(Ordering::Acquire) > 0);
    eventually("the source is gone", || cluster.handle(behind, 2).is_none().then_some(()));
    eventually("its machine is told", || {
        cluster.nodes[&behind].kv.regions.get(&2)?.events.lock().contains(&Event::Destroyed).then_some(())
    });
    cluster.put(1, "z", "v");
    cluster.await_value(behind, "z", "v");
    assert_indexed(&cluster.nodes[&behind].host.db());
    cluster.stop(behind);
    assert!(!log_of(&cluster, behind, 2));
    cluster.start(behind);
    cluster.put(1, "zz", "v");
    cluster.await_value(behind, "zz", "v");
    assert_eq!(cluster.get(behind, "x").as_deref(), Some("new"));
}

#[test]
fn a_snapshot_of_a_target_that_has_split_again_ends_the_source_as_well() {
    // At the old border, or inside of what was taken in.
    for border in ["m", "p"] {
        let mut cluster = short_logs();
        cluster.put(2, "n", "1");
        cluster.put(2, "w", "old");
        (1..=3).for_each(|host| cluster.await_value(host, "w", "old"));
        let behind = merge_without_one(&cluster);
        let others: Vec<u64> = (1..=3).filter(|host| *host != behind).collect();
        let (_, handle, term) = cluster.leader_among(1, &others);
        // The thaw that looks right: the target is past the epoch, and does not hold the range.
        let (tell, told) = mpsc::channel();
        let spec = SplitSpec { key: border.into(), child_id: RegionId(3), child_peer_ids: vec![31, 32, 33] };
        handle.propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
        assert_eq!(told.recv().unwrap(), Outcome::Applied);
        let host = &cluster.nodes[&behind].host;
        assert_eq!(host.proof_of_thaw(RegionId(2)), None);
        let last = cluster.handle(behind, 2).unwrap();
        assert!(thaw(&last, last.term(), &handle.region()).is_err());
        others.iter().for_each(|host| cluster.await_merged(2, 1, *host));
        // Both logs are cut, so the host gets two snapshots.
        cut_the_log(&cluster, 1, "b", behind);
        cut_the_log(&cluster, 3, "v", behind);
        cluster.put_among(3, "w", "new", &others);
        cluster.net.heal();
        cluster.await_value(behind, "b199", "1");
        cluster.await_value(behind, "v199", "1");
        cluster.await_value(behind, "w", "new");
        assert_eq!(cluster.get(behind, "n").as_deref(), Some("1"));
        assert!(cluster.handle(behind, 2).is_none());
        // What a raft snapshot brings is seen before it is indexed; what is applied after it is not.
        cluster.put(1, "c", "v");
        cluster.put(3, "z", "v");
        cluster.await_value(behind, "c", "v");
        cluster.await_value(behind, "z", "v");
        assert_indexed(&cluster.nodes[&behind].host.db());
        cluster.stop(behind);
        cluster.start(behind);
        cluster.put(3, "zz", "v");
        cluster.await_value(behind, "zz", "v");
        assert_eq!(cluster.get(behind, "n").as_deref(), Some("1"));
    }
}

#[test]
fn a_source_that_was_thawed_elsewhere_follows() {
    let cluster = short_logs();
    let behind = cluster.leader(2).0 % 3 + 1;
    let others: Vec<u64> = (1..=3).filter(|host| *host != behind).collect();
    let frozen = cluster.freeze(2, 1);
    cluster.await_frozen(2, frozen, &[1, 2, 3]);
    // Neither region reaches the host any more; the target may lag as well.
    cluster.net.filter(Box::new(move |_, _, message| !feeds(message, 10 + behind) && !feeds(message, 20 + behind)));
    let (_, into, into_term) = cluster.leader_among(1, &others);
    assert_eq!(bump(&into, into_term, frozen.epoch), Ok(()));
    let proof = into.region();
    eventually("it is thawed", || {
        let (_, handle, term) = cluster.leader_among(2, &others);
        thaw(&handle, term, &proof).ok()
    });
    cut_the_log(&cluster, 2, "y", behind);
    cluster.net.heal();
    cluster.await_value(behind, "y199", "1");
    eventually("the snapshot is not frozen", || cluster.handle(behind, 2)?.frozen().is_none().then_some(()));
    cluster.put(1, "b", "v");
    cluster.await_value(behind, "b", "v");
}

#[test]
fn a_target_that_a_host_never_heard_of_ends_the_source_with_its_first_snapshot() {
    let mut cluster = Cluster::new(0);
    cluster.keep_entries = 20;
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "m", &[1, 2, 3]), region(5, "m", "", &[1, 2, 3])]);
    cluster.put(1, "a", "v");
    cluster.put(5, "x", "old");
    (1..=3).for_each(|host| cluster.await_value(host, "x", "old"));
    let (leader, handle, term) = cluster.leader(1);
    let behind = leader % 3 + 1;
    let others: Vec<u64> = (1..=3).filter(|host| *host != behind).collect();
    cluster.net.filter(Box::new(move |_, _, message| !feeds(message, 10 + behind)));
    let (tell, told) = mpsc::channel();
    let spec = SplitSpec { key: "k".into(), child_id: RegionId(2), child_peer_ids: vec![21, 22, 23] };
    handle.propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
    assert_eq!(told.recv().unwrap(), Outcome::Applied);
    let frozen = cluster.freeze(5, 2);
    cluster.await_frozen(5, frozen, &[1, 2, 3]);
    // The target was never there, and may come: the source stays.
    let known = RegionEpoch { conf_ver: 9, version: 9 };
    assert!(!cluster.nodes[&behind].host.destroy_peer(RegionId(5), PeerId(50 + behind), known));
    let source = cluster.leader(5).1.region();
    let (_, into, into_term) = cluster.leader_among(2, &others);
    assert_eq!(merge(&into, into_term, &source), Ok(()));
    cut_the_log(&cluster, 1, "b", behind);
    cut_the_log(&cluster, 2, "y", behind);
    cluster.put_among(2, "x", "new", &others);
    cluster.net.heal();
    cluster.await_value(behind, "b199", "1");
    cluster.await_value(behind, "y199", "1");
    cluster.await_value(behind, "x", "new");
    eventually("the source is gone", || cluster.handle(behind, 5).is_none().then_some(()));
    eventually("the target is there", || (cluster.handle(behind, 2)?.region().start == "k").then_some(()));
    // As above.
    cluster.put(1, "c", "v");
    cluster.put(2, "z", "v");
    cluster.await_value(behind, "c", "v");
    cluster.await_value(behind, "z", "v");
    assert_indexed(&cluster.nodes[&behind].host.db());
    cluster.stop(behind);
    cluster.start(behind);
    cluster.put(2, "zz", "v");
    cluster.await_value(behind, "zz", "v");
}

/// The last step, of an installation that ends a frozen source, before the crash.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Crash {
    Intent,
    Log,
    SourceLog,
    Rest,
    Data,
    Normal,
}

#[test]
fn a_source_that_a_snapshot_ends_is_ended_after_a_crash_at_any_step() {
    for crash in [Crash::Intent, Crash::Log, Crash::SourceLog, Crash::Rest, Crash::Data, Crash::Normal] {
        let mut cluster = Cluster::new(1);
        cluster.create(&[region(1, "", "m", &[1]), region(2, "m", "", &[1])]);
        for (id, key) in [(1, "a"), (2, "n"), (2, "x")] {
            cluster.put(id, key, "old");
        }
        cluster.freeze(2, 1);
        let (target, source) = (cluster.leader(1).1.region(), cluster.leader(2).1.region());
        cluster.stop(1);
        {
            let kv = Kv::default();
            let opened = recover::open(&cluster.config(1), &kv).unwrap();
            assert!(opened.regions.iter().any(|found| found.region == *source && found.frozen.is_some()));
            let dir = opened.snap_dir.join("in-1");
            // The target has taken it in and was split inside of it.
            let epoch = Some(RegionEpoch { conf_ver: 1, version: 4 });
            let now = Region { end: "p".into(), epoch, ..(*target).clone() };
            let mut manifest = received(&dir, &now);
            manifest.absorbed = vec![2];
            let (index, term) = (5000, 50);
            let raft_state = RaftState { peer_id: 11, term, vote: 0, commit: index };
            let install = Install {
                handle: PeerHandle::detached(&now),
                region: now.clone(),
                replaced: Some((*target).clone()),
                manifest: manifest.clone(),
                dir: SnapshotDir(None),
                apply: ApplyState::at(index, term),
                raft_state,
            };
            let rest = Region { start: "p".into(), ..(*source).clone() };
            let ended = Absorbed { region: source.clone(), own: source.peers[0], rest: Some(rest.clone()) };
            put_intent(&opened.db, &install, "in-1", &[ended]).unwrap();
            let clean = |id: u64, state: Option<RaftState>| {
                let mut write = LogWrite::default();
                write.push(id, LogOp::Clean);
                state.into_iter().for_each(|state| write.push(id, LogOp::State(state)));
                opened.log.write(write, true).unwrap();
            };
            if crash >= Crash::Log {
                clean(1, Some(raft_state));
            }
            if crash >= Crash::SourceLog {
                clean(2, None);
            }
            if crash >= Crash::Rest {
                clear_data(&opened.db, &kv, &rest, &[]).unwrap();
            }
            if crash >= Crash::Data {
                replace_data(&opened.db, &kv, Some(&target), &now, &manifest, &dir).unwrap();
            }
            if crash >= Crash::Normal {
                write_normal(&opened.db, &now, &manifest.absorbed).unwrap();
            }
        }
        for _ in 0..2 {
            cluster.start(1);
            assert!(cluster.handle(1, 2).is_none(), "{crash:?}");
            assert_eq!(&cluster.handle(1, 1).unwrap().region().end[..], b"p", "{crash:?}");
            for key in ["a", "n", "x"] {
                assert_eq!(cluster.get(1, key), None, "{crash:?}: {key}");
            }
            assert_eq!(cluster.get(1, "new").as_deref(), Some("from snapshot"), "{crash:?}");
            assert_indexed(&cluster.nodes[&1].host.db());
            cluster.put(1, "b", "v");
            // What was behind the border is somebody else's now, who may come.
            cluster.create(&[region(3, "p", "", &[1])]);
            cluster.put(3, "y", "v");
            cluster.stop(1);
        }
        assert!(!log_of(&cluster, 1, 2), "{crash:?}");
    }
}
