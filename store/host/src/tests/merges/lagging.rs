//! A replica of the target that has not come to the merge: it applies it late, or a raft snapshot takes it past it.

use super::*;

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
        cluster.put(3, "z", "v");
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
