//! Leases: when they hold, when they must not (holes H13, H14, H15, H26; rules O7, O8, S2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use braid_proto::id::PeerId;
use raft::eraftpb::MessageType;

use super::cluster::{Cluster, eventually, propose, region};
use super::net::is;
use crate::Outcome;
use crate::support::Now;

#[test]
fn an_idle_leader_keeps_its_lease_and_hardly_speaks() {
    let mut cluster = Cluster::new(0);
    // Long enough for a machine that is busy with other things.
    cluster.timing.support.period = Duration::from_secs(4);
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    let (_, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    (1..=3).for_each(|host| cluster.await_value(host, "k", "v"));
    let heartbeats = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heartbeats);
    cluster.net.filter(Box::new(move |_, _, message| {
        counted.fetch_add(usize::from(is(message, MessageType::MsgHeartbeat)), Ordering::AcqRel);
        true
    }));
    let start = Now::monotonic();
    let ticks = |n: u32| cluster.timing.tick * n;
    eventually("a hundred ticks pass", || {
        assert!(handle.lease(term), "an idle leader lost its lease");
        let known = |host| cluster.handle(host, 1).unwrap().leader() == Some(handle.peer());
        assert!((1..=3).all(known), "a follower of an idle leader forgot it");
        (Now::monotonic().since(start) > ticks(100)).then_some(())
    });
    // Two followers, one heartbeat each in twenty ticks; a leader that does not rest sends two hundred.
    let sent = heartbeats.load(Ordering::Acquire);
    assert!(sent <= 40, "{sent} heartbeats in a hundred ticks");
    assert_eq!(cluster.leader(1).2, term);
    cluster.put(1, "k", "v");
}

#[test]
fn no_lease_of_an_old_leader_overlaps_with_a_new_leader() {
    let cluster = Cluster::three();
    for round in 0..12 {
        let (old, handle, term) = cluster.leader(1);
        eventually("the lease", || handle.lease(term).then_some(()));
        match round % 3 {
            0 => cluster.net.isolate(old),
            // It hears nothing, but is heard: its followers go on following until it gives up by itself.
            1 => cluster.net.cut_to(old),
            _ => cluster.net.cut_from(old),
        }
        let others: Vec<u64> = (1..=3).filter(|host| *host != old).collect();
        // As early as can be seen: raft elects before the machine is told.
        eventually("another leader", || {
            let elected = others.iter().any(|host| {
                let other = cluster.handle(*host, 1).unwrap();
                other.is_leader(other.term()) && other.term() > term
            });
            let leased = handle.lease(term);
            // Sampled in this order: a lease seen after an election was seen is a hole.
            assert!(!(elected && leased), "round {round}: two leaders may serve");
            elected.then_some(())
        });
        cluster.net.heal();
        cluster.put(1, &format!("k{round}"), "v");
    }
}

#[test]
fn a_transfer_ends_the_lease_of_the_term_even_if_it_fails() {
    let cluster = Cluster::three();
    cluster.put(1, "k", "v");
    let (leader, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    let to = leader % 3 + 1;
    cluster.await_value(to, "k", "v");
    let told_now = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&told_now);
    // The message is held back; the target never learns of it.
    let watch = handle.clone();
    let leased_when_told = Arc::new(AtomicBool::new(false));
    let leased = Arc::clone(&leased_when_told);
    cluster.net.filter(Box::new(move |_, _, message| {
        if is(message, MessageType::MsgTimeoutNow) {
            seen.store(true, Ordering::Release);
            leased.fetch_or(watch.lease(term), Ordering::AcqRel);
            return false;
        }
        true
    }));
    let (tell, told) = mpsc::channel();
    handle.transfer_leader(term, PeerId(10 + to), Box::new(move |ended| _ = tell.send(ended)));
    let ended = told.recv().unwrap();
    assert!(ended.unwrap_err().contains("leadership stays"));
    assert!(told_now.load(Ordering::Acquire) && !leased_when_told.load(Ordering::Acquire));
    assert!(handle.is_leader(term), "the failed transfer cost the leadership itself");
    cluster.put(1, "after", "v");
    assert_eq!(cluster.leader(1).2, term);
    // A fresh quorum has answered since; it makes no lease in this term any more.
    let (tell, told) = mpsc::channel();
    handle.confirm_leadership(term, Box::new(move |yes| tell.send(yes).unwrap()));
    assert!(told.recv().unwrap());
    assert!(!handle.lease(term));
}

#[test]
fn support_alone_makes_no_lease_without_the_voters_having_been_seen() {
    let cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    // All raft answers to the leader are lost, support goes on: followers stay, but nothing new counts.
    cluster.net.filter(Box::new(move |_, to, _| to != leader));
    // While it wants nothing, support is all it needs; with something to commit it notices.
    let outcome = propose(&handle, term, "lost", "v");
    eventually("the leader gives up for want of a quorum", || (!handle.is_leader(term)).then_some(()));
    assert!(!handle.lease(term));
    cluster.net.heal();
    cluster.put(1, "k", "v");
    assert_ne!(outcome.recv().unwrap(), Outcome::Unknown);
    let (_, handle, term) = cluster.leader(1);
    eventually("a lease again", || handle.lease(term).then_some(()));
}

#[test]
fn a_restarted_follower_does_not_vote_against_a_lease_it_has_forgotten() {
    let mut cluster = Cluster::three();
    for round in 0..3 {
        let (leader, handle, term) = cluster.leader(1);
        eventually("the lease", || handle.lease(term).then_some(()));
        let others: Vec<u64> = (1..=3).filter(|host| *host != leader).collect();
        // One follower restarts, which takes less than the support lasts; the other one campaigns meanwhile.
        cluster.net.isolate(leader);
        cluster.stop(others[0]);
        cluster.start(others[0]);
        eventually("another leader", || {
            let elected = others.iter().any(|host| {
                let other = cluster.handle(*host, 1).unwrap();
                other.campaign();
                other.is_leader(other.term()) && other.term() > term
            });
            let leased = handle.lease(term);
            assert!(!(elected && leased), "round {round}: two leaders may serve");
            elected.then_some(())
        });
        cluster.net.heal();
        cluster.put(1, &format!("k{round}"), "v");
    }
}

#[test]
fn answers_that_are_late_cost_no_leadership_while_the_stores_support_it() {
    let mut cluster = Cluster::new(0);
    cluster.timing.support.period = Duration::from_secs(2);
    (1..=3).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    let (leader, handle, term) = cluster.leader(1);
    eventually("the lease", || handle.lease(term).then_some(()));
    cluster.net.filter(Box::new(move |_, to, _| to != leader));
    let outcome = propose(&handle, term, "k", "w");
    let start = Now::monotonic();
    let pause = cluster.timing.election() * 5 / 2;
    eventually("more than two election timeouts", || (Now::monotonic().since(start) > pause).then_some(()));
    cluster.net.heal();
    assert_eq!(outcome.recv().unwrap(), Outcome::Applied);
    assert_eq!(handle.term(), term);
}
