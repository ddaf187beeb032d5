//! The end of removed peers: however they learn of it, and whatever interrupts it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{Peer, RegionEpoch};
use raft::eraftpb::MessageType;

use super::changes::{ask, voters};
use super::cluster::{Cluster, eventually, propose, region};
use super::kv::{Event, Kv, assert_indexed};
use super::net::{dismisses, is};
use crate::destroy::{clear_data, put_cleared, put_tombstone};
use crate::log::{LogOp, LogWrite};
use crate::meta::RaftState;
use crate::{Outcome, PeerChange, recover};

/// Voters 1, 2, 3 and a learner on host 4 that has everything.
fn with_learner(lonely: Duration) -> Cluster {
    let mut cluster = Cluster::new(0);
    cluster.timing.lonely = lonely;
    (1..=4).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    cluster.await_value(4, "k", "v");
    eventually("the peer is open", || cluster.handle(4, 1));
    cluster
}

const NEVER: Duration = Duration::from_secs(3600);

fn assert_destroyed(cluster: &Cluster, host: u64) {
    eventually("the peer is destroyed", || cluster.handle(host, 1).is_none().then_some(()));
    eventually("its machine is told", || cluster.heard(host, &Event::Destroyed).then_some(()));
    eventually("its data is deleted", || cluster.get(host, "k").is_none().then_some(()));
    assert_indexed(&cluster.nodes[&host].host.db());
    let events = cluster.nodes[&host].kv.regions.get(&1).unwrap().events.lock().clone();
    assert_eq!(events.iter().filter(|event| **event == Event::Destroyed).count(), 1);
}

#[test]
fn a_peer_that_applies_its_own_removal_is_destroyed() {
    let cluster = with_learner(NEVER);
    let (leader, handle, term) = cluster.leader(1);
    // The leader commits the removal, but does not apply it and so goes on to tell the learner what is committed.
    let machine = Arc::clone(&cluster.nodes[&leader].kv.regions.get(&1).unwrap());
    let gate = machine.gate.lock();
    let blocked = propose(&handle, term, "blocked", "v");
    let (tell, told) = mpsc::channel();
    let epoch = handle.region().region_epoch();
    let remove = PeerChange::Remove(StoreId(4));
    handle.propose_change(term, epoch, remove, Box::new(move |ended| _ = tell.send(ended)));
    let last = cluster.handle(4, 1).unwrap();
    assert_destroyed(&cluster, 4);
    assert!(!last.lease(term) && last.report().is_none());
    assert_eq!(propose(&last, term, "late", "v").recv().unwrap(), Outcome::Dropped);
    assert!(handle.region().peer(PeerId(24)).is_some(), "the leader has not applied it yet");
    drop(gate);
    assert_eq!(blocked.recv().unwrap(), Outcome::Applied);
    assert_eq!(told.recv().unwrap(), Ok(()));
    cluster.put(1, "after", "v");
}

#[test]
fn the_leader_tells_a_peer_that_it_removed_it() {
    let cluster = with_learner(NEVER);
    cluster.net.filter(Box::new(|_, to, message| to != 4 || dismisses(message)));
    cluster.change(1, &PeerChange::Remove(StoreId(4)));
    assert_destroyed(&cluster, 4);
    cluster.put(1, "after", "v");
}

#[test]
fn members_tell_a_voter_that_was_away_while_it_was_removed() {
    let mut cluster = with_learner(NEVER);
    cluster.lead(1);
    cluster.stop(3);
    cluster.change(1, &voters(&[4], &[3]));
    eventually("the change is over", || (!cluster.leader(1).1.region().is_joint()).then_some(()));
    cluster.change(1, &PeerChange::Remove(StoreId(3)));
    // The leader has given up telling it.
    eventually("the region sleeps", || {
        [1, 2, 4].iter().all(|host| cluster.handle(*host, 1).unwrap().asleep()).then_some(())
    });
    cluster.start(3);
    assert!(cluster.handle(3, 1).is_some(), "it knows of nothing yet");
    assert_destroyed(&cluster, 3);
    let (_, handle, _) = cluster.leader(1);
    assert_eq!(handle.region().peers, [Peer::voter(11, 1), Peer::voter(12, 2), Peer::voter(24, 4)]);
}

#[test]
fn placement_has_a_lonely_peer_destroyed() {
    let mut cluster = with_learner(Duration::from_millis(700));
    let known = cluster.handle(4, 1).unwrap().region().region_epoch();
    cluster.stop(4);
    cluster.change(1, &PeerChange::Remove(StoreId(4)));
    let now = cluster.leader(1).1.region().region_epoch();
    cluster.net.isolate(4);
    cluster.start(4);
    let host = &cluster.nodes[&4].host;
    assert!(host.lonely(9).is_empty());
    let lonely = eventually("it is lonely", || Some(host.lonely(9)).filter(|lonely| !lonely.is_empty()));
    assert_eq!(lonely, [(RegionId(1), PeerId(24), known)]);
    assert!(host.lonely(0).is_empty());
    assert!((1..=3).all(|other| cluster.nodes[&other].host.lonely(9).is_empty()));
    // Nothing happens on the word of somebody who knows less, or of another peer.
    let older = RegionEpoch { conf_ver: known.conf_ver - 1, ..known };
    assert!(!host.destroy_peer(RegionId(1), PeerId(24), older));
    assert!(!host.destroy_peer(RegionId(1), PeerId(25), now));
    assert!(!host.destroy_peer(RegionId(2), PeerId(24), now));
    assert!(host.destroy_peer(RegionId(1), PeerId(24), now));
    assert_destroyed(&cluster, 4);
    assert!(cluster.nodes[&4].host.lonely(9).is_empty());
}

#[test]
fn a_blank_peer_that_was_destroyed_never_comes_back() {
    let mut cluster = Cluster::new(0);
    cluster.timing.lonely = Duration::from_millis(700);
    (1..=4).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    cluster.net.snapshots_to_fail.store(usize::MAX, Ordering::Release);
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    eventually("it has answered", || cluster.leader(1).1.report().filter(|report| report.catching_up == [24]));
    let met = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&met);
    cluster.net.after(Box::new(move |_, to, message| {
        if to == 4 && is(message, MessageType::MsgHeartbeat) {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }));
    eventually("it is there", || (met.load(Ordering::Acquire) > 3).then_some(()));
    cluster.net.isolate(4);
    let host = &cluster.nodes[&4].host;
    let lonely = eventually("it is lonely", || Some(host.lonely(9)).filter(|lonely| !lonely.is_empty()));
    assert_eq!(lonely, [(RegionId(1), PeerId(24), RegionEpoch::default())]);
    assert!(host.destroy_peer(RegionId(1), PeerId(24), RegionEpoch::default()));
    eventually("it is gone", || host.lonely(9).is_empty().then_some(()));
    cluster.net.heal();
    cluster.net.snapshots_to_fail.store(0, Ordering::Release);
    // Also after a restart nobody brings it back.
    for _ in 0..2 {
        let before = met.load(Ordering::Acquire);
        eventually("the leader goes on asking for it", || (met.load(Ordering::Acquire) > before + 10).then_some(()));
        assert!(cluster.handle(4, 1).is_none());
        cluster.stop(4);
        cluster.start(4);
    }
    cluster.change(1, &PeerChange::Remove(StoreId(4)));
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(34, 4)));
    cluster.await_value(4, "k", "v");
    eventually("the new peer is open", || cluster.handle(4, 1).filter(|handle| handle.peer() == Peer::learner(34, 4)));
}

#[test]
fn a_later_peer_of_the_region_takes_the_place_of_one_that_was_not_told() {
    let mut cluster = with_learner(NEVER);
    cluster.stop(4);
    cluster.change(1, &PeerChange::Remove(StoreId(4)));
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(34, 4)));
    cluster.put(1, "k", "new");
    cluster.net.filter(Box::new(|_, to, message| to != 4 || !dismisses(message)));
    cluster.start(4);
    eventually("the new peer is there", || cluster.handle(4, 1).filter(|handle| handle.peer() == Peer::learner(34, 4)));
    // What a raft snapshot brings is seen before it is indexed; what is applied after it is not.
    cluster.put(1, "after", "v");
    cluster.await_value(4, "after", "v");
    assert_eq!(cluster.get(4, "k").as_deref(), Some("new"));
    assert_indexed(&cluster.nodes[&4].host.db());
    let (_, handle, term) = cluster.leader(1);
    eventually("it can vote", || ask(&handle, term, voters(&[4], &[])).ok());
    cluster.put(1, "after", "v");
    cluster.await_value(4, "after", "v");
}

/// The last step of a destruction before the crash.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Crash {
    Tombstone,
    Log,
    Data,
    Cleared,
}

#[test]
fn a_destruction_is_finished_after_a_crash_at_any_step() {
    for crash in [Crash::Tombstone, Crash::Log, Crash::Data, Crash::Cleared] {
        let mut cluster = Cluster::new(1);
        let (left, right) = (region(1, "", "m", &[1]), region(2, "m", "", &[1]));
        cluster.create(&[left.clone(), right]);
        cluster.put(1, "a", "left");
        cluster.put(2, "x", "right");
        cluster.stop(1);
        {
            let kv = Kv::default();
            let opened = recover::open(&cluster.config(1), &kv).unwrap();
            let own = left.peers[0];
            put_tombstone(&opened.db, &left, own);
            if crash >= Crash::Log {
                let mut write = LogWrite::default();
                write.push(1, LogOp::Clean);
                opened.log.write(write, true).unwrap();
            }
            if crash >= Crash::Data {
                clear_data(&opened.db, &kv, &left, &[]).unwrap();
            }
            if crash >= Crash::Cleared {
                put_cleared(&opened.db, &left, own);
            }
        }
        for _ in 0..2 {
            cluster.start(1);
            assert!(cluster.handle(1, 1).is_none(), "{crash:?}");
            assert_eq!(cluster.get(1, "a"), None, "{crash:?}");
            assert_eq!(cluster.get(1, "x").as_deref(), Some("right"), "{crash:?}");
            assert_indexed(&cluster.nodes[&1].host.db());
            // Whoever still believes in the peer does not bring it back.
            cluster.create(std::slice::from_ref(&left));
            assert!(cluster.handle(1, 1).is_none(), "{crash:?}");
            cluster.put(2, "y", "v");
            cluster.stop(1);
        }
        // A later peer starts from nothing.
        cluster.start(1);
        let again = braid_proto::pb::Region { peers: vec![Peer::voter(91, 1)], ..left };
        cluster.create(&[again]);
        cluster.put(1, "b", "new");
        assert_eq!((cluster.get(1, "a"), cluster.get(1, "b").as_deref()), (None, Some("new")), "{crash:?}");
        cluster.stop(1);
        cluster.start(1);
        cluster.put(1, "c", "new");
    }
}

#[test]
fn votes_of_a_later_blank_peer_outlive_the_tombstone() {
    let mut cluster = Cluster::new(1);
    let old = region(1, "", "", &[1]);
    cluster.create(std::slice::from_ref(&old));
    cluster.put(1, "a", "v");
    cluster.stop(1);
    let state = RaftState { peer_id: 91, term: 70, vote: 92, commit: 0 };
    {
        let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
        let mut write = LogWrite::default();
        write.push(1, LogOp::Clean);
        write.push(1, LogOp::State(state));
        put_tombstone(&opened.db, &old, old.peers[0]);
        put_cleared(&opened.db, &old, old.peers[0]);
        opened.log.write(write, true).unwrap();
    }
    let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
    assert_eq!(opened.log.raft_state(1).unwrap(), Some(state));
    assert!(opened.regions.is_empty());
    assert!(fs::exists(cluster.folder(1)).unwrap());
}
