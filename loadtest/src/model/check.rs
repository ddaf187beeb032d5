//! What is refused before anything is read, in etcd's order: the first fault of a request names its error.
//!
//! A transaction: number of operations, keys of the compares, every operation of both branches (nested ones with what
//! is left of the budget), then for each branch that no key is changed twice.

use std::collections::BTreeSet;

use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::request::{
    DUPLICATE_KEY, EMPTY_KEY, INVALID_SORT, KEY_NOT_FOUND, LEASE_PROVIDED, TOO_MANY_OPS, VALUE_PROVIDED,
};
use super::{Dialect, Refusal, contains};

/// etcd's default of `--max-txn-ops`.
pub const MAX_TXN_OPS: usize = 128;

/// Whether a range has no end.
pub fn is_open_ended(range_end: &[u8]) -> bool {
    range_end == [0]
}

pub(super) fn range(request: &RangeRequest) -> Result<(), Refusal> {
    key(&request.key)?;
    let known = (0..=2).contains(&request.sort_order) && (0..=4).contains(&request.sort_target);
    if known { Ok(()) } else { Err(INVALID_SORT) }
}

pub(super) fn put(request: &PutRequest) -> Result<(), Refusal> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(LEASE_PROVIDED);
    }
    Ok(())
}

pub(super) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    key(&request.key)
}

pub(super) fn txn(request: &TxnRequest, dialect: Dialect) -> Result<(), Refusal> {
    operations(request, MAX_TXN_OPS)?;
    changes(&request.success, dialect)?;
    changes(&request.failure, dialect)?;
    Ok(())
}

fn key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() { Err(EMPTY_KEY) } else { Ok(()) }
}

fn operations(request: &TxnRequest, budget: usize) -> Result<(), Refusal> {
    let used = request.compare.len().max(request.success.len()).max(request.failure.len());
    if used > budget {
        return Err(TOO_MANY_OPS);
    }
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Op::RequestTxn(request)) => operations(request, budget - used)?,
            None => return Err(KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// Keys that a branch may put and ranges that it may delete, nested operations included.
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

/// Collects them, or finds a key that would be put twice, or put and deleted. Deletes of this level count against every
/// put, deletes of a nested transaction only against what comes after it: so etcd misses a put in a nested transaction
/// whose key a later one deletes.
fn changes(branch: &[RequestOp], dialect: Dialect) -> Result<Changes<'_>, Refusal> {
    let mut all = Changes::default();
    for op in branch {
        if let Some(Op::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push((&delete.key, &delete.range_end));
        }
    }
    for op in branch {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            let success = changes(&nested.success, dialect)?;
            let failure = changes(&nested.failure, dialect)?;
            // Only one of the two runs: they may put the same keys.
            for key in success.puts.union(&failure.puts) {
                all.put(key, dialect)?;
            }
            all.deletes.extend(success.deletes);
            all.deletes.extend(failure.deletes);
        }
    }
    for op in branch {
        if let Some(Op::RequestPut(put)) = &op.request {
            all.put(&put.key, dialect)?;
        }
    }
    Ok(all)
}

impl<'a> Changes<'a> {
    fn put(&mut self, key: &'a [u8], dialect: Dialect) -> Result<(), Refusal> {
        let overlooked = |end: &[u8]| dialect == Dialect::Etcd && is_open_ended(end);
        let deleted = self.deletes.iter().any(|(start, end)| !overlooked(end) && contains(start, end, key));
        match deleted || !self.puts.insert(key) {
            true => Err(DUPLICATE_KEY),
            false => Ok(()),
        }
    }
}
