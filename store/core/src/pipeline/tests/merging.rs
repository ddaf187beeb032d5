//! A region is frozen, thawed, or takes in its neighbour (rule S4), as scripts.

use braid_proto::pb::{LeaseRange, LockRange, LockRequest, StoredLease, TxnId};

use super::*;
use crate::pipeline::leases::{EXTENSION_MS, Keep};
use crate::pipeline::{LeaseWork, Until};

const BUSY: &str = "is being merged";

fn lock(txn: u64, term: u64, k: &str) -> Work {
    let KeyRange { start, end } = KeyRange::single(user_key(k.as_bytes()));
    Work::Lock(LockRequest {
        txn: Some(TxnId { high: 1, low: txn }),
        primary: start.clone(),
        ranges: vec![LockRange { start, end, exclusive: true }],
        primary_region: 7,
        primary_term: term,
        ..Default::default()
    })
}

fn merged(version: u64, start: &str) -> Region {
    let start = if start.is_empty() { Bytes::new() } else { user_key(start.as_bytes()) };
    Region { id: 7, start, epoch: Some(RegionEpoch { version, ..EPOCH }), ..Default::default() }
}

fn lease_row(ttl: i64, revoking: bool) -> StoredLease {
    let ranges = vec![LeaseRange { start: user_key(b"a"), end: user_key(b"b") }];
    StoredLease { ttl, revoking, ranges, ..Default::default() }
}

impl Script {
    fn drained(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Drained))
    }

    /// Locks `k` as `txn`'s primary; whether that was taken.
    fn takes(&mut self, id: u32, txn: u64, term: u64, k: &str) -> bool {
        self.work(id, lock(txn, term, k));
        while self.effects.iter().any(|effect| matches!(effect, Effect::Propose { .. })) {
            let proposed = self.proposed();
            self.apply(proposed);
        }
        let answer = self.effects.iter().position(|effect| matches!(effect, Effect::Reply { to, .. } if *to == id));
        match self.effects.remove(answer.expect("an answer")) {
            Effect::Reply { answer: RegionResponse { result: Some(region_response::Result::Lock(lock)) }, .. } => {
                lock.token.is_some() && !lock.conflict
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Everything that waits is refused for now, nothing is served, and no work that was proposed is forgotten.
#[test]
fn a_frozen_region_refuses_everything_as_busy_whoever_leads() {
    let mut script = Script::leading(1);
    assert!(script.pipeline.begin_barrier(Until::Empty).is_some());
    script.pump();
    assert!(script.drained());
    script.submit(1, put("a", "1"));
    script.pipeline.freeze(&mut script.effects);
    assert_eq!(script.pipeline.leading(), None);
    assert_eq!(script.pipeline.frozen_term(), Some(Term(5)), "its leader sees the merge through");
    script.submit(2, put("b", "2"));
    let answers = script.answers();
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.contains(BUSY)), "{answers:?}");
    assert!(matches!(script.pipeline.epoch_mismatch().reason, Some(refusal::Reason::Busy(_))));
    assert!(matches!(script.pipeline.not_leader().reason, Some(refusal::Reason::Busy(_))));
    assert!(!script.pipeline.is_calm() && script.pipeline.begin_barrier(Until::Idle).is_none());
    assert!(!script.takes(9, 3, 5, "a"), "who wants a lock does not wait with others in his hands");
    // Another leader, of another term.
    script.pipeline.on_follower(Term(6), Some(Peer::voter(72, 2)), &mut script.effects);
    assert_eq!(script.pipeline.frozen_term(), None);
    let elsewhere =
        |refusal: Refusal| matches!(refusal.reason, Some(refusal::Reason::NotLeader(l)) if l.leader.is_some());
    assert!(
        elsewhere(script.pipeline.not_leader()) && elsewhere(script.pipeline.epoch_mismatch()),
        "it may have missed the end"
    );
    script.pipeline.on_leader(Term(7), Vec::new(), Vec::new(), &mut script.effects);
    assert_eq!((script.pipeline.leading(), script.pipeline.frozen_term()), (None, Some(Term(7))));
    script.effects.clear();
    script.submit(3, put("c", "3"));
    assert!(script.answers()[0].contains(BUSY));
    assert!(script.asks_nothing());
}

#[test]
fn a_thawed_region_goes_on_in_its_term_and_keeps_what_it_has_said_in_it() {
    let mut script = Script::leading(1);
    assert!(matches!(script.pipeline.outcome(TxnId { high: 1, low: 1 }), Outcome::Over));
    let reign = script.pipeline.reign();
    script.pipeline.freeze(&mut script.effects);
    assert_eq!(script.pipeline.reign(), None);
    let leases = vec![(8, lease_row(10, false)), (9, lease_row(10, true))];
    script.pipeline.at(50_000);
    script.pipeline.thaw(Vec::new(), leases, &mut script.effects);
    assert_eq!(script.pipeline.leading(), Some(Term(5)));
    assert_ne!(script.pipeline.reign(), reign, "who saw to something before must not go on with it");
    assert!(matches!(&script.effects[..], [Effect::Revoke { lease: 9, .. }]), "{:?}", script.effects);
    script.effects.clear();
    assert!(!script.takes(1, 1, 5, "a"), "somebody was told that it is over");
    assert!(script.takes(2, 2, 5, "b"));
    // Its leases begin anew, as with a new leader.
    let left = script.pipeline.lease_state(8).expect("a lease").left_ms;
    assert_eq!(left, 10_000 + EXTENSION_MS as i64);
    assert_eq!(script.pipeline.keep_lease(8), Keep::Alive(10));
    script.submit(3, put("c", "3"));
    let (batch, _) = script.asked();
    script.numbered(batch, 20);
    let entry = script.proposed();
    script.apply(entry);
    assert!(script.answers().contains(&"3 put @21".to_owned()));
}

#[test]
fn a_follower_that_is_thawed_follows_on() {
    let mut script = Script::leading(1);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.pipeline.freeze(&mut script.effects);
    script.pipeline.thaw(Vec::new(), Vec::new(), &mut script.effects);
    assert_eq!(script.pipeline.leading(), None);
    assert!(matches!(script.pipeline.not_leader().reason, Some(refusal::Reason::NotLeader(_))));
}

/// An absorbed peer tells everybody who comes where the keys are.
#[test]
fn a_destroyed_source_refuses_with_what_it_went_into() {
    let mut script = Script::leading(1);
    script.pipeline.freeze(&mut script.effects);
    let reason = refusal::Reason::EpochMismatch(pb::EpochMismatch { current: vec![merged(9, "")] });
    script.pipeline.on_destroyed(Refusal { reason: Some(reason.clone()) }, &mut script.effects);
    assert_eq!(script.pipeline.not_leader().reason, Some(reason.clone()));
    assert_eq!(script.pipeline.epoch_mismatch().reason, Some(reason));
    assert_eq!(script.pipeline.frozen_term(), None);
    script.submit(1, put("a", "1"));
    assert_eq!(script.answers(), ["1 epoch mismatch"]);
}

/// S4: a merge waits for records too. Meanwhile everything but new locks goes on.
#[test]
fn a_barrier_for_a_merge_waits_for_locks_and_records() {
    let mut script = Script::leading(10);
    assert!(script.takes(1, 1, 5, "a"));
    assert!(script.pipeline.begin_barrier(Until::Empty).is_some());
    script.pump();
    script.submit(2, put("b", "goes on"));
    let (batch, _) = script.asked();
    script.numbered(batch, 20);
    let entry = script.proposed();
    script.apply(entry);
    assert!(!script.drained());
    // Its coordinator has fallen silent: the record goes after a while.
    for _ in 0..=SILENT_TICKS_MAX {
        script.pipeline.tick(&mut script.effects);
        script.pump();
    }
    while script.effects.iter().any(|effect| matches!(effect, Effect::Propose { .. })) {
        let proposed = script.proposed();
        script.apply(proposed);
    }
    assert!(script.drained());
    assert!(!script.pipeline.has_locks());
}

#[test]
fn a_region_takes_in_its_neighbours_leases_within_its_term() {
    let mut script = Script::leading(10);
    script.pipeline.on_region(merged(1, "m"), &mut script.effects);
    script.work(1, LeaseWork::Grant { id: 5, ttl: 10 }.into());
    let (batch, _) = script.asked();
    script.numbered(batch, 10);
    let entry = script.proposed();
    script.apply(entry);
    script.effects.clear();
    let barrier = script.pipeline.begin_barrier(Until::Empty).expect("no other");
    script.pump();
    assert!(script.drained());
    script.effects.clear();
    script.pipeline.at(4_000);
    let reign = script.pipeline.reign();
    let theirs = vec![(8, lease_row(20, false)), (9, lease_row(20, true))];
    script.pipeline.absorb(merged(2, ""), theirs, &mut script.effects);
    script.pipeline.end_barrier(barrier);
    assert_eq!(script.pipeline.reign(), reign, "the same term, and the same work");
    let revoked =
        |effect: &Effect<u32, u32>| matches!(effect, Effect::Revoke { lease: 9, ranges } if ranges.len() == 1);
    assert_eq!(script.effects.iter().filter(|effect| revoked(effect)).count(), 1);
    assert_eq!(script.pipeline.lease_state(5).expect("its own").left_ms, 6_000);
    assert_eq!(script.pipeline.lease_state(8).expect("its neighbour's").left_ms, 20_000 + EXTENSION_MS as i64);
    script.effects.clear();
    // What was registered was for its old range.
    let request = PutRequest { lease: 5, ..put_request("z", "v") };
    script.submit(3, Request::Put(request));
    assert!(script.answers().contains(&"3 epoch mismatch".to_owned()), "named the region before the merge");
    assert!(script.pipeline.is_calm());
}

#[test]
fn a_replica_that_does_not_lead_takes_in_the_range_only() {
    let mut script = Script::leading(10);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.pipeline.absorb(merged(2, ""), Vec::new(), &mut script.effects);
    assert_eq!(script.pipeline.region().region_epoch().version, 2);
    assert!(script.pipeline.leases().is_empty());
}

#[test]
#[should_panic(expected = "in the middle of its own work")]
fn a_region_with_locks_takes_nobody_in() {
    let mut script = Script::leading(10);
    assert!(script.takes(1, 1, 5, "a"));
    script.pipeline.absorb(merged(2, ""), Vec::new(), &mut script.effects);
}
