//! The holes that the numbering, overlay and read rules close, each as a script on the pure pipeline.
//!
//! A script plays sequencer, raft and RocksDB by hand: it decides when numbers arrive, when entries are applied or
//! dropped, and what happens in between.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op,
};
use braid_proto::key::user_key;
use braid_proto::pb::RegionEpoch;

use bytes::Bytes;

use super::*;
use crate::eval::Request;
use crate::record::Record;

mod leasing;
mod locking;
mod merging;
mod peers;

/// The applied state: newest versions only, and rows of locks.
#[derive(Default)]
struct Applied(BTreeMap<Bytes, Record>, BTreeMap<(Bytes, u64), StoredLock>);

impl BaseView for Applied {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, visit: &mut dyn FnMut(&Bytes, &Record) -> ControlFlow<()>) -> Result<(), Damaged> {
        for (key, record) in self.0.iter().filter(|(key, _)| range.contains(key)) {
            if visit(key, record).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        let counted = |key: &&Bytes| range.contains(key) && !except.contains(&&key[..]);
        Ok(self.0.keys().filter(counted).count() as u64)
    }

    fn scan_at(
        &self,
        range: &KeyRange,
        _revision: i64,
        visit: &mut dyn FnMut(&Bytes, &Record) -> ControlFlow<()>,
    ) -> Result<(), Damaged> {
        self.scan(range, visit)
    }

    fn count_at(&self, range: &KeyRange, _revision: i64) -> Result<u64, Damaged> {
        self.count(range, &[])
    }
}

impl Applied {
    fn apply(&mut self, data: &Bytes) {
        let entry = RegionEntry::decode(data.clone()).expect("an entry");
        for txn in entry.txns {
            for change in txn.changes {
                if change.delete {
                    self.0.remove(&change.key);
                    continue;
                }
                let record = Record {
                    create_revision: change.create_revision,
                    mod_revision: txn.revision,
                    version: change.version,
                    lease: change.lease,
                    value: change.value,
                };
                self.0.insert(change.key, record);
            }
        }
        for row in entry.locks {
            let at = (row.key, row.token.expect("a token").seq);
            match row.lock {
                Some(lock) => self.1.insert(at, lock),
                None => self.1.remove(&at),
            };
        }
    }
}

pub(super) const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };

/// A pipeline with its surroundings. Requests and readers are named by numbers.
struct Script {
    pipeline: Pipeline<u32, u32>,
    applied: Applied,
    heard: i64,
    effects: Vec<Effect<u32, u32>>,
    /// Answers whose numbers went unused.
    unused: usize,
    /// Numbers of entries that never happen.
    holes: usize,
    /// The question about a lease that was asked last.
    question: u64,
}

impl Script {
    /// A region whose peer leads term 5 and has heard `heard`.
    fn leading(heard: i64) -> Self {
        let region = Region { id: 7, epoch: Some(EPOCH), ..Default::default() };
        let mut script = Self {
            pipeline: Pipeline::new(region),
            applied: Applied::default(),
            heard,
            effects: Vec::new(),
            unused: 0,
            holes: 0,
            question: 0,
        };
        script.pipeline.on_leader(Term(5), Vec::new(), Vec::new(), &mut script.effects);
        script
    }

    fn with_key(mut self, key: &str, value: &'static str, revision: i64) -> Self {
        let record = Record {
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
            value: Bytes::from_static(value.as_bytes()),
        };
        self.applied.0.insert(user_key(key.as_bytes()), record);
        self
    }

    fn pump(&mut self) {
        self.pipeline.pump(&self.applied, self.heard, &mut self.effects).expect("readable data");
    }

    fn submit(&mut self, id: u32, request: Request) {
        self.work(id, Work::Evaluate(request));
    }

    fn work(&mut self, id: u32, work: Work) {
        self.pipeline.submit(id, work, EPOCH, true, &mut self.effects);
        self.pump();
    }

    /// The one numbering request made since the last look: its name and count.
    fn asked(&mut self) -> (BatchId, u32) {
        let position = self.effects.iter().position(|e| matches!(e, Effect::Number { .. }));
        match self.effects.remove(position.expect("a numbering request")) {
            Effect::Number { batch, count } => (batch, count),
            _ => unreachable!(),
        }
    }

    fn asks_nothing(&self) -> bool {
        !self.effects.iter().any(|e| matches!(e, Effect::Number { .. }))
    }

    fn numbered(&mut self, batch: BatchId, base: i64) {
        if !self.pipeline.numbered(batch, Block { base, compacted: 0 }, &mut self.effects) {
            self.unused += 1;
        }
        self.heard = self.heard.max(base);
        self.pump();
    }

    /// The one entry proposed since the last look.
    fn proposed(&mut self) -> (EntryId, Bytes) {
        let position = self.effects.iter().position(|e| matches!(e, Effect::Propose { .. }));
        match self.effects.remove(position.expect("a proposal")) {
            Effect::Propose { entry, data, .. } => (entry, data),
            _ => unreachable!(),
        }
    }

    fn apply(&mut self, (entry, data): (EntryId, Bytes)) {
        self.applied.apply(&data);
        self.end(entry, EntryEnd::Applied);
    }

    fn end(&mut self, entry: EntryId, end: EntryEnd) {
        self.holes += self.pipeline.entry_ended(entry, end, &mut self.effects);
        self.pump();
    }

    /// Everything answered since the last look, as text.
    fn answers(&mut self) -> Vec<String> {
        let effects = std::mem::take(&mut self.effects);
        let (answered, rest): (Vec<_>, Vec<_>) = effects
            .into_iter()
            .partition(|e| matches!(e, Effect::Reply { .. } | Effect::Judge { .. } | Effect::Wake { .. }));
        self.effects = rest;
        answered.into_iter().map(describe).collect()
    }
}

fn describe(effect: Effect<u32, u32>) -> String {
    match effect {
        Effect::Reply { to, answer } => format!("{to} {}", describe_answer(answer)),
        Effect::Judge { to, answer, .. } => format!("{to} judged {}", describe_answer(answer)),
        Effect::Wake { reader, woken: Woken::Applied } => format!("wake {reader} true"),
        Effect::Wake { reader, woken: Woken::Again } => format!("wake {reader} again"),
        Effect::Wake { reader, woken: Woken::Lost } => format!("wake {reader} false"),
        other => panic!("no answer: {other:?}"),
    }
}

fn describe_answer(answer: RegionResponse) -> String {
    let header = |header: Option<braid_proto::etcd::etcdserverpb::ResponseHeader>| header.unwrap_or_default().revision;
    match answer.result.expect("a result") {
        region_response::Result::Put(put) => {
            let before = put.prev_kv.map(|kv| format!(" before {}@{}", text(&kv.value), kv.mod_revision));
            format!("put @{}{}", header(put.header), before.unwrap_or_default())
        }
        region_response::Result::DeleteRange(delete) => {
            format!("deleted {} @{}", delete.deleted, header(delete.header))
        }
        region_response::Result::Txn(txn) => format!("txn {} @{}", txn.succeeded, header(txn.header)),
        region_response::Result::Refusal(refusal) => match refusal.reason.expect("a reason") {
            refusal::Reason::NotLeader(_) => "not leader".to_owned(),
            refusal::Reason::TimedOut(_) => "timed out".to_owned(),
            refusal::Reason::Unknown(_) => "unknown".to_owned(),
            refusal::Reason::EpochMismatch(_) => "epoch mismatch".to_owned(),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn put(key: &str, value: &str) -> Request {
    Request::Put(put_request(key, value))
}

fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.as_bytes().to_vec().into(), value: value.as_bytes().to_vec().into(), ..Default::default() }
}

fn delete(key: &str) -> Request {
    Request::DeleteRange(DeleteRangeRequest { key: key.as_bytes().to_vec().into(), ..Default::default() })
}

/// `if mod(key) <result> revision then put key=new else get key`.
fn guarded_put(key: &str, result: compare::CompareResult, revision: i64) -> Request {
    let key: Bytes = key.as_bytes().to_vec().into();
    Request::Txn(TxnRequest {
        compare: vec![Compare {
            result: result.into(),
            target: compare::CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(compare::TargetUnion::ModRevision(revision)),
            ..Default::default()
        }],
        success: vec![RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: key.clone(),
                value: "new".into(),
                ..Default::default()
            })),
        }],
        failure: vec![RequestOp {
            request: Some(request_op::Request::RequestRange(RangeRequest { key, ..Default::default() })),
        }],
    })
}

fn single(key: &str) -> KeyRange {
    KeyRange::single(user_key(key.as_bytes()))
}

#[test]
fn a_put_is_numbered_proposed_applied_and_answered() {
    let mut script = Script::leading(1);
    script.submit(1, put("k", "v"));
    let (batch, count) = script.asked();
    assert_eq!(count, 1);
    script.numbered(batch, 1);
    assert!(script.answers().is_empty(), "nothing is answered before it is applied");
    let entry = script.proposed();
    script.apply(entry);
    assert_eq!(script.answers(), ["1 put @2"]);
    assert_eq!(script.pipeline.depth(), (0, 0));
}

/// N1: one entry carries everything that was evaluated while the numbers were on their way.
#[test]
fn work_that_arrives_while_a_number_is_on_its_way_joins_the_next_batch() {
    let mut script = Script::leading(1);
    script.submit(1, put("a", "1"));
    let (first, _) = script.asked();
    script.submit(2, put("b", "2"));
    script.submit(3, put("a", "3"));
    assert!(script.asks_nothing(), "one numbering request is outstanding");
    script.numbered(first, 10);
    let (second, count) = script.asked();
    assert_eq!(count, 2);
    let one = script.proposed();
    script.numbered(second, 11);
    let two = script.proposed();
    script.apply(one);
    script.apply(two);
    assert_eq!(script.answers(), ["1 put @11", "2 put @12", "3 put @13"]);
    assert_eq!(script.applied.0[&user_key(b"a")].version, 2, "the later put was evaluated on the one in flight");
    assert_eq!(script.applied.0[&user_key(b"a")].create_revision, 11);
}

/// H1, N2: a read at R waits for a write whose number, maybe below R, is still on its way.
#[test]
fn a_read_waits_for_a_write_whose_number_is_unknown() {
    let mut script = Script::leading(50);
    script.submit(1, put("k", "v"));
    let (batch, _) = script.asked();
    // The sequencer gave 99; the answer is in the network. Another store's 100 was acknowledged; a reader got bound 100.
    let seq = script.pipeline.in_flight(&single("k"), 100).expect("the unanswered write is in flight");
    assert_eq!(script.pipeline.in_flight(&single("other"), 100), None, "other keys need not wait");
    script.pipeline.wait_applied(seq, 9, &mut script.effects);
    script.numbered(batch, 98);
    assert!(script.answers().is_empty());
    let entry = script.proposed();
    script.apply(entry);
    assert_eq!(script.answers(), ["1 put @99", "wake 9 true"]);
}

/// Q2: a write known to be later than R does not hold a read at R.
#[test]
fn a_read_does_not_wait_for_a_later_write() {
    let mut script = Script::leading(50);
    script.submit(1, put("k", "v"));
    let (batch, _) = script.asked();
    script.numbered(batch, 100);
    assert_eq!(script.pipeline.in_flight(&single("k"), 100), None);
    assert!(script.pipeline.in_flight(&single("k"), 101).is_some());
}

/// H3, N1: a failed compare takes its bound in the same ordered request, so its header is below the write it missed.
#[test]
fn a_failed_compare_has_the_bound_of_its_place_in_the_order() {
    let mut script = Script::leading(50).with_key("k", "v1", 40);
    script.submit(1, guarded_put("k", compare::CompareResult::Equal, 39));
    script.submit(2, put("k", "v2"));
    let (batch, count) = script.asked();
    assert_eq!(count, 0, "the failed compare went alone");
    script.numbered(batch, 98);
    let (batch, count) = script.asked();
    assert_eq!(count, 1);
    script.numbered(batch, 98);
    let entry = script.proposed();
    script.apply(entry);
    // A watch from 99 on sees the put: header 98 does not claim it.
    assert_eq!(script.answers(), ["1 judged txn false @98", "2 put @99"]);
}

/// The same with both in one numbering request.
#[test]
fn bounds_and_numbers_of_one_request_keep_their_order() {
    let mut script = Script::leading(50).with_key("k", "v1", 40);
    script.submit(1, put("x", "1"));
    let (first, _) = script.asked();
    script.submit(2, guarded_put("k", compare::CompareResult::Equal, 39));
    script.submit(3, put("k", "v2"));
    script.submit(4, delete("absent"));
    script.numbered(first, 60);
    let (second, count) = script.asked();
    assert_eq!(count, 1);
    script.numbered(second, 97);
    assert_eq!(script.answers(), ["2 judged txn false @97", "4 judged deleted 0 @98"]);
}

/// H4, O5: a compare that depends on a number that has not arrived waits for it; one that does not is decided.
#[test]
fn a_compare_with_an_unknown_revision_waits_for_the_number() {
    let mut script = Script::leading(400);
    script.submit(1, put("k", "v"));
    let (batch, _) = script.asked();
    script.submit(2, guarded_put("k", compare::CompareResult::Less, 500));
    script.numbered(batch, 509);
    let entry = script.proposed();
    let (batch, count) = script.asked();
    assert_eq!(count, 0, "510 is not less than 500: the compare failed");
    script.numbered(batch, 510);
    assert!(script.answers().is_empty(), "it saw a write that is not applied yet (O4)");
    script.apply(entry);
    assert_eq!(script.answers(), ["1 put @510", "2 judged txn false @510"]);
}

#[test]
fn a_compare_with_a_revision_already_heard_is_decided_at_once() {
    let mut script = Script::leading(400);
    script.submit(1, put("k", "v"));
    let (first, _) = script.asked();
    script.submit(2, guarded_put("k", compare::CompareResult::Greater, 400));
    script.numbered(first, 400);
    let (_, count) = script.asked();
    assert_eq!(count, 1, "an unknown number is greater than all that was heard");
}

/// H24, O4: an answer that rests on a write in flight is lost with it.
#[test]
fn an_answer_that_saw_a_lost_write_is_never_given() {
    let mut script = Script::leading(1);
    script.submit(1, put("k", "dirty"));
    let (batch, _) = script.asked();
    script.numbered(batch, 1);
    let (entry, _) = script.proposed();
    script.submit(2, guarded_put("k", compare::CompareResult::Equal, 1));
    let (batch, _) = script.asked();
    script.numbered(batch, 2);
    assert!(script.answers().is_empty());
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.end(entry, EntryEnd::Dropped);
    assert_eq!(script.answers(), ["2 not leader", "1 not leader"]);
}

/// H21, O3: when a proposal is dropped, nothing that was evaluated on it may be proposed.
#[test]
fn work_that_rests_on_a_dropped_proposal_is_dropped_with_it() {
    let mut script = Script::leading(1);
    script.submit(1, put("k", "1"));
    let (batch, _) = script.asked();
    script.numbered(batch, 1);
    let (entry, _) = script.proposed();
    script.submit(2, guarded_put("k", compare::CompareResult::Equal, 2));
    let (batch, _) = script.asked();
    script.end(entry, EntryEnd::Dropped);
    script.numbered(batch, 2);
    assert!(!script.effects.iter().any(|e| matches!(e, Effect::Propose { .. })));
    assert_eq!(script.answers(), ["1 not leader", "2 not leader"]);
    assert_eq!(script.pipeline.leading(), None, "this pipeline gives up the term");
    assert_eq!((script.holes, script.unused), (1, 1), "number 2 was proposed in vain, number 3 came too late");
}

/// H22, O1: leader, follower, leader: what belongs to the old term is never proposed in the new one.
#[test]
fn a_late_number_of_an_older_term_is_ignored() {
    let mut script = Script::leading(1).with_key("k", "old", 1);
    script.submit(1, put("k", "term five"));
    let (late, _) = script.asked();
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    assert_eq!(script.answers(), ["1 not leader"]);
    script.pipeline.on_leader(Term(7), Vec::new(), Vec::new(), &mut script.effects);
    script.submit(2, put("k", "term seven"));
    script.numbered(late, 10);
    assert!(!script.effects.iter().any(|e| matches!(e, Effect::Propose { .. })));
    let (batch, _) = script.asked();
    script.numbered(batch, 20);
    let (_, data) = script.proposed();
    let entry = RegionEntry::decode(data).expect("an entry");
    assert_eq!((entry.term, entry.txns.len(), entry.txns[0].revision), (7, 1, 21));
    assert_eq!(entry.txns[0].changes[0].version, 2, "evaluated on the applied record, not on term five's");
}

/// H25, O2: in a term whose first entry is not applied, nothing is evaluated.
#[test]
fn nothing_is_evaluated_before_the_term_is_ready() {
    let mut script = Script::leading(1);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.submit(1, put("k", "v"));
    assert_eq!(script.answers(), ["1 not leader"]);
    assert!(script.asks_nothing());
}

/// A role change that arrives late (the threads of raft and apply cross) does not undo a newer one.
#[test]
fn an_older_role_change_is_ignored() {
    let mut script = Script::leading(1);
    script.pipeline.on_follower(Term(4), None, &mut script.effects);
    assert_eq!(script.pipeline.leading(), Some(Term(5)));
    script.pipeline.on_follower(Term(8), None, &mut script.effects);
    script.pipeline.on_leader(Term(7), Vec::new(), Vec::new(), &mut script.effects);
    assert_eq!(script.pipeline.leading(), None);
}

/// H48, N5, N6: without numbers in time the items certainly did not happen, and a late answer is ignored.
#[test]
fn unnumbered_work_is_refused_and_leaves_nothing_behind() {
    let mut script = Script::leading(1);
    script.submit(1, put("k", "v"));
    let (batch, _) = script.asked();
    script.submit(2, put("k", "w"));
    let seq = script.pipeline.in_flight(&single("k"), 5).expect("in flight");
    script.pipeline.wait_applied(seq, 9, &mut script.effects);
    script.pipeline.not_numbered(batch, "no sequencer", &mut script.effects);
    script.pump();
    assert_eq!(script.answers(), ["1 timed out", "2 timed out", "wake 9 again"]);
    assert_eq!(script.pipeline.in_flight(&single("k"), i64::MAX >> 2), None);
    script.numbered(batch, 1);
    assert!(!script.effects.iter().any(|e| matches!(e, Effect::Propose { .. })));
    script.submit(3, put("k", "x"));
    let (batch, _) = script.asked();
    script.numbered(batch, 5);
    let entry = script.proposed();
    script.apply(entry);
    assert_eq!(script.answers(), ["3 put @6"]);
    assert_eq!(script.applied.0[&user_key(b"k")].version, 1, "the refused puts left no trace");
}

/// S1, O7: a barrier lets what was evaluated finish, holds back the rest, and loses nothing.
#[test]
fn a_barrier_drains_and_then_lets_the_queue_go_on() {
    let mut script = Script::leading(1);
    script.submit(1, put("a", "1"));
    let (batch, _) = script.asked();
    let barrier = script.pipeline.begin_barrier(Until::Idle).expect("no other");
    assert!(script.pipeline.begin_barrier(Until::Idle).is_none(), "one barrier at a time");
    script.submit(2, put("b", "2"));
    script.numbered(batch, 1);
    let entry = script.proposed();
    assert!(!script.effects.iter().any(|e| matches!(e, Effect::Drained)));
    script.apply(entry);
    assert_eq!(script.effects.iter().filter(|e| matches!(e, Effect::Drained)).count(), 1);
    assert_eq!(script.answers(), ["1 put @2"]);
    assert!(script.asks_nothing());
    script.pipeline.end_barrier(barrier);
    script.pump();
    assert_eq!(script.asked().1, 1);
}

/// Requests that waited behind a split's barrier meet the new epoch and are sent elsewhere.
#[test]
fn the_epoch_is_checked_when_the_request_is_evaluated() {
    let mut script = Script::leading(1);
    let barrier = script.pipeline.begin_barrier(Until::Idle).expect("no other");
    script.submit(1, put("b", "2"));
    let version = EPOCH.version + 1;
    let region = Region { id: 7, epoch: Some(RegionEpoch { version, ..EPOCH }), ..Default::default() };
    script.pipeline.on_region(region, &mut script.effects);
    script.pipeline.end_barrier(barrier);
    script.pump();
    assert_eq!(script.answers(), ["1 epoch mismatch"]);
}

/// Hot keys pipeline: several entries on one key are in flight at once, and their number is bounded.
#[test]
fn entries_in_flight_are_bounded_and_the_rest_joins_one_batch() {
    let mut script = Script::leading(1);
    let mut entries = Vec::new();
    for id in 0..ENTRIES_IN_FLIGHT_MAX as u32 {
        script.submit(id, put("k", "v"));
        let (batch, count) = script.asked();
        assert_eq!(count, 1);
        script.numbered(batch, 1 + i64::from(id));
        entries.push(script.proposed());
    }
    for id in 10..20 {
        script.submit(id, put("k", "v"));
    }
    assert!(script.asks_nothing());
    script.apply(entries.remove(0));
    assert_eq!(script.asked().1, 10);
}

/// prev_kv of a put over an in-flight put shows the value and, once it is known, the revision of that put.
#[test]
fn results_that_name_unnumbered_writes_are_filled_in() {
    let mut script = Script::leading(1);
    script.submit(1, put("k", "one"));
    let (first, _) = script.asked();
    script.submit(2, Request::Put(PutRequest { prev_kv: true, ..put_request("k", "two") }));
    script.numbered(first, 30);
    let one = script.proposed();
    let (second, _) = script.asked();
    script.apply(one);
    script.numbered(second, 77);
    let two = script.proposed();
    script.apply(two);
    assert_eq!(script.answers(), ["1 put @31", "2 put @78 before one@31"]);
}
