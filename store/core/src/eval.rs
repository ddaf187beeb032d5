//! etcd's transaction semantics, exactly (`etcd-semantics` 2.1 to 2.7): one request on one state, changes and answer out.
//!
//! 1. The whole tree of comparisons is decided on the state before the transaction, nested ones too (`compare`).
//! 2. Every operation of the path taken is checked against that same state; any failure fails the whole.
//! 3. The operations run in order, each seeing what the earlier ones of the same transaction wrote (`txn`).
//! 4. No change: the answer is that of a read, at the counter before it. Changes: they take one revision.
//!
//! Revisions that are not known yet are placeholders ([`crate::placeholder`]), in changes and in answers; [`fill`] and
//! [`fill_changes`] replace them once the numbers have arrived. Where the result depends on such a revision the
//! evaluation says what to wait for instead of guessing (rule O5), and leaves no trace.
//!
//! API checks (empty keys, operation counts, duplicate keys, sort options) are the proxy's. What slips through the
//! duplicate rule's two blind spots, the same key put and deleted in one transaction, runs in the order of operations.

use std::collections::HashSet;
use std::ops::ControlFlow;

use braid_proto::error::EtcdStatus;
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest, TxnRequest, request_op::Request as Op};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Change, EtcdError, region_response};
use braid_proto::span::txn_accesses;

use crate::view::{Damaged, View};

mod compare;
mod fill;
mod op;
mod range;
mod run;
#[cfg(test)]
mod tests;
mod txn;

pub use fill::{fill, fill_changes};
pub use range::read;
pub use run::{ROWS_BYTES_MAX, key_value};

use run::{Run, Stop};

/// Keys that one request may change in one entry of one region. What changes more takes the way of transactions over
/// several regions (rule M8): evaluating and applying it at once would stall the region.
pub const EFFECT_CHANGES_MAX: usize = 16_384;
/// Bytes that the changes of one request may take in one entry.
pub const EFFECT_BYTES_MAX: usize = 32 << 20;

/// What may change data.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// One put.
    Put(PutRequest),
    /// One delete of a key or a range.
    DeleteRange(DeleteRangeRequest),
    /// A transaction, also one that only reads.
    Txn(TxnRequest),
}

impl Request {
    /// Whether it holds a put, in a branch taken or not: what a full store refuses.
    pub fn puts(&self) -> bool {
        match self {
            Self::Put(_) => true,
            Self::DeleteRange(_) => false,
            Self::Txn(txn) => txn_puts(txn),
        }
    }

    /// What it reads and, where the flag is set, writes: both branches of a transaction.
    pub fn accesses(&self) -> Vec<(KeyRange, bool)> {
        match self {
            Self::Put(put) => vec![(KeyRange::user(&put.key, b""), true)],
            Self::DeleteRange(delete) => vec![(KeyRange::user(&delete.key, &delete.range_end), true)],
            Self::Txn(txn) => {
                let mut accesses = Vec::new();
                _ = txn_accesses(txn, &mut |span, writes| {
                    accesses.push((span, writes));
                    ControlFlow::Continue(())
                });
                accesses
            }
        }
    }
}

fn txn_puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Op::RequestPut(_)) => true,
        Some(Op::RequestTxn(nested)) => txn_puts(nested),
        Some(Op::RequestRange(_) | Op::RequestDeleteRange(_)) | None => false,
    })
}

/// What an evaluation knows beside the data.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Newest revision this process has heard of, sampled before the evaluation: the item's own number is greater.
    pub heard: i64,
    /// A bound was taken for this item after it arrived, and `heard` is not below it: a revision above `heard` has
    /// certainly not happened when the item arrived.
    pub heard_is_fresh: bool,
    /// Newest compacted revision; 0: none.
    pub compacted: i64,
    /// Most bytes of changes; beyond it the request is too large.
    pub effect_bytes_max: usize,
    /// Most changes; beyond it the request is too large.
    pub effect_changes_max: usize,
    /// Which leases a put may name.
    pub leases: Leases<'a>,
}

/// What is known of leases. A put that names one of which nothing is known waits for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leases<'a> {
    /// These exist and are registered for every key that the request may put; `None`: none.
    pub attached: Option<&'a HashSet<i64>>,
    /// These did not exist at some moment since the request arrived.
    pub missing: &'a [i64],
}

impl Default for Context<'_> {
    fn default() -> Self {
        Self {
            heard: 0,
            heard_is_fresh: false,
            compacted: 0,
            effect_bytes_max: EFFECT_BYTES_MAX,
            effect_changes_max: EFFECT_CHANGES_MAX,
            leases: Leases::default(),
        }
    }
}

/// How an evaluation ends.
///
/// `rests_on` is the newest in-flight write that any read of the evaluation saw: the answer must not leave before that
/// write is applied (rule O4).
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluated {
    /// Undecided. Evaluate again, from the start, when this has happened.
    Wait(WaitFor),
    /// Nothing changes, and this is the answer.
    Fail {
        /// The answer.
        error: EtcdError,
        /// See above.
        rests_on: Option<u64>,
    },
    /// Nothing changes; takes a bound.
    Read {
        /// The answer; its headers say [`crate::placeholder::BEFORE`].
        response: region_response::Result,
        /// See above.
        rests_on: Option<u64>,
    },
    /// It would change more than [`Context`] allows at once. Nothing changes.
    TooLarge,
    /// Changes keys; takes a number.
    Write {
        /// In sub-revision order. `supersedes` and `create_revision` may be placeholders.
        changes: Vec<Change>,
        /// The answer.
        response: region_response::Result,
        /// See above.
        rests_on: Option<u64>,
    },
}

/// What an undecided evaluation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The number of this in-flight write, which has none yet. Those before it arrive no later.
    Number(u64),
    /// This in-flight write to be applied.
    Applied(u64),
    /// A bound taken from now on: the request names a revision that nobody here has heard of.
    Bound,
    /// Whether this lease exists, and its registration for the keys of the request.
    Lease(i64),
}

/// Evaluates `request`.
///
/// # Errors
/// The data under `view` cannot be read.
pub fn evaluate(request: &Request, view: &View<'_>, context: &Context<'_>) -> Result<Evaluated, Damaged> {
    let mut run = Run::new(view, context);
    let result = match request {
        Request::Put(put) => op::put_alone(&mut run, put).map(region_response::Result::Put),
        Request::DeleteRange(delete) => op::delete(&mut run, delete).map(region_response::Result::DeleteRange),
        Request::Txn(txn) => txn::txn(&mut run, txn).map(region_response::Result::Txn),
    };
    let rests_on = run.rests_on();
    match result {
        Ok(response) if run.changes.is_empty() => Ok(Evaluated::Read { response, rests_on }),
        Ok(response) => Ok(Evaluated::Write { changes: run.changes, response, rests_on }),
        Err(Stop::TooLarge) => Ok(Evaluated::TooLarge),
        Err(Stop::Wait(wait)) => Ok(Evaluated::Wait(wait)),
        Err(Stop::Fail(error)) => Ok(Evaluated::Fail { error, rests_on }),
        Err(Stop::Damaged(damaged)) => Err(damaged),
    }
}

fn fail(error: EtcdStatus) -> Stop {
    Stop::Fail(error.into())
}
