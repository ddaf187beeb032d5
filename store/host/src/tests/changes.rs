//! Peers come and go: learners catch up, voters are replaced, with a leader's lease and everything acknowledged intact.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use braid_proto::id::{PeerId, RegionId, StoreId, Term};
use braid_proto::pb::{Peer, Region};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, EntryType, Message, MessageType};

use super::cluster::{Cluster, eventually, propose, region};
use super::kv::{Event, assert_indexed};
use super::net::is;
use crate::{ChangeRefused, Outcome, PeerChange, PeerHandle, SplitSpec};

/// Asks for a change of the region as the handle sees it now.
pub fn ask(handle: &PeerHandle, term: Term, change: PeerChange) -> Result<(), ChangeRefused> {
    let (tell, told) = mpsc::channel();
    let epoch = handle.region().region_epoch();
    handle.propose_change(term, epoch, change, Box::new(move |ended| _ = tell.send(ended)));
    told.recv().unwrap()
}

pub fn voters(promote: &[u64], demote: &[u64]) -> PeerChange {
    let stores = |hosts: &[u64]| hosts.iter().copied().map(StoreId).collect();
    PeerChange::Voters { promote: stores(promote), demote: stores(demote) }
}

impl Cluster {
    /// Has whoever leads make the change, as soon as it can be made.
    pub fn change(&self, id: u64, change: &PeerChange) {
        eventually(&format!("{change:?} of r{id}"), || {
            let (_, handle, term) = self.leader(id);
            match ask(&handle, term, change.clone()) {
                Ok(()) => Some(()),
                Err(ChangeRefused::Invalid(why)) => panic!("{change:?}: {why}"),
                Err(_) => None,
            }
        });
    }

    /// Waits until the region as `host` knows it satisfies something.
    pub fn await_region(&self, host: u64, id: u64, what: &str, condition: impl Fn(&Region) -> bool) {
        eventually(&format!("r{id} on {host}: {what}"), || {
            let handle = self.handle(host, id)?;
            condition(&handle.region()).then_some(())
        });
    }

    /// Hands leadership of region 1 to `to`.
    pub fn lead(&self, to: u64) -> (PeerHandle, Term) {
        eventually(&format!("{to} leads"), || {
            let (leader, handle, term) = self.leader(1);
            if leader == to {
                return Some((handle, term));
            }
            let target = handle.region().peer_on(StoreId(to))?.id;
            let (tell, told) = mpsc::channel();
            handle.transfer_leader(term, PeerId(target), Box::new(move |ended| _ = tell.send(ended)));
            _ = told.recv().unwrap();
            None
        })
    }
}

/// Three voters and a host without a peer.
fn four() -> Cluster {
    let cluster = Cluster::new(4);
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster
}

#[test]
fn a_learner_catches_up_and_becomes_a_voter() {
    let cluster = four();
    for n in 0..20 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    cluster.await_value(4, "k19", "v");
    cluster.put(1, "by log", "v");
    cluster.await_value(4, "by log", "v");
    let (_, leader, _) = cluster.leader(1);
    eventually("the learner is reported as complete", || {
        leader.report().filter(|report| report.catching_up.is_empty() && report.down_peers.is_empty())
    });
    cluster.change(1, &voters(&[4], &[]));
    cluster.await_region(4, 1, "it votes", |region| region.peers[3] == Peer::voter(24, 4));
    assert_eq!(cluster.handle(4, 1).unwrap().region().region_epoch().conf_ver, 3);
    assert_eq!(cluster.handle(4, 1).unwrap().peer(), Peer::voter(24, 4));
    // Four voters need three: with one of the old ones away the new one counts.
    let mut cluster = cluster;
    let away = if cluster.leader(1).0 == 3 { 2 } else { 3 };
    cluster.stop(away);
    cluster.put(1, "three of four", "v");
    cluster.await_value(4, "three of four", "v");
    // It leads like any other.
    let (handle, term) = cluster.lead(4);
    eventually("a lease", || handle.lease(term).then_some(()));
}

#[test]
fn a_learner_whose_log_is_gone_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(0);
    cluster.keep_entries = 20;
    (1..=4).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    for n in 0..300 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    cluster.net.snapshots_to_fail.store(1, Ordering::Release);
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    cluster.await_value(4, "k299", "v");
    assert!(cluster.net.snapshots_sent.load(Ordering::Acquire) > 0);
    cluster.change(1, &voters(&[4], &[]));
    cluster.put(1, "after", "v");
    cluster.await_value(4, "after", "v");
    assert_indexed(&cluster.nodes[&4].host.db());
    // All of it is there after a restart.
    cluster.stop(4);
    cluster.start(4);
    cluster.await_region(4, 1, "it votes", |region| region.peers.contains(&Peer::voter(24, 4)));
    cluster.put(1, "later", "v");
    cluster.await_value(4, "later", "v");
}

/// Once a lease of some term was seen, none of an earlier term may be.
struct Leases(u64);

impl Leases {
    fn look(&mut self, cluster: &Cluster) {
        for handle in cluster.nodes.values().filter_map(|node| node.host.handle(RegionId(1))) {
            let term = handle.term();
            if handle.lease(term) {
                assert!(term.0 >= self.0, "a lease in term {term:?} after one in term {}", self.0);
                self.0 = term.0;
            }
        }
    }
}

#[test]
fn voters_are_replaced_under_load_and_nothing_is_lost() {
    let cluster = four();
    let stop = AtomicBool::new(false);
    let mut members = vec![(1, 11), (2, 12), (3, 13)];
    let mut spare = 4;
    let written = std::thread::scope(|scope| {
        let (cluster, stop) = (&cluster, &stop);
        let writer = scope.spawn(move || {
            let mut written = 0;
            while !stop.load(Ordering::Acquire) {
                cluster.put(1, &format!("k{written}"), "v");
                written += 1;
            }
            written
        });
        let watcher = scope.spawn(move || {
            let (mut leases, mut looks) = (Leases(0), 0_u64);
            while !stop.load(Ordering::Acquire) {
                leases.look(cluster);
                looks += 1;
            }
            looks
        });
        // Every host leaves and comes back, with a new peer each time.
        for round in 0..6 {
            let leader = cluster.leader(1).0;
            let (leaves, _) = *members.iter().find(|(host, _)| *host != leader).unwrap();
            let id = 100 + round;
            cluster.change(1, &PeerChange::AddLearner(Peer::learner(id, spare)));
            cluster.change(1, &voters(&[spare], &[leaves]));
            eventually("the joint configuration is left", || (!cluster.leader(1).1.region().is_joint()).then_some(()));
            if round % 2 == 1 {
                cluster.lead(spare);
            }
            cluster.change(1, &PeerChange::Remove(StoreId(leaves)));
            eventually("the removed peer is gone", || cluster.handle(leaves, 1).is_none().then_some(()));
            members.retain(|(host, _)| *host != leaves);
            members.push((spare, id));
            spare = leaves;
        }
        stop.store(true, Ordering::Release);
        assert!(watcher.join().unwrap() > 0);
        writer.join().unwrap()
    });
    assert!(written > 20, "{written}");
    cluster.put(1, "end", "v");
    for (host, id) in &members {
        cluster.await_value(*host, "end", "v");
        (0..written).for_each(|n| assert!(cluster.get(*host, &format!("k{n}")).is_some(), "k{n} on {host}"));
        assert_eq!(cluster.handle(*host, 1).unwrap().peer(), Peer::voter(*id, *host));
    }
    eventually("the data is gone from the spare host", || cluster.get(spare, "k0").is_none().then_some(()));
    (1..=4).for_each(|host| assert_indexed(&cluster.nodes[&host].host.db()));
}

/// Whether a message carries the end of a joint configuration.
fn leaves_joint(message: &Message) -> bool {
    message.entries.iter().any(|entry| {
        entry.get_entry_type() == EntryType::EntryConfChangeV2
            && ConfChangeV2::parse_from_bytes(&entry.data).unwrap().changes.is_empty()
    })
}

/// Voters 1, 2, 3 and a learner that has everything; then host 4 replaces 3, and nobody hears the end of it. Host 1 leads.
fn stuck_in_the_middle() -> (Cluster, PeerHandle, Term) {
    // A busy machine may cost host 1 its leadership on the way; then it begins anew.
    eventually("a change is begun and not ended", try_to_get_stuck)
}

fn try_to_get_stuck() -> Option<(Cluster, PeerHandle, Term)> {
    let cluster = four();
    cluster.put(1, "k", "v");
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    let (handle, term) = cluster.lead(1);
    cluster.net.filter(Box::new(|_, _, message| !leaves_joint(message)));
    while ask(&handle, term, voters(&[4], &[3])).is_err() {
        if !handle.is_leader(term) {
            return None;
        }
    }
    for host in 1..=4 {
        cluster.await_region(host, 1, "joint", Region::is_joint);
    }
    handle.is_leader(term).then_some((cluster, handle, term))
}

fn assert_replaced(cluster: &Cluster, hosts: &[u64]) {
    for host in hosts {
        cluster.await_region(*host, 1, "the change is over", |region| {
            region.peers[2..] == [Peer::learner(13, 3), Peer::voter(24, 4)] && !region.is_joint()
        });
        // Added, entered, left.
        assert_eq!(cluster.handle(*host, 1).unwrap().region().region_epoch().conf_ver, 4);
    }
}

#[test]
fn nothing_else_changes_in_the_middle_of_a_change() {
    let (cluster, handle, term) = stuck_in_the_middle();
    let (tell, told) = mpsc::channel();
    let spec = SplitSpec { key: "m".into(), child_id: RegionId(2), child_peer_ids: vec![21, 22, 23, 25] };
    handle.propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
    assert_eq!(told.recv().unwrap(), Outcome::Dropped);
    let refused = ask(&handle, term, PeerChange::AddLearner(Peer::learner(99, 5)));
    assert!(matches!(refused, Err(ChangeRefused::NotNow(_))), "{refused:?}");
    let (tell, told) = mpsc::channel();
    handle.transfer_leader(term, PeerId(12), Box::new(move |ended| _ = tell.send(ended)));
    assert!(told.recv().unwrap().unwrap_err().contains("change of peers"));
    // The leader has not given up: as soon as it is heard the change ends.
    cluster.net.heal();
    assert_replaced(&cluster, &[1, 2, 3, 4]);
    cluster.put(1, "after", "v");
    (1..=4).for_each(|host| cluster.await_value(host, "after", "v"));
}

#[test]
fn the_next_leader_ends_what_a_dead_one_has_begun() {
    let (mut cluster, ..) = stuck_in_the_middle();
    cluster.stop(1);
    cluster.net.heal();
    assert_replaced(&cluster, &[2, 3, 4]);
    cluster.put(1, "after", "v");
    cluster.start(1);
    assert_replaced(&cluster, &[1]);
    cluster.await_value(1, "after", "v");
}

#[test]
fn a_leader_on_its_way_out_hands_over_before_the_change_ends() {
    let (mut cluster, ..) = stuck_in_the_middle();
    cluster.stop(1);
    // Only the peer that is being demoted can be elected.
    cluster.net.filter(Box::new(|from, _, message| {
        let asks = is(message, MessageType::MsgRequestVote) || is(message, MessageType::MsgRequestPreVote);
        !asks || from == 3
    }));
    eventually("the outgoing voter leads", || {
        let events = cluster.nodes[&3].kv.regions.get(&1)?.events.lock().clone();
        events.iter().any(|event| matches!(event, Event::Leader(_))).then_some(())
    });
    cluster.net.heal();
    assert_replaced(&cluster, &[2, 3, 4]);
    eventually("somebody with a vote leads", || [2, 4].contains(&cluster.leader(1).0).then_some(()));
    cluster.put(1, "after", "v");
}

/// The outgoing voter alone has heard of the end of the change, and leads after the death of host 1: as soon as that end
/// is committed it leads without a vote.
fn led_without_a_vote(passes: impl Fn(u64, &Message) -> bool + Send + Sync + 'static) -> Cluster {
    let (mut cluster, handle, _) = stuck_in_the_middle();
    let last = handle.applied_index() + 1;
    cluster.net.filter(Box::new(move |_, to, message| to == 3 || !leaves_joint(message)));
    let heard = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&heard);
    cluster.net.after(Box::new(move |from, _, message| {
        if from == 3 && is(message, MessageType::MsgAppendResponse) && message.index >= last {
            tell.store(true, Ordering::Release);
        }
    }));
    eventually("the outgoing voter has the end in its log", || heard.load(Ordering::Acquire).then_some(()));
    cluster.stop(1);
    cluster.net.filter(Box::new(move |from, to, message| {
        let asks = is(message, MessageType::MsgRequestVote) || is(message, MessageType::MsgRequestPreVote);
        (!asks || from == 3) && passes(to, message)
    }));
    // Maybe for milliseconds: it hands over at once if it can.
    eventually("a leader becomes a learner", || {
        let led =
            cluster.nodes[&3].kv.regions.get(&1)?.events.lock().iter().any(|event| matches!(event, Event::Leader(_)));
        (led && cluster.handle(3, 1)?.peer() == Peer::learner(13, 3)).then_some(())
    });
    cluster
}

#[test]
fn a_leader_that_has_lost_its_vote_hands_over() {
    let cluster = led_without_a_vote(|_, _| true);
    cluster.net.heal();
    let new = eventually("a voter leads", || Some(cluster.leader(1).0).filter(|leader| *leader != 3));
    assert!([2, 4].contains(&new));
    cluster.put(1, "after", "v");
    cluster.await_value(3, "after", "v");
}

#[test]
fn a_handover_without_a_winner_leaves_nobody_bound_to_who_lost_its_vote() {
    let cluster = led_without_a_vote(|_, _| true);
    // Whom it hands over to is heard by it alone: it gives its role up to somebody who is not elected.
    cluster.net.filter(Box::new(|_, to, message| {
        let asks = is(message, MessageType::MsgRequestVote) || is(message, MessageType::MsgRequestPreVote);
        !asks || to == 3
    }));
    let handle = cluster.handle(3, 1).unwrap();
    eventually("it leads no more", || (!handle.is_leader(handle.term()) && handle.leader().is_none()).then_some(()));
    cluster.net.heal();
    let (new, ..) = cluster.leader_among(1, &[2, 4]);
    assert!([2, 4].contains(&new));
    cluster.put(1, "after", "v");
    cluster.await_value(3, "after", "v");
}

#[test]
fn a_leader_that_loses_vote_and_role_says_so() {
    // Its handover reaches nobody, and nobody's answers reach it: it gives up, and the others are bound to its host.
    let quiet = Arc::new(AtomicBool::new(false));
    let silenced = Arc::clone(&quiet);
    let cluster = led_without_a_vote(move |to, message| {
        !is(message, MessageType::MsgTimeoutNow) && (to != 3 || !silenced.load(Ordering::Acquire))
    });
    quiet.store(true, Ordering::Release);
    let (handle, term) = (cluster.handle(3, 1).unwrap(), cluster.handle(3, 1).unwrap().term());
    let outcome = propose(&handle, term, "lost", "v");
    eventually("it gives up", || (!handle.is_leader(term)).then_some(()));
    // Still deaf; but the others may campaign again.
    cluster.net.filter(Box::new(|_, to, message| to != 3 && !is(message, MessageType::MsgTimeoutNow)));
    let (new, ..) = cluster.leader_among(1, &[2, 4]);
    assert!([2, 4].contains(&new));
    cluster.net.heal();
    cluster.put(1, "after", "v");
    cluster.await_value(3, "after", "v");
    assert_ne!(outcome.recv().unwrap(), Outcome::Unknown);
}

#[test]
fn changes_that_would_do_harm_are_refused() {
    let mut cluster = Cluster::new(0);
    cluster.timing.peer_down = Duration::from_secs(1);
    (1..=5).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster.put(1, "k", "v");
    let (handle, term) = cluster.lead(1);
    let add = |host| PeerChange::AddLearner(Peer::learner(20 + host, host));
    let invalid = |change: PeerChange| matches!(ask(&handle, term, change), Err(ChangeRefused::Invalid(_)));
    assert!(invalid(voters(&[], &[1])) && invalid(PeerChange::Remove(StoreId(1))) && invalid(add(2)));
    assert!(invalid(PeerChange::Remove(StoreId(2))), "a voter is demoted first");
    assert_eq!(ask(&handle, Term(term.0 - 1), add(4)), Err(ChangeRefused::NotLeader));
    let follower = cluster.handle(2, 1).unwrap();
    assert_eq!(ask(&follower, term, add(4)), Err(ChangeRefused::NotLeader));
    let (tell, told) = mpsc::channel();
    let mut old = handle.region().region_epoch();
    old.conf_ver -= 1;
    handle.propose_change(term, old, add(4), Box::new(move |ended| _ = tell.send(ended)));
    assert_eq!(told.recv().unwrap(), Err(ChangeRefused::Epoch));
    // A learner that is not there yet does not vote.
    cluster.net.isolate(4);
    cluster.change(1, &add(4));
    let refused = ask(&handle, term, voters(&[4], &[]));
    assert!(matches!(refused, Err(ChangeRefused::NotNow(_))), "{refused:?}");
    cluster.net.heal();
    cluster.change(1, &voters(&[4], &[]));
    // Without 2 and 3 the voters would be 1 and 4, of which 4 is gone.
    cluster.change(1, &add(5));
    cluster.await_value(5, "k", "v");
    let (handle, term) = cluster.lead(1);
    cluster.stop(4);
    eventually("the lost voter is noticed", || handle.report().filter(|report| report.down_peers == [24]));
    let refused = ask(&handle, term, voters(&[], &[2, 3]));
    assert!(matches!(refused, Err(ChangeRefused::NotNow(_))), "{refused:?}");
    assert!(!handle.region().is_joint());
    cluster.put(1, "after", "v");
}

#[test]
fn a_learner_without_everything_is_reported_until_it_has() {
    let cluster = four();
    cluster.put(1, "k", "v");
    cluster.net.snapshots_to_fail.store(usize::MAX, Ordering::Release);
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    let report = || cluster.leader(1).1.report();
    eventually("it is catching up", || report().filter(|report| report.catching_up == [24]));
    cluster.net.snapshots_to_fail.store(0, Ordering::Release);
    eventually("it has caught up", || report().filter(|report| report.catching_up.is_empty()));
    cluster.await_value(4, "k", "v");
}

#[test]
fn a_region_with_a_learner_sleeps_and_wakes_for_changes() {
    let cluster = four();
    cluster.put(1, "k", "v");
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    cluster.await_value(4, "k", "v");
    let asleep = || (1..=4).all(|host| cluster.handle(host, 1).is_some_and(|handle| handle.asleep()));
    eventually("everybody sleeps", || asleep().then_some(()));
    cluster.change(1, &voters(&[4], &[if cluster.leader(1).0 == 3 { 2 } else { 3 }]));
    for host in 1..=4 {
        cluster.await_region(host, 1, "the change is over", |region| region.region_epoch().conf_ver == 4);
    }
    eventually("everybody sleeps again", || asleep().then_some(()));
    let counted = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&counted);
    cluster.net.after(Box::new(move |_, _, _| _ = seen.fetch_add(1, Ordering::AcqRel)));
    let outcome = {
        let (_, handle, term) = cluster.leader(1);
        propose(&handle, term, "after", "v")
    };
    assert_eq!(outcome.recv().unwrap(), Outcome::Applied);
    (1..=4).for_each(|host| cluster.await_value(host, "after", "v"));
    assert!(counted.load(Ordering::Acquire) > 0);
}
