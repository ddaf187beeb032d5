//! What etcd's API refuses before anything is read or written: pure checks of one request, in etcd's order, so that a
//! request with several faults gets the same error as from etcd.
//!
//! A transaction is checked in this order: number of operations, empty keys of compares, each operation of both
//! branches (nested ones with what is left of the budget), then for each branch that no key is changed twice.
//!
//! "Changed twice" is etcd's rule, per branch: two puts of one key, or a put inside the range of a delete. Deletes may
//! overlap, the two branches of one transaction may put the same key. One known gap is kept, because clients of etcd
//! may rely on it: a put in a nested transaction and a delete of that key in a *later* nested transaction pass; they
//! run in order. One known gap is closed: etcd overlooks a delete that is open to the right (`range_end` is one zero
//! byte) and lets it change a key twice in one revision, which watchers cannot be told. Such a pair is refused here.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use crate::error::{self, EtcdStatus};
use crate::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::etcd::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request as Op,
};

/// Checks a Range.
///
/// # Errors
/// The key is empty, or the sort order or target is none of etcd's.
pub fn range(request: &RangeRequest) -> Result<(), EtcdStatus> {
    key(&request.key)?;
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(error::INVALID_SORT_OPTION);
    }
    Ok(())
}

/// Checks a Put.
///
/// # Errors
/// The key is empty, or a value or lease is given that the request says to keep.
pub fn put(request: &PutRequest) -> Result<(), EtcdStatus> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(error::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(error::LEASE_PROVIDED);
    }
    Ok(())
}

/// Checks a DeleteRange.
///
/// # Errors
/// The key is empty.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), EtcdStatus> {
    key(&request.key)
}

/// Checks a Txn of which at most `ops_max` compares, operations of one branch, are allowed; each level of nesting has
/// what the levels above left.
///
/// # Errors
/// The first fault in etcd's order.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), EtcdStatus> {
    operations(request, ops_max)?;
    changed_once(&request.success)?;
    changed_once(&request.failure)
}

fn key(key: &[u8]) -> Result<(), EtcdStatus> {
    if key.is_empty() { Err(error::EMPTY_KEY) } else { Ok(()) }
}

fn operations(txn: &TxnRequest, budget: usize) -> Result<(), EtcdStatus> {
    let used = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let left = budget.checked_sub(used).ok_or(error::TOO_MANY_OPS)?;
    txn.compare.iter().try_for_each(|compare| key(&compare.key))?;
    txn.success.iter().chain(&txn.failure).try_for_each(|op| operation(op, left))
}

fn operation(op: &RequestOp, budget: usize) -> Result<(), EtcdStatus> {
    match &op.request {
        Some(Op::RequestRange(request)) => range(request),
        Some(Op::RequestPut(request)) => put(request),
        Some(Op::RequestDeleteRange(request)) => delete_range(request),
        Some(Op::RequestTxn(request)) => operations(request, budget),
        None => Err(error::KEY_NOT_FOUND),
    }
}

fn changed_once(branch: &[RequestOp]) -> Result<(), EtcdStatus> {
    // A single operation that is no transaction cannot collide: the shape of nearly every transaction there is.
    match branch {
        [] => Ok(()),
        [RequestOp { request }] if !matches!(request, Some(Op::RequestTxn(_))) => Ok(()),
        _ => Changes::of(branch).map(|_| ()),
    }
}

/// What the operations of a branch, nested ones included, may change.
#[derive(Default)]
struct Changes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Ranges<'a>,
}

impl<'a> Changes<'a> {
    fn of(branch: &'a [RequestOp]) -> Result<Self, EtcdStatus> {
        let mut changes = Self::default();
        for op in branch {
            if let Some(Op::RequestDeleteRange(delete)) = &op.request {
                changes.deletes.insert(&delete.key, &delete.range_end);
            }
        }
        for op in branch {
            if let Some(Op::RequestTxn(nested)) = &op.request {
                changes.nest(Self::of(&nested.success)?, Self::of(&nested.failure)?)?;
            }
        }
        for op in branch {
            if let Some(Op::RequestPut(put)) = &op.request {
                changes.put(&put.key)?;
            }
        }
        Ok(changes)
    }

    /// Takes in the branches of a nested transaction. Only one of them runs, so they may put the same keys. Their
    /// deletes count from the next nested transaction on: that is the gap which is kept.
    fn nest(&mut self, success: Self, failure: Self) -> Result<(), EtcdStatus> {
        let failure_only = failure.puts.difference(&success.puts).copied().collect::<Vec<_>>();
        for key in failure.puts.intersection(&success.puts) {
            self.deletes.avoid(key)?;
        }
        for key in success.puts.into_iter().chain(failure_only) {
            self.put(key)?;
        }
        self.deletes.union(success.deletes);
        self.deletes.union(failure.deletes);
        Ok(())
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), EtcdStatus> {
        self.deletes.avoid(key)?;
        if self.puts.insert(key) { Ok(()) } else { Err(error::DUPLICATE_KEY) }
    }
}

/// A set of keys: single ones, and disjoint ranges by start. Looking up a key costs no more than the logarithm of their
/// number, so that a request full of deletes and puts does not cost the product of both.
#[derive(Default)]
struct Ranges<'a> {
    keys: HashSet<&'a [u8]>,
    ranges: BTreeMap<&'a [u8], End<'a>>,
}

/// First key after a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End<'a> {
    Before(&'a [u8]),
    Open,
}

impl<'a> Ranges<'a> {
    fn insert(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        match range_end {
            [] => _ = self.keys.insert(key),
            [0] => self.insert_range(key, End::Open),
            end if end > key => self.insert_range(key, End::Before(end)),
            _ => {}
        }
    }

    /// Merges with every range it touches.
    fn insert_range(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        let touching = |(&from, &to): (&&'a [u8], &End<'a>)| (to >= End::Before(start)).then_some((from, to));
        if let Some((from, to)) = self.ranges.range(..=start).next_back().and_then(touching) {
            start = from;
            end = end.max(to);
        }
        while let Some((&from, &to)) = self.ranges.range(start..).next().filter(|(from, _)| End::Before(from) <= end) {
            self.ranges.remove(from);
            end = end.max(to);
        }
        self.ranges.insert(start, end);
    }

    fn union(&mut self, other: Self) {
        self.keys.extend(other.keys);
        other.ranges.into_iter().for_each(|(start, end)| self.insert_range(start, end));
    }

    /// Fails if `key` is in the set.
    fn avoid(&self, key: &[u8]) -> Result<(), EtcdStatus> {
        let before = (Bound::Unbounded, Bound::Included(key));
        let covering = self.ranges.range::<[u8], _>(before).next_back();
        match covering.is_some_and(|(_, &end)| end > End::Before(key)) || self.keys.contains(key) {
            true => Err(error::DUPLICATE_KEY),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
