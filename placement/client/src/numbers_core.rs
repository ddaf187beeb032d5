//! The client of the sequencer as a value: requests and answers in, one numbering request at a time out.
//!
//! 1. Requests queue in order of arrival.
//! 2. When nothing is outstanding, all that wait become one numbering request under the next `seq` (rule Q1: a question
//!    serves only what arrived before it was sent).
//! 3. The answer's block is dealt out in queue order: each request gets its consecutive part, a bound its place.
//! 4. Without an answer the same request is repeated under the same `seq` (rule N5), wherever the sequencer now is.
//! 5. Past its deadline it is given up: its callers learn that they certainly have no number, the next request takes the
//!    next `seq`, and an answer that still comes is ignored (H48).
//!
//! Deliberately absent: time and connections; the shell brings both.

use std::collections::VecDeque;

use braid_proto::pb::{NumberAnswer, NumberRequest, number_answer::Refusal};
use thiserror::Error;

/// Requests that may wait for the one outstanding; beyond it callers are refused.
pub const WAITING_MAX: usize = 65_536;
/// Numbers that one request asks for at most; the rest waits for the next.
pub const COUNT_MAX: u32 = 1 << 20;

/// Consecutive revisions, given to one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Epoch of the sequencer that gave it.
    pub epoch: u64,
    /// The counter before it: the numbers are `base + 1 ..= base + count`; with `count` 0, `base` is a bound.
    pub base: i64,
    /// How many.
    pub count: u32,
    /// Newest compacted revision; 0: none.
    pub compacted: i64,
    /// Revision of the auth state.
    pub auth_revision: u64,
}

/// Why there is no number. None was given, or none that anybody may use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NumberError {
    /// No sequencer answered in time.
    #[error("no sequencer answered in time{0}")]
    TimedOut(String),
    /// Too many requests wait already.
    #[error("too many requests wait for the sequencer")]
    Overloaded,
    /// The client was stopped.
    #[error("the process is stopping")]
    Stopped,
}

/// What an answer meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered<D> {
    /// These callers have their blocks, in this order.
    Dealt(Vec<(D, Block)>),
    /// Ask again, there if an address is known.
    NotLeader(String),
    /// Ask again after a moment.
    Busy,
    /// The sequencer knows less than we do (rule N3): ask again, but somebody should look.
    Behind(String),
    /// The sequencer has answered this or a later `seq` already and forgotten how: give up.
    Stale,
    /// Not the answer to what is outstanding.
    Ignored,
}

struct Waiting<D> {
    count: u32,
    done: D,
}

struct Outstanding<D> {
    seq: u64,
    count: u32,
    callers: Vec<Waiting<D>>,
}

/// See the module's steps. `D` is what a caller gets its answer by.
pub struct Core<D> {
    client_id: u64,
    incarnation: u64,
    cluster_id: u64,
    seq: u64,
    heard_epoch: u64,
    heard_revision: i64,
    waiting: VecDeque<Waiting<D>>,
    outstanding: Option<Outstanding<D>>,
}

impl<D> Core<D> {
    /// A client that has heard nothing.
    pub fn new(client_id: u64, incarnation: u64, cluster_id: u64) -> Self {
        Self {
            client_id,
            incarnation,
            cluster_id,
            seq: 0,
            heard_epoch: 0,
            heard_revision: 0,
            waiting: VecDeque::new(),
            outstanding: None,
        }
    }

    /// Newest epoch and revision that an answer carried.
    pub fn heard(&self) -> (u64, i64) {
        (self.heard_epoch, self.heard_revision)
    }

    /// Queues a request. Gives `done` back if too many wait.
    pub fn request(&mut self, count: u32, done: D) -> Result<(), D> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(done);
        }
        self.waiting.push_back(Waiting { count, done });
        Ok(())
    }

    /// The numbering request to send now, if nothing is outstanding and somebody waits.
    pub fn next(&mut self) -> Option<NumberRequest> {
        if self.outstanding.is_some() || self.waiting.is_empty() {
            return None;
        }
        let mut callers = Vec::with_capacity(self.waiting.len());
        let mut count = 0;
        while let Some(waiting) = self.waiting.front() {
            if !callers.is_empty() && count + waiting.count > COUNT_MAX {
                break;
            }
            count += waiting.count;
            callers.extend(self.waiting.pop_front());
        }
        self.seq += 1;
        self.outstanding = Some(Outstanding { seq: self.seq, count, callers });
        self.repeat()
    }

    /// The outstanding request again, the same but for what was heard since.
    pub fn repeat(&self) -> Option<NumberRequest> {
        let outstanding = self.outstanding.as_ref()?;
        Some(NumberRequest {
            client_id: self.client_id,
            incarnation: self.incarnation,
            seq: outstanding.seq,
            count: outstanding.count,
            heard_epoch: self.heard_epoch,
            heard_revision: self.heard_revision,
            cluster_id: self.cluster_id,
        })
    }

    /// The `seq` that is outstanding.
    pub fn outstanding(&self) -> Option<u64> {
        self.outstanding.as_ref().map(|outstanding| outstanding.seq)
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: &NumberAnswer) -> Answered<D> {
        if self.outstanding() != Some(answer.seq) {
            return Answered::Ignored;
        }
        match &answer.refusal {
            Some(Refusal::NotLeader(leader)) => return Answered::NotLeader(leader.clone()),
            Some(Refusal::Busy(_)) => return Answered::Busy,
            Some(Refusal::Behind(why)) => return Answered::Behind(why.clone()),
            Some(Refusal::Stale(_)) => return Answered::Stale,
            None => {}
        }
        // A deposed sequencer, which the client has already left behind, or a block of another size.
        let wrong_size = self.outstanding.as_ref().is_some_and(|outstanding| outstanding.count != answer.count);
        if answer.epoch < self.heard_epoch || answer.base < self.heard_revision || wrong_size {
            return Answered::Ignored;
        }
        let Some(outstanding) = self.outstanding.take() else { return Answered::Ignored };
        self.heard_epoch = answer.epoch;
        self.heard_revision = answer.base + i64::from(answer.count);
        Answered::Dealt(deal(outstanding.callers, answer))
    }

    /// Gives the outstanding request up; its callers have no number.
    pub fn give_up(&mut self) -> Vec<D> {
        let callers = self.outstanding.take().map(|outstanding| outstanding.callers).unwrap_or_default();
        callers.into_iter().map(|caller| caller.done).collect()
    }

    /// Everybody who waits or is outstanding, at the end.
    pub fn drain(&mut self) -> Vec<D> {
        let mut all = self.give_up();
        all.extend(self.waiting.drain(..).map(|waiting| waiting.done));
        all
    }
}

fn deal<D>(callers: Vec<Waiting<D>>, answer: &NumberAnswer) -> Vec<(D, Block)> {
    let mut base = answer.base;
    let blocks = callers.into_iter().map(|caller| {
        let block = Block {
            epoch: answer.epoch,
            base,
            count: caller.count,
            compacted: answer.compacted,
            auth_revision: answer.auth_revision,
        };
        base += i64::from(caller.count);
        (caller.done, block)
    });
    blocks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(seq: u64, epoch: u64, base: i64, count: u32) -> NumberAnswer {
        NumberAnswer { seq, epoch, base, count, ..Default::default() }
    }

    fn refused(seq: u64, refusal: Refusal) -> NumberAnswer {
        NumberAnswer { seq, refusal: Some(refusal), ..Default::default() }
    }

    fn dealt(answered: Answered<char>) -> Vec<(char, i64, u32)> {
        match answered {
            Answered::Dealt(blocks) => blocks.into_iter().map(|(to, b)| (to, b.base, b.count)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn core() -> Core<char> {
        Core::new(3, 1, 9)
    }

    #[test]
    fn what_waits_is_merged_and_dealt_out_in_order() {
        let mut core = core();
        core.request(2, 'a').unwrap();
        let first = core.next().unwrap();
        assert_eq!((first.seq, first.count), (1, 2));
        core.request(0, 'b').unwrap();
        core.request(3, 'c').unwrap();
        core.request(0, 'd').unwrap();
        assert_eq!(core.next(), None, "one request is outstanding");
        assert_eq!(dealt(core.answer(&answer(1, 1, 10, 2))), [('a', 10, 2)]);
        let second = core.next().unwrap();
        assert_eq!((second.seq, second.count, second.heard_revision), (2, 3, 12));
        assert_eq!(dealt(core.answer(&answer(2, 1, 40, 3))), [('b', 40, 0), ('c', 40, 3), ('d', 43, 0)]);
        assert_eq!(core.heard(), (1, 43));
    }

    /// H38, Q1: a question that is already on its way does not serve who arrives later.
    #[test]
    fn a_bound_never_joins_a_question_already_sent() {
        let mut core = core();
        core.request(0, 'a').unwrap();
        core.next().unwrap();
        core.request(0, 'b').unwrap();
        assert_eq!(dealt(core.answer(&answer(1, 1, 100, 0))), [('a', 100, 0)]);
        assert_eq!(core.next().unwrap().seq, 2);
        assert_eq!(dealt(core.answer(&answer(2, 1, 101, 0))), [('b', 101, 0)]);
    }

    /// N5: after a lost answer or a new leader the same seq and count are asked for again.
    #[test]
    fn a_repeat_is_the_same_request() {
        let mut core = core();
        core.request(5, 'a').unwrap();
        let sent = core.next().unwrap();
        core.request(7, 'b').unwrap();
        assert_eq!(core.answer(&refused(1, Refusal::NotLeader("x:1".into()))), Answered::NotLeader("x:1".into()));
        assert_eq!(core.repeat().unwrap(), sent);
        assert_eq!(core.answer(&refused(1, Refusal::Busy(String::new()))), Answered::Busy);
        assert_eq!(dealt(core.answer(&answer(1, 2, 50, 5))), [('a', 50, 5)]);
    }

    /// H48: a late answer to what was given up is ignored, and its numbers are never dealt out.
    #[test]
    fn a_late_answer_is_ignored() {
        let mut core = core();
        core.request(1, 'a').unwrap();
        core.next().unwrap();
        assert_eq!(core.give_up(), ['a']);
        assert_eq!(core.answer(&answer(1, 1, 10, 1)), Answered::Ignored);
        core.request(1, 'b').unwrap();
        assert_eq!(core.next().unwrap().seq, 2);
        assert_eq!(core.answer(&answer(1, 1, 10, 1)), Answered::Ignored);
        assert_eq!(dealt(core.answer(&answer(2, 1, 11, 1))), [('b', 11, 1)]);
    }

    #[test]
    fn a_deposed_sequencers_answer_is_ignored() {
        let mut core = core();
        core.request(1, 'a').unwrap();
        core.next().unwrap();
        assert_eq!(dealt(core.answer(&answer(1, 4, 2000, 1))), [('a', 2000, 1)]);
        core.request(1, 'b').unwrap();
        core.next().unwrap();
        assert_eq!(core.answer(&answer(2, 3, 5000, 1)), Answered::Ignored, "older epoch");
        assert_eq!(core.answer(&answer(2, 4, 1999, 1)), Answered::Ignored, "below what was heard");
        assert_eq!(core.answer(&answer(2, 4, 2001, 2)), Answered::Ignored, "another size");
        assert_eq!(dealt(core.answer(&answer(2, 4, 2001, 1))), [('b', 2001, 1)]);
    }

    #[test]
    fn waiting_is_bounded() {
        let mut core = core();
        for _ in 0..WAITING_MAX {
            core.request(1, 'x').unwrap();
        }
        assert_eq!(core.request(1, 'y'), Err('y'));
        assert_eq!(core.drain().len(), WAITING_MAX);
    }
}
