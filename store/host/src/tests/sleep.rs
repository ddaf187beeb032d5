//! Peers that sleep cost nothing, and wake whenever it matters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use braid_proto::id::{PeerId, Term};

use super::cluster::{Cluster, eventually, propose, region};
use crate::support::Now;
use crate::{Outcome, PeerHandle, SplitSpec};

/// Three hosts with one region that has a value and sleeps everywhere; support that a busy machine does not cost.
fn asleep() -> (Cluster, u64, PeerHandle, Term) {
    let mut cluster = Cluster::new(0);
    cluster.timing.support.period = Duration::from_secs(2);
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    (1..=3).for_each(|host| cluster.await_value(host, "k", "v"));
    let (leader, handle, term) = cluster.leader(1);
    all_asleep(&cluster, 1);
    (cluster, leader, handle, term)
}

fn all_asleep(cluster: &Cluster, region: u64) {
    let hosts: Vec<u64> = cluster.nodes.keys().copied().collect();
    eventually("everybody sleeps", || {
        hosts.iter().all(|host| cluster.handle(*host, region).unwrap().asleep()).then_some(())
    });
}

fn others(leader: u64) -> Vec<u64> {
    (1..=3).filter(|host| *host != leader).collect()
}

#[test]
fn sleepers_say_nothing_and_lease_and_leader_stay() {
    let (cluster, _, handle, term) = asleep();
    let messages = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&messages);
    cluster.net.filter(Box::new(move |_, _, _| {
        counted.fetch_add(1, Ordering::AcqRel);
        true
    }));
    let start = Now::monotonic();
    eventually("two hundred ticks pass", || {
        assert!(handle.lease(term), "a sleeping leader lost its lease");
        (Now::monotonic().since(start) > cluster.timing.tick * 200).then_some(())
    });
    assert!(messages.load(Ordering::Acquire) <= 4, "no more than a visit of the patrol");
    assert!((1..=3).all(|host| cluster.handle(host, 1).unwrap().leader() == Some(handle.peer())));
    assert_eq!(handle.term(), term);
}

#[test]
fn a_proposal_wakes_the_leader_and_its_entries_the_followers() {
    let (cluster, _, handle, term) = asleep();
    assert_eq!(propose(&handle, term, "k", "w").recv().unwrap(), Outcome::Applied);
    (1..=3).for_each(|host| cluster.await_value(host, "k", "w"));
    all_asleep(&cluster, 1);
    assert_eq!(handle.term(), term);
}

#[test]
fn a_question_wakes_the_leader() {
    let (cluster, _, handle, term) = asleep();
    let (tell, told) = std::sync::mpsc::channel();
    handle.confirm_leadership(term, Box::new(move |yes| tell.send(yes).unwrap()));
    assert!(told.recv().unwrap());
    all_asleep(&cluster, 1);
}

#[test]
fn a_transfer_and_a_split_wake_the_leader() {
    let (cluster, leader, handle, term) = asleep();
    let to = leader % 3 + 1;
    let (tell, told) = std::sync::mpsc::channel();
    handle.transfer_leader(term, PeerId(10 + to), Box::new(move |ended| tell.send(ended).unwrap()));
    told.recv().unwrap().unwrap();
    let (now_leads, handle, term) = cluster.leader(1);
    assert_eq!(now_leads, to);
    all_asleep(&cluster, 1);
    let (tell, told) = std::sync::mpsc::channel();
    let spec = SplitSpec { key: "m".into(), child_id: braid_proto::id::RegionId(2), child_peer_ids: vec![21, 22, 23] };
    handle.propose_split(term, spec, Box::new(move |outcome| tell.send(outcome).unwrap()));
    assert_eq!(told.recv().unwrap(), Outcome::Applied);
    cluster.put(2, "z", "v");
    all_asleep(&cluster, 1);
    all_asleep(&cluster, 2);
}

#[test]
fn a_leader_isolated_in_its_sleep_loses_its_lease_before_another_leads() {
    for cut in 0..3 {
        let (cluster, leader, handle, term) = asleep();
        assert!(handle.lease(term));
        match cut {
            0 => cluster.net.isolate(leader),
            1 => cluster.net.cut_to(leader),
            _ => cluster.net.cut_from(leader),
        }
        eventually("another leader", || {
            let elected = others(leader).iter().any(|host| {
                let other = cluster.handle(*host, 1).unwrap();
                other.is_leader(other.term()) && other.term() > term
            });
            assert!(!(elected && handle.lease(term)), "two leaders may serve");
            elected.then_some(())
        });
        eventually("the old leader gives up", || (!handle.is_leader(term)).then_some(()));
        cluster.net.heal();
        cluster.put(1, "k", "w");
        all_asleep(&cluster, 1);
    }
}

#[test]
fn a_leader_that_stops_while_all_sleep_is_replaced() {
    let (mut cluster, leader, _, term) = asleep();
    cluster.stop(leader);
    let (_, handle, newer) = cluster.leader_among(1, &others(leader));
    assert!(newer > term);
    assert_eq!(propose(&handle, newer, "k", "w").recv().unwrap(), Outcome::Applied);
}

#[test]
fn a_follower_that_restarts_wakes_the_leader_and_leaves_it_in_place() {
    let (mut cluster, leader, handle, term) = asleep();
    let follower = others(leader)[0];
    cluster.stop(follower);
    cluster.start(follower);
    // It knows of no leader until it hears from one, and nobody proposes anything.
    eventually("the follower knows the leader", || {
        (cluster.handle(follower, 1).unwrap().leader() == Some(handle.peer())).then_some(())
    });
    eventually("the lease", || handle.lease(term).then_some(()));
    all_asleep(&cluster, 1);
    assert_eq!(handle.term(), term, "nobody was elected");
}

#[test]
fn a_store_that_is_down_keeps_nobody_awake_and_is_told_what_it_missed() {
    let mut cluster = Cluster::new(0);
    cluster.timing.support.period = Duration::from_secs(2);
    cluster.timing.peer_down = Duration::from_secs(1);
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    (1..=3).for_each(|host| cluster.await_value(host, "k", "v"));
    let (leader, handle, term) = cluster.leader(1);
    all_asleep(&cluster, 1);
    let [away, stays] = others(leader)[..] else { unreachable!() };
    cluster.stop(away);
    eventually("it is reported", || (handle.report()?.down_peers == [10 + away]).then_some(()));
    all_asleep(&cluster, 1);
    assert!(handle.lease(term), "a quorum is there");
    assert_eq!(propose(&handle, term, "k", "w").recv().unwrap(), Outcome::Applied);
    cluster.await_value(stays, "k", "w");
    all_asleep(&cluster, 1);
    assert_eq!(handle.report().unwrap().down_peers, [10 + away], "sleep did not change who is down");
    cluster.start(away);
    cluster.await_value(away, "k", "w");
    all_asleep(&cluster, 1);
    assert!(handle.report().unwrap().down_peers.is_empty());
    assert_eq!(handle.term(), term);
}

#[test]
fn long_sleep_makes_nobody_look_down() {
    let mut cluster = Cluster::new(0);
    cluster.timing.support.period = Duration::from_secs(2);
    cluster.timing.peer_down = Duration::from_secs(1);
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    let (_, handle, term) = cluster.leader(1);
    all_asleep(&cluster, 1);
    let start = Now::monotonic();
    eventually("longer than a peer may be silent", || {
        (Now::monotonic().since(start) > Duration::from_secs(2)).then_some(())
    });
    for n in 0..50 {
        assert_eq!(propose(&handle, term, "k", &n.to_string()).recv().unwrap(), Outcome::Applied);
        assert!(handle.report().unwrap().down_peers.is_empty());
    }
}

#[test]
fn a_stall_of_everything_costs_no_leader() {
    const REGIONS: u64 = 60;
    let mut cluster = Cluster::new(0);
    cluster.timing.support.period = Duration::from_millis(600);
    (1..=3).for_each(|host| cluster.start(host));
    let key = |id: u64| if id == 0 || id == REGIONS { String::new() } else { format!("{id:03}") };
    let regions: Vec<_> = (1..=REGIONS).map(|id| region(id, &key(id - 1), &key(id), &[1, 2, 3])).collect();
    cluster.create(&regions);
    (1..=REGIONS).for_each(|id| all_asleep(&cluster, id));
    let terms: Vec<_> = (1..=REGIONS).map(|id| cluster.leader(id).2).collect();
    {
        // Workers stand still when they ask for support; longer than all promises and an election timeout.
        let _gate = cluster.net.gate.write();
        let start = Now::monotonic();
        eventually("the stall", || (Now::monotonic().since(start) > Duration::from_millis(1500)).then_some(()));
    }
    for (id, term) in (1..=REGIONS).zip(terms) {
        let (_, handle, now_leads) = cluster.leader(id);
        eventually("the lease", || handle.lease(now_leads).then_some(()));
        all_asleep(&cluster, id);
        assert_eq!(handle.term(), term, "region {id} has another leader");
    }
}
