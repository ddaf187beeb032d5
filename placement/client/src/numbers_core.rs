//! The client of the sequencer as a value: requests and answers in, one numbering request at a time out.
//!
//! ```text
//!  in                                     out
//!  request(count, caller, now)  ┐       ┌ NumberRequest to send: next(now), the same again: repeat()
//!  answer(NumberAnswer)         ├─ Core ┤ Dealt: each caller its block, in order of arrival
//!  give_up()                    ┘       └ callers without a number: expired, given up, drained
//! ```
//!
//! 1. Requests queue in order of arrival.
//! 2. When nothing is outstanding, all that wait become one numbering request under the next `seq` (rule Q1: a question
//!    serves only what arrived before it was sent).
//! 3. The answer's block is dealt out in queue order: each request gets its consecutive part, a bound its place.
//! 4. Without an answer the same request is repeated under the same `seq` (rule N5), wherever the sequencer now is.
//! 5. Past its deadline it is given up: its callers learn that they certainly have no number, the next request takes the
//!    next `seq`, and an answer that still comes is ignored (H48). Who waited too long behind it is told so and never
//!    asked for, which leaves no hole.
//!
//! Deliberately absent: clocks and connections; the shell brings both.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use braid_proto::pb::{NumberAnswer, NumberRequest, number_answer::Refusal};
use thiserror::Error;

/// Requests that may wait for the one outstanding; beyond it callers are refused.
pub const WAITING_MAX: usize = 65_536;
/// Numbers that one request asks for at most; the rest waits for the next.
pub const COUNT_MAX: u32 = 1 << 20;
/// What a request has at least, however long its callers waited behind the one before. A caller waits no longer than
/// the patience and this.
const LAST_CHANCE: Duration = Duration::from_secs(1);

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
    /// Too many requests wait already, or one asks for too many numbers.
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
    /// It will never be answered, for this reason: give up.
    Stale(String),
    /// Not an answer to what is outstanding, or not one of a sequencer in office.
    Ignored,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub struct Next<D> {
    /// They waited too long and have no number; nobody was asked for one.
    pub expired: Vec<D>,
    /// Send this and wait for its answer.
    pub request: Option<NumberRequest>,
}

impl<D> Next<D> {
    /// Whether there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.expired.is_empty() && self.request.is_none()
    }
}

#[derive(Debug)]
struct Waiting<D> {
    count: u32,
    done: D,
    arrived: Instant,
}

#[derive(Debug)]
struct Outstanding<D> {
    seq: u64,
    count: u32,
    deadline: Instant,
    callers: Vec<Waiting<D>>,
}

/// See the module's steps. `D` is what a caller gets its answer by.
#[derive(Debug)]
pub struct Core<D> {
    client_id: u64,
    cluster_id: u64,
    patience: Duration,
    /// `seq` of the newest request. Never reused.
    seq: u64,
    /// Newest that an answer carried. Neither goes back.
    heard_epoch: u64,
    heard_revision: i64,
    /// In order of arrival. At most [`WAITING_MAX`].
    waiting: VecDeque<Waiting<D>>,
    outstanding: Option<Outstanding<D>>,
}

impl<D> Core<D> {
    /// A client that has heard nothing. `client_id` is drawn at random at every process start, so the incarnation that
    /// the protocol has for clients with lasting names is always the first.
    pub fn new(client_id: u64, cluster_id: u64, patience: Duration) -> Self {
        Self {
            client_id,
            cluster_id,
            patience,
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

    /// The `seq` that is outstanding.
    pub fn outstanding(&self) -> Option<u64> {
        self.outstanding.as_ref().map(|outstanding| outstanding.seq)
    }

    /// When the outstanding request is to be given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|outstanding| outstanding.deadline)
    }

    /// Queues a request. Gives `done` back if too many wait, or if no answer could be large enough.
    pub fn request(&mut self, count: u32, done: D, now: Instant) -> Result<(), D> {
        if self.waiting.len() >= WAITING_MAX || count > COUNT_MAX {
            return Err(done);
        }
        self.waiting.push_back(Waiting { count, done, arrived: now });
        Ok(())
    }

    /// The numbering request to send now, if nothing is outstanding and somebody waits.
    pub fn next(&mut self, now: Instant) -> Next<D> {
        if self.outstanding.is_some() {
            return Next { expired: Vec::new(), request: None };
        }
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|waiting| waiting.arrived + self.patience <= now) {
            expired.extend(self.waiting.pop_front().map(|waiting| waiting.done));
        }
        let Some(oldest) = self.waiting.front().map(|waiting| waiting.arrived) else {
            return Next { expired, request: None };
        };
        let mut callers = Vec::with_capacity(self.waiting.len());
        let mut count = 0;
        while let Some(waiting) = self.waiting.front() {
            if count + waiting.count > COUNT_MAX {
                break;
            }
            count += waiting.count;
            callers.extend(self.waiting.pop_front());
        }
        self.seq += 1;
        let deadline = (oldest + self.patience).max(now + LAST_CHANCE.min(self.patience));
        self.outstanding = Some(Outstanding { seq: self.seq, count, deadline, callers });
        Next { expired, request: self.repeat() }
    }

    /// The outstanding request again.
    pub fn repeat(&self) -> Option<NumberRequest> {
        let outstanding = self.outstanding.as_ref()?;
        Some(NumberRequest {
            client_id: self.client_id,
            incarnation: 1,
            seq: outstanding.seq,
            count: outstanding.count,
            heard_epoch: self.heard_epoch,
            heard_revision: self.heard_revision,
            cluster_id: self.cluster_id,
        })
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: &NumberAnswer) -> Answered<D> {
        let outstanding = match self.outstanding.take() {
            Some(outstanding) if outstanding.seq == answer.seq => outstanding,
            other => {
                self.outstanding = other;
                return Answered::Ignored;
            }
        };
        let answered = match &answer.refusal {
            Some(Refusal::NotLeader(leader)) => Answered::NotLeader(leader.clone()),
            Some(Refusal::Busy(_)) => Answered::Busy,
            Some(Refusal::Behind(why)) => Answered::Behind(why.clone()),
            Some(Refusal::Stale(why)) => Answered::Stale(why.clone()),
            // A deposed sequencer, which the client has already left behind, or a block of another size.
            None if answer.epoch < self.heard_epoch
                || answer.base < self.heard_revision
                || answer.count != outstanding.count =>
            {
                Answered::Ignored
            }
            None => {
                self.heard_epoch = answer.epoch;
                self.heard_revision = answer.base + i64::from(answer.count);
                return Answered::Dealt(deal(outstanding.callers, answer));
            }
        };
        self.outstanding = Some(outstanding);
        answered
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
mod tests;
