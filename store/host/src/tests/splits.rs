//! Regions that split while they work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use braid_proto::id::{PeerId, RegionId};
use raft::eraftpb::MessageType;

use super::cluster::{Cluster, eventually, region};
use super::kv::{Event, assert_indexed};
use super::net::is;
use crate::{Outcome, PeerHandle, SplitSpec};

fn spec(key: &'static str, child: u64) -> SplitSpec {
    let child_peer_ids = (1..=3).map(|host| child * 10 + host).collect();
    SplitSpec { key: key.into(), child_id: RegionId(child), child_peer_ids }
}

fn split(handle: &PeerHandle, spec: SplitSpec) -> Outcome {
    let (tell, told) = mpsc::channel();
    handle.propose_split(handle.term(), spec, Box::new(move |outcome| _ = tell.send(outcome)));
    told.recv().unwrap()
}

#[test]
fn both_halves_go_on_while_proposals_keep_coming() {
    let cluster = Cluster::three();
    let (leader, handle, _) = cluster.leader(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cluster = &cluster;
        let stop = &stop;
        let writers: Vec<_> = ["a", "x"]
            .into_iter()
            .map(|prefix| {
                scope.spawn(move || {
                    let mut written = 0;
                    while !stop.load(Ordering::Acquire) {
                        let key = format!("{prefix}{written}");
                        let at = cluster.nodes[&leader].host.handle_at(key.as_bytes()).unwrap();
                        cluster.put(at.region().id, &key, "v");
                        written += 1;
                    }
                    written
                })
            })
            .collect();
        cluster.await_value(leader, "a20", "v");
        assert_eq!(split(&handle, spec("m", 2)), Outcome::Applied);
        let child = cluster.leader(2).1;
        let from = child.applied_index();
        eventually("the child takes writes", || (child.applied_index() > from + 10).then_some(()));
        stop.store(true, Ordering::Release);
        for (writer, prefix) in writers.into_iter().zip(["a", "x"]) {
            let last = format!("{prefix}{}", writer.join().unwrap() - 1);
            for host in 1..=3 {
                cluster.await_value(host, &last, "v");
            }
        }
    });
    for host in 1..=3 {
        let (parent, child) = eventually("both regions", || Some((cluster.handle(host, 1)?, cluster.handle(host, 2)?)));
        assert_eq!(&parent.region().end[..], b"m");
        assert_eq!((&child.region().start[..], &child.region().end[..]), (&b"m"[..], &b""[..]));
        assert_eq!(child.region().epoch, parent.region().epoch);
        assert_eq!(child.region().region_epoch().version, 2);
        assert_eq!(child.peer().id, 20 + host);
        let events = cluster.nodes[&host].kv.regions.get(&1).unwrap().events.lock().clone();
        assert!(events.contains(&Event::Region(2)));
    }
}

#[test]
fn wrong_splits_are_refused_and_cost_no_lease() {
    let cluster = Cluster::three();
    let (_, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    assert_eq!(split(&handle, SplitSpec { child_peer_ids: vec![1], ..spec("m", 2) }), Outcome::Dropped);
    assert_eq!(split(&handle, spec("", 2)), Outcome::Dropped);
    assert!(handle.lease(term));
    assert_eq!(split(&handle, spec("m", 2)), Outcome::Applied);
    assert_eq!(split(&handle, spec("x", 3)), Outcome::Dropped);
    eventually("the lease comes back after the split", || handle.lease(term).then_some(()));
}

#[test]
fn the_lease_is_not_renewed_while_a_split_is_under_way() {
    let cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    let (tell, told) = mpsc::channel();
    {
        // The leader's apply thread stands still: the split is committed, but not applied.
        let machine = Arc::clone(&cluster.nodes[&leader].kv.regions.get(&1).unwrap());
        let _gate = machine.gate.lock();
        let last = handle.applied_index();
        handle.propose(term, "a=b".into(), Box::new(|_| ()));
        handle.propose_split(term, spec("m", 2), Box::new(move |outcome| _ = tell.send(outcome)));
        eventually("the followers have split", || {
            let mut others = (1..=3).filter(|host| *host != leader);
            others.all(|host| cluster.handle(host, 2).is_some()).then_some(())
        });
        eventually("the lease runs out while it still leads", || (!handle.lease(term)).then_some(()));
        assert!(handle.is_leader(term) && handle.applied_index() == last);
    }
    assert_eq!(told.recv().unwrap(), Outcome::Applied);
    let term = cluster.leader(1).2;
    eventually("the lease comes back", || cluster.leader(1).1.lease(term).then_some(()));
}

#[test]
fn a_host_that_missed_the_split_applies_it_from_the_log() {
    let mut cluster = Cluster::three();
    cluster.put(1, "a", "1");
    cluster.stop(3);
    let (_, handle, _) = cluster.leader(1);
    assert_eq!(split(&handle, spec("m", 2)), Outcome::Applied);
    cluster.put(1, "b", "1");
    cluster.put(2, "x", "1");
    cluster.start(3);
    cluster.await_value(3, "b", "1");
    cluster.await_value(3, "x", "1");
    assert_eq!(&cluster.handle(3, 1).unwrap().region().end[..], b"m");
    // All three count in the child.
    cluster.stop(1);
    cluster.put(2, "y", "1");
    cluster.await_value(3, "y", "1");
}

#[test]
fn a_host_that_missed_the_split_and_its_log_takes_two_snapshots() {
    let mut cluster = Cluster::three();
    cluster.keep_entries = 20;
    for host in 1..=3 {
        cluster.stop(host);
        cluster.start(host);
    }
    cluster.put(1, "z", "0");
    cluster.await_value(3, "z", "0");
    cluster.stop(3);
    let (_, handle, _) = cluster.leader(1);
    assert_eq!(split(&handle, spec("m", 2)), Outcome::Applied);
    for n in 0..200 {
        cluster.put(1, &format!("a{n}"), "1");
        cluster.put(2, &format!("x{n}"), "1");
    }
    cluster.put(2, "z", "1");
    eventually("the split left the log", || (cluster.nodes[&1].host.used_bytes() > 0).then_some(()));
    cluster.start(3);
    cluster.await_value(3, "a199", "1");
    cluster.await_value(3, "x199", "1");
    cluster.await_value(3, "z", "1");
    eventually("the parent shrinks", || (cluster.handle(3, 1)?.region().end == "m").then_some(()));
    cluster.stop(3);
    cluster.start(3);
    cluster.put(2, "end", "1");
    cluster.put(2, "z", "2");
    cluster.await_value(3, "z", "2");
    // What followed from the half that it no longer has in one piece went with it, and came back with the other.
    assert_indexed(&cluster.nodes[&3].host.db());
}

#[test]
fn a_vote_request_that_is_faster_than_the_split_is_not_lost() {
    let mut cluster = Cluster::new(0);
    // A vote request that is lost is repeated after an election timeout: make that long.
    cluster.timing.election_ticks = 12_000;
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    let (leader, handle, term) = cluster.leader(1);
    let others: Vec<u64> = (1..=3).filter(|host| *host != leader).collect();
    // Also takes care that no snapshot of the beginning is still on its way to somebody.
    cluster.put(1, "k", "v");
    (1..=3).for_each(|host| cluster.await_value(host, "k", "v"));
    // One follower is away, the other stands still just before the split: the child cannot be elected yet.
    cluster.net.isolate(others[0]);
    let machine = Arc::clone(&cluster.nodes[&others[1]].kv.regions.get(&1).unwrap());
    let gate = machine.gate.lock();
    let (ask, asked) = mpsc::channel();
    cluster.net.after(Box::new(move |_, to, message| {
        if is(message, MessageType::MsgRequestPreVote) && message.to == 20 + to {
            _ = ask.send(());
        }
    }));
    handle.propose(term, "a=b".into(), Box::new(|_| ()));
    assert_eq!(split(&handle, spec("m", 2)), Outcome::Applied);
    let child = cluster.handle(leader, 2).unwrap();
    asked.recv().unwrap();
    assert!(!child.is_leader(child.term()) && cluster.handle(others[1], 2).is_none());
    drop(gate);
    let (first, ..) = cluster.leader(2);
    assert_eq!(first, leader);
    cluster.put(2, "x", "1");
    cluster.await_value(others[1], "x", "1");
}

#[test]
fn creation_and_messages_of_the_same_region_do_not_fight() {
    for round in 0..10 {
        let cluster = Cluster::new(3);
        let new = region(1, "", "", &[1, 2, 3]);
        for host in 1..=2 {
            cluster.nodes[&host].host.create_regions(vec![new.clone()]).unwrap();
        }
        // The third host hears of it by vote requests, heartbeats and snapshots at about the time it is told.
        if round % 2 == 0 {
            cluster.leader_among(1, &[1, 2]);
        }
        cluster.nodes[&3].host.create_regions(vec![new]).unwrap();
        cluster.put(1, "k", "v");
        cluster.await_value(3, "k", "v");
    }
}

#[test]
fn a_transfer_moves_leadership_and_refuses_what_cannot_work() {
    let cluster = Cluster::three();
    cluster.put(1, "k", "v");
    let (leader, handle, term) = cluster.leader(1);
    let to = leader % 3 + 1;
    let transfer = |to: u64| {
        let (tell, told) = mpsc::channel();
        handle.transfer_leader(term, PeerId(to), Box::new(move |ended| _ = tell.send(ended)));
        told.recv().unwrap()
    };
    assert!(transfer(99).unwrap_err().contains("no voter"));
    assert!(transfer(10 + leader).unwrap_err().contains("leads already"));
    cluster.await_value(to, "k", "v");
    assert_eq!(transfer(10 + to), Ok(()));
    let machine = Arc::clone(&cluster.nodes[&to].kv.regions.get(&1).unwrap());
    let leads = |event: &Event| matches!(event, Event::Leader(later) if *later > term.0);
    eventually("the target leads", || machine.events.lock().iter().any(leads).then_some(()));
    assert!(transfer(10 + to).unwrap_err().contains("does not lead"));
}

#[test]
fn a_lagging_target_is_refused() {
    let cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    let behind = leader % 3 + 1;
    cluster.net.filter(Box::new(move |_, to, message| to != behind || !is(message, MessageType::MsgAppend)));
    for n in 0..200 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    let (tell, told) = mpsc::channel();
    handle.transfer_leader(term, PeerId(10 + behind), Box::new(move |ended| _ = tell.send(ended)));
    let why = told.recv().unwrap().unwrap_err();
    assert!(why.contains("lacks"), "{why}");
    assert!(handle.is_leader(term));
    cluster.net.heal();
    cluster.await_value(behind, "k199", "v");
}

#[test]
fn a_target_that_does_not_hear_the_word_is_told_again() {
    let cluster = Cluster::three();
    cluster.put(1, "before", "v");
    let (leader, handle, term) = cluster.leader(1);
    let to = leader % 3 + 1;
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    // As from a target that has a change of peers to apply: the first word comes to nothing.
    cluster.net.filter(Box::new(move |_, _, message| {
        !is(message, MessageType::MsgTimeoutNow) || count.fetch_add(1, Ordering::SeqCst) > 0
    }));
    let (tell, ended) = mpsc::channel();
    handle.transfer_leader(term, PeerId(10 + to), Box::new(move |how| _ = tell.send(how)));
    assert_eq!(ended.recv().unwrap(), Ok(()));
    assert!(told.load(Ordering::SeqCst) > 1);
    assert_eq!(cluster.leader(1).0, to);
    cluster.put(1, "after", "v");
}
