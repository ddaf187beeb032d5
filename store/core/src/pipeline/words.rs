//! The words between a region's pipeline and its shell: what is to be done, what happened, what is answered.

use braid_proto::error::EtcdStatus;
use braid_proto::id::Term;
use braid_proto::key::KeyRange;
use braid_proto::pb::{self, LeaseRange, LockToken, Refusal, RegionResponse, Share, TxnId, refusal, region_response};
use bytes::Bytes;

use super::lease_work::LeaseWork;
use crate::eval::Request;

/// Names one numbering request of one pipeline: answers to any but the newest are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchId(pub(super) u64);

/// Names one proposed entry of one pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(pub(super) u64);

/// How a proposed entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryEnd {
    /// Committed and applied here.
    Applied,
    /// Certainly never happens.
    Dropped,
    /// Nobody here can tell.
    Unknown,
}

/// What the shell does next. `R` answers a request, `W` wakes a reader.
#[derive(Debug)]
pub enum Effect<R, W> {
    /// Ask for `count` numbers; answer with [`super::Pipeline::numbered`] or [`super::Pipeline::not_numbered`].
    Number {
        /// What to answer with.
        batch: BatchId,
        /// Numbers wanted; 0: a bound only.
        count: u32,
    },
    /// Propose `data` in `term`; answer with [`super::Pipeline::entry_ended`]. Must be carried out in the order of the effects.
    Propose {
        /// What to answer with.
        entry: EntryId,
        /// Term to propose in.
        term: Term,
        /// Encoded [`pb::RegionEntry`].
        data: Bytes,
    },
    /// Answer `to`, but only if this peer holds a lease of `term` after this effect was made (rule Q2).
    Judge {
        /// Who asked.
        to: R,
        /// Term whose lease is needed.
        term: Term,
        /// The answer.
        answer: RegionResponse,
    },
    /// Answer `to`.
    Reply {
        /// Who asked.
        to: R,
        /// The answer.
        answer: RegionResponse,
    },
    /// What this reader waited for has ended.
    Wake {
        /// Who waits.
        reader: W,
        /// How.
        woken: Woken,
    },
    /// The barrier asked for by [`super::Pipeline::begin_barrier`] stands: nothing is in flight.
    Drained,
    /// The transaction has happened at `revision`: see that `share` is done, however often it must be asked for, and say
    /// so with [`super::Pipeline::carried`].
    Carry {
        /// The record.
        token: LockToken,
        /// The transaction.
        txn: TxnId,
        /// Its revision.
        revision: i64,
        /// What is to be done.
        share: Share,
    },
    /// Ask the primary what became of `txn`, and say so with [`super::Pipeline::told`].
    Ask {
        /// The lock that waits for it.
        token: LockToken,
        /// The transaction.
        txn: TxnId,
        /// Its primary key.
        primary: Bytes,
    },
    /// See that `range` is in the record of `lease`, if there is one, and say so with [`super::Pipeline::registered`].
    Register {
        /// What to answer with.
        question: u64,
        /// The lease.
        lease: i64,
        /// What shall have its keys.
        range: KeyRange,
    },
    /// Nothing more is attached to `lease`: see that its keys go, which lie in `ranges`, however often it must be tried, and
    /// say so with [`super::Pipeline::lease_keys_gone`].
    Revoke {
        /// The lease.
        lease: i64,
        /// Where its keys are.
        ranges: Vec<LeaseRange>,
    },
}

/// How a reader's wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// What it waited for is applied.
    Applied,
    /// What it waited for was taken back, or a lock is out of the way: it must look again. Of what was taken back some may
    /// have happened all the same, as the share of a transaction that is decided elsewhere.
    Again,
    /// Leadership is lost.
    Lost,
}

/// What a queue holds.
#[derive(Debug)]
pub enum Work {
    /// A request of one region.
    Evaluate(Request),
    /// Lock ranges.
    Lock(pb::LockRequest),
    /// Decide a transaction.
    Decide(pb::DecideRequest),
    /// Give up what a transaction has locked here.
    Release(TxnId),
    /// Do a share of a transaction that has happened.
    Commit(pb::CommitRequest),
    /// The region's own: go on with a lock, whatever its next step is.
    Step(LockToken),
    /// The region's own: the transaction of this lock is over, undecided.
    Abort(LockToken),
    /// The region's own: remove the records whose shares are done.
    Forget,
    /// Something about a lease.
    Lease {
        /// What.
        work: LeaseWork,
        /// What it waits for, as last seen; nobody overtakes it there.
        accesses: Vec<(KeyRange, bool)>,
    },
}

impl From<LeaseWork> for Work {
    fn from(work: LeaseWork) -> Self {
        Self::Lease { work, accesses: Vec::new() }
    }
}

/// What the sequencer gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The counter before the block: its numbers are `base + 1 ..= base + count`.
    pub base: i64,
    /// Newest compacted revision, 0 if there is none.
    pub compacted: i64,
}

/// An answer that needs the lease of `term`, checked after.
pub fn judge<R, W>(to: R, term: Term, answer: region_response::Result) -> Effect<R, W> {
    Effect::Judge { to, term, answer: RegionResponse { result: Some(answer) } }
}

/// An answer.
pub fn reply<R, W>(to: R, result: region_response::Result) -> Effect<R, W> {
    Effect::Reply { to, answer: RegionResponse { result: Some(result) } }
}

/// A refusal.
pub fn refuse<R, W>(to: R, refusal: Refusal) -> Effect<R, W> {
    Effect::Reply { to, answer: RegionResponse { result: Some(region_response::Result::Refusal(refusal)) } }
}

/// One of etcd's errors.
pub fn error<R, W>(to: R, error: EtcdStatus) -> Effect<R, W> {
    Effect::Reply { to, answer: RegionResponse { result: Some(region_response::Result::Error(error.into())) } }
}

/// Refusal: try again after a short pause.
pub fn busy(what: &str) -> Refusal {
    Refusal { reason: Some(refusal::Reason::Busy(pb::Busy { what: what.to_owned(), retry_after_ms: 20 })) }
}

/// Refusal: nothing was proposed before the deadline.
pub fn timed_out(what: &str) -> Refusal {
    Refusal { reason: Some(refusal::Reason::TimedOut(pb::TimedOut { what: what.to_owned() })) }
}

/// Refusal: the request may have happened.
pub fn unknown(why: &str) -> Refusal {
    Refusal { reason: Some(refusal::Reason::Unknown(pb::Unknown { why: why.to_owned() })) }
}

/// Refusal: there is no such region here.
pub fn not_found() -> Refusal {
    Refusal { reason: Some(refusal::Reason::RegionNotFound(pb::RegionNotFound {})) }
}
