//! Electing, replicating, restarting, catching up by log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use raft::eraftpb::MessageType;

use super::cluster::{Cluster, eventually, propose, region};
use crate::Outcome;

#[test]
fn three_hosts_elect_a_leader_and_replicate() {
    let cluster = Cluster::three();
    for n in 0..50 {
        cluster.put(1, &format!("k{n}"), &format!("v{n}"));
    }
    for host in 1..=3 {
        cluster.await_value(host, "k49", "v49");
        assert_eq!(cluster.get(host, "k0").as_deref(), Some("v0"));
    }
    let (leader, handle, term) = cluster.leader(1);
    assert_eq!(handle.report().unwrap().term, term.0);
    for host in (1..=3).filter(|host| *host != leader) {
        let follower = cluster.handle(host, 1).unwrap();
        assert!(follower.report().is_none() && !follower.lease(term));
        assert_eq!(follower.leader(), Some(handle.peer()));
        assert_eq!(propose(&follower, term, "x", "y").recv().unwrap(), Outcome::Dropped);
    }
    assert_eq!(propose(&handle, term, "x", "y").recv().unwrap(), Outcome::Applied);
}

#[test]
fn what_is_committed_travels_with_entries_and_by_itself_only_when_none_come() {
    const PUTS: usize = 200;
    let cluster = Cluster::three();
    cluster.put(1, "k", "v");
    let empty = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&empty);
    cluster.net.filter(Box::new(move |_, _, message| {
        if message.get_msg_type() == MessageType::MsgAppend && message.entries.is_empty() {
            counted.fetch_add(1, Ordering::AcqRel);
        }
        true
    }));
    for n in 0..PUTS {
        cluster.put(1, "k", &n.to_string());
    }
    // Two followers would be told each time.
    let told = empty.load(Ordering::Acquire);
    assert!(told < PUTS, "{told} empty appends for {PUTS} entries");
    // Heartbeats would carry it too, and so would an election, which a stall without heartbeats may cost.
    let mut last = PUTS;
    eventually("the last one is told by itself", || {
        last += 1;
        let (_, _, term) = cluster.leader(1);
        cluster.net.filter(Box::new(|_, _, message| message.get_msg_type() != MessageType::MsgHeartbeat));
        cluster.put(1, "k", &last.to_string());
        (1..=3).for_each(|host| cluster.await_value(host, "k", &last.to_string()));
        cluster.net.heal();
        (cluster.leader(1).2 == term).then_some(())
    });
}

#[test]
fn a_restart_keeps_everything_and_counts_the_starts() {
    let mut cluster = Cluster::three();
    for round in 1..=3u64 {
        for n in 0..10 {
            cluster.put(1, &format!("k{round}.{n}"), "v");
        }
        for host in 1..=3 {
            cluster.stop(host);
        }
        for host in 1..=3 {
            cluster.start(host);
            assert_eq!(cluster.nodes[&host].host.incarnation().0, round + 1);
        }
    }
    cluster.put(1, "end", "v");
    for host in 1..=3 {
        cluster.await_value(host, "end", "v");
        for round in 1..=3 {
            assert_eq!(cluster.get(host, &format!("k{round}.9")).as_deref(), Some("v"));
        }
    }
}

#[test]
fn a_single_voter_leads_at_once_also_after_a_restart() {
    let mut cluster = Cluster::new(1);
    cluster.create(&[region(1, "", "", &[1])]);
    cluster.put(1, "k", "v");
    cluster.stop(1);
    cluster.start(1);
    let (_, handle, term) = cluster.leader(1);
    assert!(handle.lease(term));
    assert_eq!(cluster.get(1, "k").as_deref(), Some("v"));
}

#[test]
fn a_host_that_was_away_catches_up_by_log() {
    let mut cluster = Cluster::three();
    cluster.put(1, "before", "v");
    cluster.await_value(3, "before", "v");
    // A leader that is elected before all hosts know of the region may have sent one to the last host.
    let sent = cluster.net.snapshots_sent.load(Ordering::Acquire);
    cluster.stop(3);
    for n in 0..100 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    cluster.start(3);
    cluster.await_value(3, "k99", "v");
    assert_eq!(cluster.get(3, "k0").as_deref(), Some("v"));
    assert_eq!(cluster.net.snapshots_sent.load(Ordering::Acquire), sent);
}

#[test]
fn many_regions_live_side_by_side() {
    let cluster = Cluster::new(3);
    let crossed = vec![region(30, "b", "d", &[1]), region(31, "m", "", &[1]), region(32, "a", "c", &[1])];
    assert_eq!(cluster.nodes[&1].host.create_regions(crossed).unwrap_err(), "r32 would overlap r30");
    assert!(cluster.nodes[&1].host.handles().is_empty(), "all or nothing");
    let keys = ["", "b", "d", "f", "h", "j", "l", "n", ""];
    let regions: Vec<_> = keys.windows(2).zip(1..).map(|(ends, id)| region(id, ends[0], ends[1], &[1, 2, 3])).collect();
    cluster.create(&regions);
    for (region, key) in (1..=8).zip(["a", "b", "e", "g", "i", "k", "m", "z"]) {
        cluster.put(region, key, "v");
        let handle = cluster.nodes[&2].host.handle_at(key.as_bytes()).unwrap();
        assert_eq!(handle.region().id, region);
    }
    cluster.await_value(2, "z", "v");
    let host = &cluster.nodes[&1].host;
    assert_eq!(host.handles().len(), 8);
    host.create_regions(regions).unwrap();
    let why = host.create_regions(vec![region(20, "a", "c", &[1])]).unwrap_err();
    assert!(why.contains("would overlap r1") || why.contains("would overlap r2"), "{why}");
    assert!(host.create_regions(vec![region(21, "zz", "z", &[1])]).unwrap_err().contains("holds no keys"));
    assert!(host.create_regions(vec![region(22, "", "", &[2])]).unwrap_err().contains("has no peer on host 1"));
    assert_eq!(host.handles().len(), 8);
}

#[test]
fn leadership_is_confirmed_by_a_quorum_and_by_nothing_less() {
    let cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    let ask = || {
        let (tell, told) = std::sync::mpsc::channel();
        handle.confirm_leadership(term, Box::new(move |yes| tell.send(yes).unwrap()));
        told
    };
    let answers: Vec<_> = (0..100).map(|_| ask()).collect();
    assert!(answers.into_iter().all(|answer| answer.recv().unwrap()));
    cluster.net.isolate(leader);
    assert!(!ask().recv().unwrap());
    eventually("the isolated leader steps down", || (!handle.is_leader(term)).then_some(()));
    assert!(!ask().recv().unwrap());
}
