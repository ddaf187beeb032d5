//! Outcomes under leader changes: what is answered `Applied` is there, what is answered `Dropped` never was.

use std::sync::mpsc;

use super::cluster::{Cluster, eventually, propose};
use crate::Outcome;

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
