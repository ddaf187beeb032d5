//! Outcomes under leader changes: what is answered `Applied` is there, what is answered `Dropped` never was.

use std::sync::mpsc;
use std::time::Duration;

use braid_proto::id::StoreId;
use braid_proto::pb::{Peer, Region};

use super::changes::voters;
use super::cluster::{Cluster, eventually, propose, region};
use super::kv::assert_indexed;
use crate::{ChangeRefused, Outcome, PeerChange};

/// Small and repeatable.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn outcomes_tell_the_truth_whatever_happens_to_the_leaders() {
    let mut cluster = Cluster::three();
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut asked: Vec<(String, mpsc::Receiver<Outcome>)> = Vec::new();
    for round in 0..25 {
        // To everybody who believes to lead, also to leaders that are cut off.
        for host in 1..=3 {
            let handle = cluster.handle(host, 1).unwrap();
            let term = handle.term();
            for n in 0..1 + dice.roll(20) {
                let key = format!("r{round}h{host}n{n}");
                let told = propose(&handle, term, &key, "v");
                asked.push((key, told));
            }
        }
        match dice.roll(5) {
            0 => cluster.net.isolate(1 + dice.roll(3)),
            1 => cluster.net.cut_from(1 + dice.roll(3)),
            2 => {
                let host = 1 + dice.roll(3);
                cluster.stop(host);
                cluster.start(host);
            }
            _ => cluster.net.heal(),
        }
        let hosts: Vec<u64> = (1..=3).collect();
        if round % 3 == 2 {
            cluster.net.heal();
            cluster.put_among(1, &format!("sync{round}"), "v", &hosts);
        }
    }
    cluster.net.heal();
    cluster.put(1, "end", "v");
    (1..=3).for_each(|host| cluster.await_value(host, "end", "v"));
    let mut counts = [0; 3];
    for (key, told) in asked {
        let outcome = eventually(&format!("an outcome for {key}"), || told.try_recv().ok());
        for host in 1..=3 {
            let there = cluster.get(host, &key).is_some();
            match outcome {
                Outcome::Applied => assert!(there, "{key} was applied, host {host} lacks it"),
                Outcome::Dropped => assert!(!there, "{key} was dropped, host {host} has it"),
                Outcome::Unknown => {}
            }
        }
        counts[outcome as usize] += 1;
    }
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
}

#[test]
fn every_proposal_and_question_is_answered_when_a_host_stops() {
    let mut cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    let (tell, told) = mpsc::channel();
    let asker = std::thread::spawn(move || {
        for round in 0.. {
            let mut outcomes = Vec::new();
            for n in 0..20 {
                outcomes.push(propose(&handle, term, &format!("k{round}.{n}"), "v"));
                let tell = tell.clone();
                handle.confirm_leadership(term, Box::new(move |yes| _ = tell.send(yes)));
            }
            let all = outcomes.into_iter().map(|outcome| outcome.recv().expect("every proposal is answered"));
            let all: Vec<Outcome> = all.collect();
            // The last round but for this one met a worker that was about to go, this one a worker that is gone.
            if all.iter().all(|outcome| *outcome == Outcome::Dropped) {
                break;
            }
        }
    });
    // Both kinds are under way.
    assert!(told.recv().unwrap());
    cluster.stop(leader);
    asker.join().unwrap();
    assert!(told.iter().any(|yes| !yes));
}

#[test]
fn too_many_proposals_end_the_term_instead_of_leaving_a_gap() {
    let cluster = Cluster::three();
    let (leader, handle, term) = cluster.leader(1);
    // Nothing commits: raft takes 64 MiB, some more wait, then the leader gives up.
    cluster.net.isolate(leader);
    let big = "x".repeat(4 << 20);
    let told: Vec<_> = (0..40).map(|n| (n, propose(&handle, term, &format!("k{n:02}"), &big))).collect();
    eventually("the leader gives up", || (!handle.is_leader(term)).then_some(()));
    cluster.net.heal();
    cluster.put(1, "end", "v");
    (1..=3).for_each(|host| cluster.await_value(host, "end", "v"));
    let mut refused = false;
    for (n, told) in told {
        let outcome = eventually("an outcome", || told.try_recv().ok());
        // Once one is lost, none after it is applied.
        assert!(!(refused && outcome == Outcome::Applied), "{n} was applied behind a gap");
        refused |= outcome == Outcome::Dropped;
        assert_eq!(cluster.get(1, &format!("k{n:02}")).is_some(), outcome == Outcome::Applied);
    }
    assert!(refused);
}

/// Some change of `region` that may make sense.
fn some_change(region: &Region, dice: &mut Dice, next_id: u64) -> PeerChange {
    let host = 1 + dice.roll(5);
    match region.peer_on(StoreId(host)) {
        None => PeerChange::AddLearner(Peer::learner(next_id, host)),
        Some(peer) if peer.learner && dice.roll(3) == 0 => PeerChange::Remove(StoreId(host)),
        Some(peer) => {
            let other = region.peers.iter().filter(|other| other.learner != peer.learner);
            let other = other.filter(|_| dice.roll(3) > 0).last().map(|other| other.store_id);
            let (mine, other) = (vec![host], other.into_iter().collect::<Vec<_>>());
            if peer.learner { voters(&mine, &other) } else { voters(&other, &mine) }
        }
    }
}

#[test]
fn outcomes_tell_the_truth_while_peers_come_and_go() {
    let mut total = (0, 0);
    for seed in [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03, 0x2545_F491_4F6C_DD1D] {
        let (applied, changed) = peers_come_and_go(seed);
        total = (total.0 + applied, total.1 + changed);
    }
    assert!(total.0 > 100 && total.1 >= 10, "{total:?}");
}

fn peers_come_and_go(seed: u64) -> (usize, usize) {
    let mut cluster = Cluster::new(0);
    cluster.timing.lonely = Duration::from_secs(2);
    (1..=5).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    let mut dice = Dice(seed);
    let mut asked: Vec<(String, mpsc::Receiver<Outcome>)> = Vec::new();
    let mut changes: Vec<mpsc::Receiver<Result<(), ChangeRefused>>> = Vec::new();
    let mut next_id = 100;
    for round in 0..40 {
        for host in 1..=5 {
            let Some(handle) = cluster.handle(host, 1) else { continue };
            let term = handle.term();
            for n in 0..1 + dice.roll(10) {
                let key = format!("r{round}h{host}n{n}");
                let told = propose(&handle, term, &key, "v");
                asked.push((key, told));
            }
            let region = handle.region();
            let change = some_change(&region, &mut dice, next_id);
            next_id += 1;
            let (tell, told) = mpsc::channel();
            let done = Box::new(move |ended| _ = tell.send(ended));
            handle.propose_change(term, region.region_epoch(), change, done);
            changes.push(told);
        }
        match dice.roll(6) {
            0 => cluster.net.isolate(1 + dice.roll(5)),
            1 => cluster.net.cut_from(1 + dice.roll(5)),
            2 => {
                let host = 1 + dice.roll(5);
                cluster.stop(host);
                cluster.start(host);
            }
            _ => cluster.net.heal(),
        }
        if round % 3 == 2 {
            cluster.net.heal();
            cluster.put(1, &format!("sync{round}"), "v");
        }
    }
    cluster.net.heal();
    cluster.put(1, "end", "v");
    // Everybody ends up in one configuration, or without a peer.
    let region = eventually("one configuration", || {
        let region = cluster.leader(1).1.region();
        let same = |peer: &Peer| {
            let handle = cluster.handle(peer.store_id, 1)?;
            (handle.peer() == *peer && handle.region() == region).then_some(())
        };
        let all = region.peers.iter().all(|peer| same(peer).is_some());
        // As placement would, for those that missed it.
        for node in cluster.nodes.values() {
            for (id, peer, _) in node.host.lonely(9) {
                if region.peer(peer).is_none() {
                    node.host.destroy_peer(id, peer, region.region_epoch());
                }
            }
        }
        let others = (1..=5).filter(|host| region.peer_on(StoreId(*host)).is_none());
        let gone = others.map(|host| cluster.handle(host, 1)).all(|handle| handle.is_none());
        (all && gone && !region.is_joint()).then_some(region)
    });
    let mut applied = 0;
    for peer in &region.peers {
        cluster.await_value(peer.store_id, "end", "v");
    }
    for (key, told) in asked {
        let outcome = eventually(&format!("an outcome for {key}"), || told.try_recv().ok());
        for peer in &region.peers {
            let there = cluster.get(peer.store_id, &key).is_some();
            match outcome {
                Outcome::Applied => assert!(there, "{key} was applied, host {} lacks it", peer.store_id),
                Outcome::Dropped => assert!(!there, "{key} was dropped, host {} has it", peer.store_id),
                Outcome::Unknown => {}
            }
        }
        applied += usize::from(outcome == Outcome::Applied);
    }
    let ended = changes.into_iter().map(|told| eventually("an answer to a change", || told.try_recv().ok()));
    let changed = ended.filter(Result::is_ok).count();
    for host in 1..=5 {
        if region.peer_on(StoreId(host)).is_none() {
            eventually("the data is gone", || cluster.get(host, "end").is_none().then_some(()));
        }
        assert_indexed(&cluster.nodes[&host].host.db());
    }
    (applied, changed)
}
