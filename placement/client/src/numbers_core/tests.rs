//! Scripts of the core: a client as callers and the sequencer see it.

use super::*;

/// A core with callers named by letters, at second 0 of a clock that the script turns.
struct Script {
    core: Core<char>,
    start: Instant,
    second: f64,
}

impl Script {
    fn new() -> Self {
        Script { core: Core::new(3, 9, Duration::from_secs(5)), start: Instant::now(), second: 0.0 }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.second)
    }

    fn ask(&mut self, caller: char, count: u32) {
        self.core.request(count, caller, self.now()).unwrap();
    }

    /// What is sent now: (seq, count).
    fn sent(&mut self) -> Option<(u64, u32)> {
        let next = self.core.next(self.now());
        assert_eq!(next.expired, [], "nobody has waited too long");
        next.request.map(|request| (request.seq, request.count))
    }

    fn expired(&mut self) -> String {
        self.core.next(self.now()).expired.into_iter().collect()
    }

    /// The callers' bases and counts.
    fn dealt(&mut self, answer: NumberAnswer) -> Vec<(char, i64, u32)> {
        match self.core.answer(&answer) {
            Answered::Dealt(blocks) => blocks.into_iter().map(|(to, block)| (to, block.base, block.count)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn deadline(&self) -> f64 {
        (self.core.deadline().unwrap() - self.start).as_secs_f64()
    }
}

fn answer(seq: u64, epoch: u64, base: i64, count: u32) -> NumberAnswer {
    NumberAnswer { seq, epoch, base, count, ..Default::default() }
}

fn refused(seq: u64, refusal: Refusal) -> NumberAnswer {
    NumberAnswer { seq, refusal: Some(refusal), ..Default::default() }
}

#[test]
fn what_waits_is_merged_and_dealt_out_in_order() {
    let mut script = Script::new();
    script.ask('a', 2);
    assert_eq!(script.sent(), Some((1, 2)));
    script.ask('b', 0);
    script.ask('c', 3);
    script.ask('d', 0);
    assert_eq!(script.sent(), None, "one request is outstanding");
    assert_eq!(script.dealt(answer(1, 1, 10, 2)), [('a', 10, 2)]);
    let second = script.core.next(script.now()).request.unwrap();
    assert_eq!((second.seq, second.count, second.heard_epoch, second.heard_revision), (2, 3, 1, 12));
    assert_eq!((second.client_id, second.cluster_id), (3, 9));
    assert_eq!(script.dealt(answer(2, 1, 40, 3)), [('b', 40, 0), ('c', 40, 3), ('d', 43, 0)]);
    assert_eq!(script.core.heard(), (1, 43));
    assert_eq!(script.sent(), None);
}

#[test]
fn every_caller_learns_what_travels_with_the_answer() {
    let mut script = Script::new();
    script.ask('a', 1);
    script.sent();
    let full = NumberAnswer { compacted: 5, auth_revision: 7, ..answer(1, 2, 10, 1) };
    let block = Block { epoch: 2, base: 10, count: 1, compacted: 5, auth_revision: 7 };
    assert_eq!(script.core.answer(&full), Answered::Dealt(vec![('a', block)]));
}

/// H38, Q1: a question that is already on its way does not serve who arrives later.
#[test]
fn a_bound_never_joins_a_question_already_sent() {
    let mut script = Script::new();
    script.ask('a', 0);
    script.sent();
    script.ask('b', 0);
    // 100 was sampled before 'b' arrived, and 101 may have been acknowledged since.
    assert_eq!(script.dealt(answer(1, 1, 100, 0)), [('a', 100, 0)]);
    assert_eq!(script.sent(), Some((2, 0)));
    assert_eq!(script.dealt(answer(2, 1, 101, 0)), [('b', 101, 0)]);
}

/// N5: after a lost answer or a new leader the same seq and count are asked for again, whoever came since.
#[test]
fn a_repeat_is_the_same_request_and_may_get_the_same_block_once() {
    let mut script = Script::new();
    script.ask('a', 5);
    let sent = script.core.next(script.now()).request.unwrap();
    script.ask('b', 7);
    let not_leader = script.core.answer(&refused(1, Refusal::NotLeader("x:1".into())));
    assert_eq!(not_leader, Answered::NotLeader("x:1".into()));
    assert_eq!(script.core.repeat(), Some(sent));
    assert_eq!(script.core.answer(&refused(1, Refusal::Busy(String::new()))), Answered::Busy);
    assert_eq!(script.core.answer(&refused(1, Refusal::Behind("!".into()))), Answered::Behind("!".into()));
    assert_eq!(script.core.repeat(), Some(sent));
    assert_eq!(script.dealt(answer(1, 2, 50, 5)), [('a', 50, 5)]);
    assert_eq!(script.core.answer(&answer(1, 2, 50, 5)), Answered::Ignored, "the answer to the first sending");
}

/// H48: a late answer to what was given up is ignored, and its numbers are never dealt out.
#[test]
fn a_late_answer_is_ignored() {
    let mut script = Script::new();
    script.ask('a', 1);
    script.sent();
    assert_eq!(script.core.give_up(), ['a']);
    assert_eq!(script.core.answer(&answer(1, 1, 10, 1)), Answered::Ignored);
    script.ask('b', 1);
    assert_eq!(script.sent(), Some((2, 1)), "the number of a request is never used again");
    assert_eq!(script.core.answer(&answer(1, 1, 10, 1)), Answered::Ignored, "an older seq");
    assert_eq!(script.core.answer(&refused(1, Refusal::Stale(String::new()))), Answered::Ignored);
    assert_eq!(script.dealt(answer(2, 1, 11, 1)), [('b', 11, 1)]);
}

#[test]
fn a_deposed_sequencers_answer_is_ignored() {
    let mut script = Script::new();
    script.ask('a', 1);
    script.sent();
    assert_eq!(script.dealt(answer(1, 4, 2000, 1)), [('a', 2000, 1)]);
    script.ask('b', 1);
    script.sent();
    assert_eq!(script.core.answer(&answer(2, 3, 5000, 1)), Answered::Ignored, "older epoch");
    assert_eq!(script.core.answer(&answer(2, 4, 2000, 1)), Answered::Ignored, "below what was heard");
    assert_eq!(script.core.answer(&answer(2, 4, 2001, 2)), Answered::Ignored, "another size");
    assert_eq!(script.core.heard(), (4, 2001), "what was ignored was not heard");
    assert_eq!(script.dealt(answer(2, 4, 2001, 1)), [('b', 2001, 1)]);
}

#[test]
fn who_waited_too_long_is_told_and_not_asked_for() {
    let mut script = Script::new();
    script.ask('a', 1);
    script.sent();
    assert_eq!(script.deadline(), 5.0);
    script.second = 0.5;
    script.ask('b', 1);
    script.second = 3.0;
    script.ask('c', 2);
    script.second = 5.5;
    assert_eq!(script.core.give_up(), ['a']);
    assert_eq!(script.expired(), "b");
    let request = script.core.repeat().unwrap();
    assert_eq!((request.seq, request.count), (2, 2), "only for 'c'");
    assert_eq!(script.deadline(), 8.0, "it counts from the oldest caller's arrival ...");

    script.ask('d', 1);
    script.second = 10.0;
    assert_eq!(script.core.give_up(), ['c']);
    assert_eq!(script.sent(), Some((3, 1)));
    assert_eq!(script.deadline(), 11.0, "... but there is always time for one try");
}

#[test]
fn waiting_is_bounded() {
    let mut script = Script::new();
    assert_eq!(script.core.request(COUNT_MAX + 1, 'z', script.now()), Err('z'), "no answer could hold it");
    for _ in 0..WAITING_MAX {
        script.ask('x', 1);
    }
    assert_eq!(script.core.request(1, 'y', script.now()), Err('y'));
    assert_eq!(script.core.drain().len(), WAITING_MAX);
}

#[test]
fn more_than_one_answer_holds_is_asked_for_in_turns() {
    let mut script = Script::new();
    script.ask('a', COUNT_MAX - 1);
    script.ask('b', 1);
    script.ask('c', 1);
    script.ask('d', 0);
    assert_eq!(script.sent(), Some((1, COUNT_MAX)));
    assert_eq!(script.dealt(answer(1, 1, 1, COUNT_MAX)).len(), 2);
    assert_eq!(script.sent(), Some((2, 1)));
}
