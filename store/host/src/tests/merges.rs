//! Regions that become one: whatever lags, dies or changes its mind meanwhile.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use braid_proto::id::{PeerId, RegionId, StoreId, Term};
use braid_proto::pb::{Peer, Region, RegionEpoch};
use raft::eraftpb::{Entry, MessageType};

use super::changes::ask;
use super::cluster::{Cluster, eventually, propose, region};
use super::kv::{Event, Kv, assert_indexed, merge_row};
use super::net::is;
use crate::log::{LogOp, LogWrite};
use crate::meta::RaftState;
use crate::{ChangeRefused, Frozen, Outcome, PeerChange, PeerHandle, SplitSpec, recover};

mod chaos;
mod lagging;

type Answer = Result<(), ChangeRefused>;

fn wait(step: impl FnOnce(crate::Changed)) -> Answer {
    let (tell, told) = mpsc::channel();
    step(Box::new(move |ended| _ = tell.send(ended)));
    told.recv().unwrap()
}

fn freeze(handle: &PeerHandle, term: Term, target: &Region) -> Answer {
    wait(|done| handle.propose_freeze(term, target.clone(), done))
}

fn thaw(handle: &PeerHandle, term: Term, proof: &Region) -> Answer {
    wait(|done| handle.propose_thaw(term, proof.clone(), done))
}

fn merge(handle: &PeerHandle, term: Term, source: &Region) -> Answer {
    wait(|done| handle.propose_merge(term, source.clone(), done))
}

fn bump(handle: &PeerHandle, term: Term, epoch: RegionEpoch) -> Answer {
    wait(|done| handle.propose_bump(term, epoch, done))
}

/// Regions 1 up to `m` and 2 behind it, on hosts 1 to 3, with some data.
fn two() -> Cluster {
    let cluster = Cluster::new(3);
    fill(&cluster);
    cluster
}

fn fill(cluster: &Cluster) {
    cluster.create(&[region(1, "", "m", &[1, 2, 3]), region(2, "m", "", &[1, 2, 3])]);
    cluster.put(1, "a", "left");
    cluster.put(2, "x", "right");
}

impl Cluster {
    /// Freezes `source` for `target` as it is now.
    fn freeze(&self, source: u64, target: u64) -> Frozen {
        let (handle, target) = eventually(&format!("r{source} is frozen"), || {
            let (_, handle, term) = self.leader(source);
            let target = self.leader(target).1.region();
            match freeze(&handle, term, &target) {
                Ok(()) => Some((handle, target)),
                Err(ChangeRefused::Invalid(why)) => panic!("{why}"),
                Err(_) => None,
            }
        });
        let frozen = Frozen { target: target.region_id(), epoch: target.region_epoch() };
        assert_eq!(handle.frozen(), Some(frozen));
        frozen
    }

    fn await_frozen(&self, source: u64, frozen: Frozen, hosts: &[u64]) {
        for host in hosts {
            eventually(&format!("r{source} is frozen on {host}"), || {
                (self.handle(*host, source)?.frozen() == Some(frozen)).then_some(())
            });
        }
    }

    /// Merges as a store does that has drained both.
    fn merge(&self, source: u64, target: u64, hosts: &[u64]) {
        let frozen = self.freeze(source, target);
        self.await_frozen(source, frozen, hosts);
        let region = self.leader_among(source, hosts).1.region();
        let (_, handle, term) = self.leader_among(target, hosts);
        assert_eq!(merge(&handle, term, &region), Ok(()));
    }

    fn await_merged(&self, source: u64, target: u64, host: u64) {
        eventually(&format!("r{source} is gone on {host}"), || self.handle(host, source).is_none().then_some(()));
        let kv = &self.nodes[&host].kv;
        eventually("the target is told", || {
            kv.regions.get(&target)?.events.lock().contains(&Event::Merged(source)).then_some(())
        });
    }
}

/// What is left of the log of `region` on a host that is down.
fn log_of(cluster: &Cluster, host: u64, region: u64) -> bool {
    let opened = recover::open(&cluster.config(host), &Kv::default()).unwrap();
    opened.log.span(region).is_some() || opened.log.raft_state(region).unwrap().is_some()
}

#[test]
fn either_neighbour_takes_in_the_other_one() {
    for (source, target, version) in [(2, 1, 3), (1, 2, 3)] {
        let mut cluster = two();
        let before = cluster.leader(target);
        eventually("the target's lease", || before.1.lease(before.2).then_some(()));
        let last = cluster.handle(1, source).unwrap();
        cluster.merge(source, target, &[1, 2, 3]);
        assert!(before.1.lease(before.2), "the target's lease goes on");
        assert_eq!(propose(&last, last.term(), "late", "v").recv().unwrap(), Outcome::Dropped);
        for host in 1..=3 {
            cluster.await_merged(source, target, host);
            let whole = cluster.handle(host, target).unwrap().region();
            assert_eq!((&whole.start[..], &whole.end[..]), (&b""[..], &b""[..]));
            assert_eq!(whole.region_epoch(), RegionEpoch { conf_ver: 1, version });
            assert_eq!(cluster.get(host, "a").as_deref(), Some("left"));
            assert_eq!(cluster.get(host, "x").as_deref(), Some("right"));
            let row = merge_row(&region(source, if source == 2 { "m" } else { "" }, "", &[]));
            assert_eq!(cluster.get(host, &row), Some(target.to_string()));
            let events = |id: u64| cluster.nodes[&host].kv.regions.get(&id).unwrap().events.lock().clone();
            let told: Vec<Event> = events(target)
                .into_iter()
                .filter(|event| matches!(event, Event::Region(_) | Event::Merged(_) | Event::Frozen(_)))
                .collect();
            assert_eq!(told, [Event::Region(version), Event::Merged(source)]);
            let ended =
                events(source).into_iter().filter(|event| !matches!(event, Event::Leader(_) | Event::Follower(..)));
            assert_eq!(ended.collect::<Vec<_>>(), [Event::Region(2), Event::Frozen(Some(target)), Event::Destroyed]);
        }
        cluster.put(target, "b", "after");
        cluster.put(target, "y", "after");
        for host in 1..=3 {
            cluster.await_value(host, "y", "after");
            assert_indexed(&cluster.nodes[&host].host.db());
        }
        for host in 1..=3 {
            cluster.stop(host);
            assert!(!log_of(&cluster, host, source));
        }
        (1..=3).for_each(|host| cluster.start(host));
        cluster.put(target, "z", "restarted");
        for host in 1..=3 {
            cluster.await_value(host, "z", "restarted");
            assert_eq!(cluster.get(host, "x").as_deref(), Some("right"));
            assert!(cluster.handle(host, source).is_none());
        }
        // Nobody brings the source back.
        let old = region(source, "q", "r", &[1, 2, 3]);
        cluster.create(std::slice::from_ref(&old));
        assert!(cluster.handle(1, source).is_none());
    }
}

#[test]
fn a_frozen_region_does_nothing_and_stays() {
    let mut cluster = Cluster::new(0);
    cluster.timing.lonely = Duration::from_millis(300);
    (1..=4).for_each(|host| cluster.start(host));
    fill(&cluster);
    let (leader, handle, term) = cluster.leader(2);
    eventually("the lease", || handle.lease(term).then_some(()));
    let target = cluster.leader(1).1.region();
    for wrong in [
        Region { end: "k".into(), ..(*target).clone() },
        Region { peers: target.peers[..2].to_vec(), ..(*target).clone() },
    ] {
        assert!(matches!(freeze(&handle, term, &wrong), Err(ChangeRefused::Invalid(_))));
    }
    assert_eq!(freeze(&handle, Term(term.0 + 1), &target), Err(ChangeRefused::NotLeader));
    eventually("a refusal costs no lease", || handle.lease(term).then_some(()));

    let frozen = cluster.freeze(2, 1);
    assert!(!handle.lease(term) && !handle.lease_stands(term));
    assert!(handle.report().is_some_and(|report| report.region.unwrap().region_epoch().version == 2));
    assert!(freeze(&handle, term, &target).is_err());
    let child_peer_ids = vec![31, 32, 33];
    let (tell, told) = mpsc::channel();
    let spec = SplitSpec { key: "p".into(), child_id: RegionId(3), child_peer_ids };
    handle.propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
    assert_eq!(told.recv().unwrap(), Outcome::Dropped);
    let refused = ask(&handle, term, PeerChange::AddLearner(Peer::learner(24, 4)));
    assert!(matches!(refused, Err(ChangeRefused::NotNow(_))));
    // Without proof it is not thawed, and nobody takes it in for another epoch.
    assert!(matches!(thaw(&handle, term, &target), Err(ChangeRefused::NotNow(_))));
    let later = Region { epoch: Some(RegionEpoch { conf_ver: 1, version: 9 }), ..(*target).clone() };
    assert!(matches!(thaw(&handle, term, &later), Err(ChangeRefused::NotNow(_))), "the target here says otherwise");
    assert_eq!(cluster.nodes[&leader].host.proof_of_thaw(RegionId(2)), None);
    cluster.await_frozen(2, frozen, &[1, 2, 3]);
    let (_, into, into_term) = cluster.leader(1);
    let other = Region { end: "z".into(), ..(*handle.region()).clone() };
    assert!(matches!(merge(&into, into_term, &other), Err(ChangeRefused::NotNow(_))));

    // Cut off it is not lonely, and placement cannot have it destroyed.
    let follower = leader % 3 + 1;
    cluster.net.isolate(follower);
    let host = &cluster.nodes[&follower].host;
    eventually("the target's peer is lonely", || (host.lonely(9).first()?.0 == RegionId(1)).then_some(()));
    assert_eq!(host.lonely(9).len(), 1);
    let known = RegionEpoch { conf_ver: 9, version: 9 };
    assert!(!host.destroy_peer(RegionId(2), PeerId(20 + follower), known));
    cluster.net.heal();

    // Data ends the term, and is never applied.
    let (_, handle, term) = cluster.leader(2);
    assert_eq!(propose(&handle, term, "y", "never").recv().unwrap(), Outcome::Dropped);
    eventually("the leader gives up", || (handle.term() > term).then_some(()));

    // All of it holds after a restart, of which the machine is told.
    for host in 1..=3 {
        cluster.stop(host);
    }
    for host in 1..=3 {
        cluster.start(host);
        assert_eq!(cluster.handle(host, 2).unwrap().frozen(), Some(frozen));
        eventually("the machine is told", || {
            let machine = cluster.nodes[&host].kv.regions.get(&2)?.clone();
            machine.events.lock().contains(&Event::Frozen(Some(1))).then_some(())
        });
    }
    let source = cluster.leader(2).1.region();
    let (_, into, into_term) = cluster.leader(1);
    assert_eq!(merge(&into, into_term, &source), Ok(()));
    (1..=3).for_each(|host| cluster.await_merged(2, 1, host));
    cluster.put(1, "y", "after");
}

#[test]
fn a_freeze_that_is_refused_or_has_ended_leaves_the_term_whole() {
    let cluster = two();
    let (_, handle, term) = cluster.leader(2);
    let target = cluster.leader(1).1.region();
    for n in 0..20 {
        // The region's version is another one by the time the freeze is applied.
        let (tell, told) = mpsc::channel();
        let (from, key) = (handle.clone(), format!("x{n}"));
        let epoch = handle.region().region_epoch();
        handle.propose_bump(term, epoch, Box::new(|ended| assert_eq!(ended, Ok(()))));
        let then = Box::new(move |ended: Answer| {
            assert!(ended.is_err());
            // Before the worker has heard of it.
            from.propose(term, format!("{key}=v").into(), Box::new(move |outcome| _ = tell.send(outcome)));
        });
        handle.propose_freeze(term, (*target).clone(), then);
        assert_eq!(told.recv().unwrap(), Outcome::Applied);
        eventually("the worker has heard of it", || handle.lease(term).then_some(()));
    }
    let frozen = eventually("it is frozen", || {
        freeze(&handle, term, &target).ok()?;
        handle.frozen()
    });
    let (_, into, into_term) = cluster.leader(1);
    assert_eq!(bump(&into, into_term, frozen.epoch), Ok(()));
    let proof = into.region();
    eventually("it is thawed", || thaw(&handle, term, &proof).ok());
    assert_eq!(propose(&handle, term, "y", "v").recv().unwrap(), Outcome::Applied);
}

#[test]
fn the_next_leader_thaws_what_a_dead_one_froze() {
    let mut cluster = two();
    let frozen = cluster.freeze(2, 1);
    cluster.await_frozen(2, frozen, &[1, 2, 3]);
    let dead = cluster.leader(2).0;
    cluster.stop(dead);
    let left: Vec<u64> = (1..=3).filter(|host| *host != dead).collect();
    let (_, into, into_term) = cluster.leader_among(1, &left);
    assert_eq!(bump(&into, into_term, RegionEpoch { version: 7, ..frozen.epoch }), Err(ChangeRefused::Epoch));
    assert_eq!(bump(&into, into_term, frozen.epoch), Ok(()));
    assert_eq!(bump(&into, into_term, frozen.epoch), Err(ChangeRefused::Epoch));
    let proof = into.region();
    let handle = eventually("it is thawed", || {
        let (_, handle, term) = cluster.leader_among(2, &left);
        match thaw(&handle, term, &proof) {
            Ok(()) => Some(handle),
            Err(ChangeRefused::NotNow(_)) => None,
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!((handle.frozen(), handle.region().region_epoch().version), (None, 3));
    cluster.put_among(2, "y", "goes on", &left);
    let (_, handle, term) = cluster.leader_among(2, &left);
    eventually("a lease", || handle.lease(term).then_some(()));
    let source = handle.region();
    assert!(merge(&into, into_term, &source).is_err(), "it is not frozen");
    cluster.start(dead);
    cluster.await_value(dead, "y", "goes on");
    let told = [Event::Frozen(Some(1)), Event::Frozen(None)];
    eventually("its machine is told", || {
        let events = cluster.nodes[&dead].kv.regions.get(&2)?.events.lock().clone();
        let mut events = events.into_iter().filter(|event| matches!(event, Event::Frozen(_)));
        (events.next()? == told[0] && events.next()? == told[1]).then_some(())
    });
    // The next attempt may work.
    cluster.merge(2, 1, &[1, 2, 3]);
    (1..=3).for_each(|host| cluster.await_merged(2, 1, host));
}

#[test]
fn of_merge_and_bump_exactly_one_wins_everywhere() {
    let mut wins = [0, 0];
    for round in 0..6 {
        let cluster = two();
        let frozen = cluster.freeze(2, 1);
        cluster.await_frozen(2, frozen, &[1, 2, 3]);
        let source = cluster.leader(2).1.region();
        let (leader, into, term) = cluster.leader(1);
        // Both lie in the log before either is applied.
        let machine = std::sync::Arc::clone(&cluster.nodes[&leader].kv.regions.get(&1).unwrap());
        let gate = machine.gate.lock();
        let blocked = propose(&into, term, "b", "v");
        let (tell, told) = mpsc::channel();
        let done = |which: usize| {
            let tell = tell.clone();
            Box::new(move |ended: Answer| _ = tell.send((which, ended)))
        };
        let merge_first = round % 2 == 0;
        if !merge_first {
            into.propose_bump(term, frozen.epoch, done(1));
        }
        into.propose_merge(term, (*source).clone(), done(0));
        if merge_first {
            into.propose_bump(term, frozen.epoch, done(1));
        }
        drop(gate);
        assert_eq!(blocked.recv().unwrap(), Outcome::Applied);
        let answers = [told.recv().unwrap(), told.recv().unwrap()];
        let won: Vec<usize> = answers.iter().filter(|(_, ended)| ended.is_ok()).map(|(which, _)| *which).collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        wins[won[0]] += 1;
        cluster.put(1, "c", "v");
        for host in 1..=3 {
            cluster.await_value(host, "c", "v");
            assert_eq!(cluster.handle(host, 2).is_none(), won[0] == 0);
            assert_eq!(cluster.handle(host, 1).unwrap().region().end.is_empty(), won[0] == 0);
        }
    }
    assert_eq!(wins, [3, 3]);
}

#[test]
fn a_merge_is_finished_after_a_crash_at_any_step() {
    // Frozen and nothing more is in the test above. Here: the batch is durable, the log of the source is still there.
    let mut cluster = Cluster::new(1);
    cluster.create(&[region(1, "", "m", &[1]), region(2, "m", "", &[1])]);
    cluster.put(1, "a", "left");
    cluster.put(2, "x", "right");
    cluster.merge(2, 1, &[1]);
    cluster.await_merged(2, 1, 1);
    cluster.stop(1);
    {
        let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
        let mut write = LogWrite::default();
        let entry = |index| Entry { index, term: 6, ..Entry::default() };
        write.push(2, LogOp::Append((6..9).map(entry).collect()));
        write.push(2, LogOp::State(RaftState { peer_id: 21, term: 6, vote: 21, commit: 8 }));
        opened.log.write(write, true).unwrap();
    }
    assert!(!log_of(&cluster, 1, 2), "the start-up cleans it");
    for _ in 0..2 {
        cluster.start(1);
        assert!(cluster.handle(1, 2).is_none());
        assert_eq!(cluster.get(1, "x").as_deref(), Some("right"));
        assert_indexed(&cluster.nodes[&1].host.db());
        cluster.put(1, "y", "v");
        cluster.stop(1);
    }
    let opened = recover::open(&cluster.config(1), &Kv::default()).unwrap();
    assert_eq!(opened.regions.len(), 1);
    assert_eq!(opened.regions[0].absorbed, [2]);
}

/// Whether `message` brings entries, or a raft snapshot, to peer `peer`.
fn feeds(message: &raft::eraftpb::Message, peer: u64) -> bool {
    message.to == peer && (is(message, MessageType::MsgAppend) || is(message, MessageType::MsgSnapshot))
}

#[test]
fn entries_of_a_merge_reach_everybody_while_hosts_come_and_go() {
    let mut cluster = two();
    for (source, target, key) in [(2, 1, "q"), (3, 1, "t")] {
        let (_, handle, term) = cluster.leader(target);
        if source == 3 {
            let (tell, told) = mpsc::channel();
            let spec = SplitSpec { key: "m".into(), child_id: RegionId(3), child_peer_ids: vec![31, 32, 33] };
            handle.propose_split(term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
            assert_eq!(told.recv().unwrap(), Outcome::Applied);
        }
        cluster.put(source, key, "v");
        let frozen = cluster.freeze(source, target);
        cluster.await_frozen(source, frozen, &[1, 2, 3]);
        let region = cluster.leader(source).1.region();
        let away = cluster.leader(target).0 % 3 + 1;
        cluster.stop(away);
        let left: Vec<u64> = (1..=3).filter(|host| *host != away).collect();
        let (_, handle, term) = cluster.leader_among(target, &left);
        assert_eq!(merge(&handle, term, &region), Ok(()));
        cluster.put_among(target, "m1", "after", &left);
        cluster.start(away);
        cluster.await_merged(source, target, away);
        cluster.await_value(away, "m1", "after");
        assert_eq!(cluster.get(away, key).as_deref(), Some("v"));
        assert!(
            cluster.nodes[&away].host.handles().iter().all(|handle| handle.region().peer_on(StoreId(away)).is_some())
        );
    }
    assert_eq!(cluster.net.snapshots_sent.load(Ordering::Acquire), 0);
}
