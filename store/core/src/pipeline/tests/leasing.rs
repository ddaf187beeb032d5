//! Leases in one region's pipeline: records, what is asked of other regions, and the ends of leases.

use braid_proto::error;
use braid_proto::pb::{
    AttachedKeysResponse, DetachLeaseResponse, GrantLeaseResponse, LeaseRange, LockRange, LockRequest,
    RegisterLeaseResponse, RevokeLeaseResponse, TxnId,
};

use super::*;
use crate::pipeline::leases::{EXTENSION_MS, Keep};
use crate::pipeline::{LeaseWork, Registered};

const SECOND: u64 = 1_000;

fn put(key: &str, lease: i64) -> Request {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Request::Put(PutRequest { key, value: Bytes::from_static(b"v"), lease, ..Default::default() })
}

fn error_of(answer: &region_response::Result) -> &str {
    match answer {
        region_response::Result::Error(error) => &error.message,
        other => panic!("{other:?}"),
    }
}

fn user_range(start: &str, end: &str) -> KeyRange {
    KeyRange { start: user_key(start.as_bytes()), end: user_key(end.as_bytes()) }
}

impl Script {
    /// A region with the lease 7 of 10 seconds, granted and applied at time 0.
    fn with_lease() -> Self {
        let mut script = Self::leading(10);
        script.work(1, LeaseWork::Grant { id: 7, ttl: 10 }.into());
        script.go_on(10);
        assert_eq!(script.answer(1), region_response::Result::GrantLease(GrantLeaseResponse { revision: 10 }));
        script
    }

    /// Numbers from `base` on and applies whatever asks for it, until nothing does. Returns the counter.
    fn go_on(&mut self, base: i64) -> i64 {
        let mut counter = base;
        loop {
            if let Some(at) = self.effects.iter().position(|effect| matches!(effect, Effect::Number { .. })) {
                let Effect::Number { batch, count } = self.effects.remove(at) else { unreachable!() };
                self.numbered(batch, counter);
                counter += i64::from(count);
            } else if self.effects.iter().any(|effect| matches!(effect, Effect::Propose { .. })) {
                let proposed = self.proposed();
                self.apply(proposed);
            } else {
                return counter;
            }
        }
    }

    fn answer(&mut self, id: u32) -> region_response::Result {
        self.answered(id).unwrap_or_else(|| panic!("{id} is not answered: {:?}", self.effects))
    }

    fn answered(&mut self, id: u32) -> Option<region_response::Result> {
        let position = self
            .effects
            .iter()
            .position(|effect| matches!(effect, Effect::Judge { to, .. } | Effect::Reply { to, .. } if *to == id))?;
        match self.effects.remove(position) {
            Effect::Judge { answer, .. } | Effect::Reply { answer, .. } => answer.result,
            _ => unreachable!(),
        }
    }

    fn asks_for(&mut self, lease: i64) {
        let wanted =
            |effect: &Effect<u32, u32>| matches!(effect, Effect::Register { lease: asked, .. } if *asked == lease);
        let position = self.effects.iter().position(wanted).expect("a question");
        if let Effect::Register { question, .. } = self.effects.remove(position) {
            self.question = question;
        }
        assert!(!self.effects.iter().any(wanted), "asked once");
    }

    /// Answers the question that was asked last.
    fn tell(&mut self, lease: i64, registered: Registered) {
        if self.effects.iter().any(|effect| matches!(effect, Effect::Register { .. })) {
            self.asks_for(lease);
        }
        self.pipeline.registered(lease, self.question, registered, &mut self.effects);
        self.pump();
    }

    fn tick_at(&mut self, now: u64) {
        self.pipeline.at(now);
        self.pipeline.tick(&mut self.effects);
        self.pump();
    }

    fn live(&self, key: &str) -> bool {
        self.applied.0.contains_key(&user_key(key.as_bytes()))
    }
}

#[test]
fn a_grant_takes_no_revision_and_its_id_is_taken_then() {
    let mut script = Script::with_lease();
    script.work(2, LeaseWork::Grant { id: 7, ttl: 99 }.into());
    assert_eq!(error_of(&script.answer(2)), error::LEASE_EXISTS.message);
    assert_eq!(script.pipeline.lease_state(7).expect("a lease").row.ttl, 10);
}

#[test]
fn a_put_with_a_lease_of_this_region_asks_nobody() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    assert_eq!(script.go_on(10), 11);
    assert!(matches!(script.answer(2), region_response::Result::Put(_)));
    assert_eq!(script.applied.0[&user_key(b"a")].lease, 7);
}

#[test]
fn puts_with_an_unknown_lease_wait_for_one_answer_and_others_pass() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.submit(2, put("b", 8));
    script.submit(3, put("c", 0));
    script.asks_for(8);
    assert_eq!(script.go_on(10), 11, "only the put without a lease takes a number");
    assert!(matches!(script.answer(3), region_response::Result::Put(_)));
    script.tell(8, Registered::Found);
    assert_eq!(script.go_on(11), 13);
    assert!(script.live("a") && script.live("b"));
    script.submit(4, put("d", 8));
    assert_eq!(script.go_on(13), 14, "the answer counts from now on");
}

#[test]
fn a_missing_lease_fails_those_who_were_there_and_is_asked_for_again_for_those_who_came_later() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.asks_for(8);
    script.submit(2, put("b", 8));
    script.tell(8, Registered::Missing);
    script.asks_for(8);
    script.go_on(10);
    assert_eq!(error_of(&script.answer(1)), error::LEASE_NOT_FOUND.message);
    assert_eq!(script.answered(2), None);
    script.tell(8, Registered::Found);
    script.go_on(10);
    assert!(matches!(script.answer(2), region_response::Result::Put(_)));
    assert!(!script.live("a"));
}

#[test]
fn an_answer_that_was_on_its_way_when_the_lease_was_closed_is_void() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.asks_for(8);
    script.work(2, LeaseWork::Keys { id: 8, close: true }.into());
    script.go_on(10);
    let none = AttachedKeysResponse { revision: 10, ..Default::default() };
    assert_eq!(script.answer(2), region_response::Result::AttachedKeys(none));
    script.tell(8, Registered::Found);
    script.asks_for(8);
    script.tell(8, Registered::Missing);
    script.go_on(10);
    assert_eq!(error_of(&script.answer(1)), error::LEASE_NOT_FOUND.message);
}

#[test]
fn a_lease_that_is_closed_is_asked_for_again() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.tell(8, Registered::Found);
    script.go_on(10);
    script.work(2, LeaseWork::Detach(8).into());
    script.go_on(11);
    assert_eq!(script.answer(2), region_response::Result::DetachLease(DetachLeaseResponse { revision: 12 }));
    assert!(!script.live("a"));
    script.effects.clear();
    script.submit(3, put("b", 8));
    script.asks_for(8);
}

#[test]
fn another_range_or_another_term_knows_of_no_attached_lease() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.tell(8, Registered::Found);
    script.go_on(10);
    script.effects.clear();
    let region = Region { id: 7, end: user_key(b"x"), epoch: Some(EPOCH), ..Default::default() };
    script.pipeline.on_region(region, &mut script.effects);
    script.submit(2, put("b", 8));
    script.asks_for(8);
    script.tell(8, Registered::Found);
    script.go_on(11);
    script.effects.clear();
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.pipeline.on_leader(Term(7), Vec::new(), Vec::new(), &mut script.effects);
    script.submit(3, put("c", 8));
    script.asks_for(8);
}

#[test]
fn a_revoke_deletes_the_keys_and_the_record_in_one_entry() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    script.submit(3, put("b", 7));
    script.submit(4, put("c", 0));
    assert_eq!(script.go_on(10), 13);
    script.work(5, LeaseWork::Revoke(7).into());
    let (batch, count) = script.asked();
    assert_eq!(count, 1);
    script.numbered(batch, 13);
    let (entry, data) = script.proposed();
    let written = RegionEntry::decode(data.clone()).expect("an entry");
    assert_eq!((written.txns.len(), written.leases.len()), (1, 1));
    script.apply((entry, data));
    assert_eq!(script.answer(5), region_response::Result::RevokeLease(RevokeLeaseResponse { revision: 14 }));
    assert!(!script.live("a") && !script.live("b") && script.live("c"));
    assert!(script.pipeline.leases().is_empty());
    script.work(6, LeaseWork::Revoke(7).into());
    assert_eq!(error_of(&script.answer(6)), error::LEASE_NOT_FOUND.message);
}

#[test]
fn a_key_whose_lease_was_taken_off_stays() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    script.submit(3, put("a", 0));
    script.work(4, LeaseWork::Revoke(7).into());
    assert_eq!(script.go_on(10), 12, "a revoke without keys takes no revision");
    assert_eq!(script.answer(4), region_response::Result::RevokeLease(RevokeLeaseResponse { revision: 12 }));
    assert!(script.live("a"));
}

#[test]
fn a_put_that_races_a_revoke_is_deleted_or_refused() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    script.work(3, LeaseWork::Revoke(7).into());
    script.submit(4, put("b", 7));
    script.asks_for(7);
    script.go_on(10);
    assert!(!script.live("a"));
    script.tell(7, Registered::Missing);
    script.go_on(12);
    assert_eq!(error_of(&script.answer(4)), error::LEASE_NOT_FOUND.message);
}

#[test]
fn a_lease_ends_by_itself_and_who_waits_for_that_is_told() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    script.go_on(10);
    script.tick_at(10 * SECOND - 1);
    assert_eq!(script.pipeline.keep_lease(7), Keep::Alive(10));
    script.tick_at(20 * SECOND - 2);
    assert!(script.asks_nothing());
    script.tick_at(20 * SECOND - 1);
    assert_eq!(script.pipeline.keep_lease(7), Keep::Wait);
    script.pipeline.wait_lease(7, 70, &mut script.effects);
    script.go_on(11);
    assert!(script.effects.iter().any(|e| matches!(e, Effect::Wake { reader: 70, woken: Woken::Again })));
    assert_eq!(script.pipeline.keep_lease(7), Keep::Gone);
    assert!(!script.live("a"));
}

#[test]
fn an_end_without_a_number_is_tried_again() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 7));
    script.go_on(10);
    script.tick_at(10 * SECOND);
    let (batch, _) = script.asked();
    script.pipeline.not_numbered(batch, "nobody answers", &mut script.effects);
    script.pump();
    assert!(script.live("a"));
    script.tick_at(10 * SECOND + 500);
    script.go_on(11);
    assert!(!script.live("a"));
}

#[test]
fn a_lease_with_keys_elsewhere_is_marked_and_goes_when_they_are_gone() {
    let mut script = Script::leading(10);
    script.pipeline.on_region(
        Region { id: 7, end: user_key(b"m"), epoch: Some(EPOCH), ..Default::default() },
        &mut script.effects,
    );
    script.work(1, LeaseWork::Grant { id: 7, ttl: 10 }.into());
    script.work(2, LeaseWork::Register { id: 7, range: user_range("m", "t") }.into());
    script.go_on(10);
    assert_eq!(script.answer(2), region_response::Result::RegisterLease(RegisterLeaseResponse { found: true }));
    script.work(3, LeaseWork::Register { id: 7, range: user_range("n", "o") }.into());
    assert!(script.asks_nothing() && !script.effects.iter().any(|e| matches!(e, Effect::Propose { .. })));
    script.effects.clear();

    script.work(4, LeaseWork::Revoke(7).into());
    script.go_on(10);
    let elsewhere = vec![LeaseRange { start: user_key(b"m"), end: user_key(b"t") }];
    assert!(script.effects.iter().any(|e| matches!(e, Effect::Revoke { lease: 7, ranges } if *ranges == elsewhere)));
    assert_eq!(script.answered(4), None, "its keys are still there");
    script.work(5, LeaseWork::Register { id: 7, range: user_range("t", "u") }.into());
    script.work(6, LeaseWork::Revoke(7).into());
    assert_eq!(script.pipeline.keep_lease(7), Keep::Wait);

    script.work(7, LeaseWork::Remove(7, 44).into());
    script.go_on(10);
    assert_eq!(script.answer(4), region_response::Result::RevokeLease(RevokeLeaseResponse { revision: 44 }));
    assert_eq!(script.answer(5), region_response::Result::RegisterLease(RegisterLeaseResponse { found: false }));
    assert_eq!(error_of(&script.answer(6)), error::LEASE_NOT_FOUND.message);
}

#[test]
fn the_next_leader_goes_on_with_a_revocation() {
    let mut script = Script::leading(10);
    let row = StoredLease { ttl: 10, revoking: true, ..Default::default() };
    let alive = StoredLease { ttl: 10, ..Default::default() };
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.pipeline.at(100 * SECOND);
    script.pipeline.on_leader(Term(7), Vec::new(), vec![(7, row), (8, alive)], &mut script.effects);
    assert!(script.effects.iter().any(|e| matches!(e, Effect::Revoke { lease: 7, .. })));
    script.tick_at(110 * SECOND + EXTENSION_MS - 1);
    assert!(script.asks_nothing());
    script.tick_at(110 * SECOND + EXTENSION_MS);
    script.go_on(10);
    assert_eq!(script.pipeline.keep_lease(8), Keep::Gone);
}

#[test]
fn an_answer_to_a_question_of_a_former_term_does_not_count() {
    let mut script = Script::leading(10);
    script.submit(1, put("a", 8));
    script.asks_for(8);
    let former = script.question;
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.pipeline.on_leader(Term(7), Vec::new(), Vec::new(), &mut script.effects);
    script.work(2, LeaseWork::Keys { id: 8, close: true }.into());
    script.submit(3, put("b", 8));
    script.asks_for(8);
    script.pipeline.registered(8, former, Registered::Found, &mut script.effects);
    script.pump();
    script.tell(8, Registered::Missing);
    script.go_on(10);
    assert_eq!(error_of(&script.answer(3)), error::LEASE_NOT_FOUND.message);
}

#[test]
fn a_lost_term_refuses_everybody_who_waits() {
    let mut script = Script::with_lease();
    script.submit(2, put("a", 8));
    script.pipeline.at(10 * SECOND);
    script.pipeline.wait_lease(7, 70, &mut script.effects);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    assert!(matches!(script.answer(2), region_response::Result::Refusal(_)));
    assert!(script.effects.iter().any(|e| matches!(e, Effect::Wake { reader: 70, woken: Woken::Lost })));
}

#[test]
fn a_lock_names_leases_that_are_attached_and_keeps_them_open() {
    let mut script = Script::leading(10);
    let lock = |wait| {
        Work::Lock(LockRequest {
            txn: Some(TxnId { high: 1, low: 2 }),
            primary: Bytes::from_static(b"\x01elsewhere"),
            ranges: vec![LockRange { start: user_key(b"a"), end: user_key(b"b"), exclusive: true }],
            wait,
            attaches: vec![8],
            ..Default::default()
        })
    };
    script.work(1, lock(true));
    match script.answer(1) {
        region_response::Result::Lock(answer) => assert_eq!((answer.unattached, answer.token), (vec![8], None)),
        other => panic!("{other:?}"),
    }
    script.work(2, LeaseWork::Attach(8).into());
    script.tell(8, Registered::Found);
    assert!(matches!(script.answer(2), region_response::Result::AttachLease(answer) if answer.found));
    script.work(3, lock(true));
    script.go_on(10);
    assert!(matches!(script.answer(3), region_response::Result::Lock(answer) if answer.token.is_some()));

    script.work(4, LeaseWork::Keys { id: 8, close: true }.into());
    script.work(5, LeaseWork::Detach(8).into());
    assert_eq!((script.answered(4), script.answered(5)), (None, None), "the transaction may still attach it");
    script.work(6, Work::Release(TxnId { high: 1, low: 2 }));
    script.go_on(10);
    assert!(matches!(script.answer(4), region_response::Result::AttachedKeys(_)));
    assert!(matches!(script.answer(5), region_response::Result::DetachLease(_)));
    script.effects.clear();
    script.work(7, lock(true));
    assert!(matches!(script.answer(7), region_response::Result::Lock(answer) if answer.unattached == [8]));
}
