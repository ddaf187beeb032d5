//! Simpler forms of a request: one part left out, or one of a transaction's operations alone.

use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use bytes::Bytes;

use super::program::{ORIGIN, offset};
use crate::model::Request;

/// Every request that has one part less.
pub fn simpler(request: &Request) -> Vec<Request> {
    match request {
        Request::Range(request) => ranges(request).into_iter().map(Request::Range).collect(),
        Request::Put(request) => puts(request).into_iter().map(Request::Put).collect(),
        Request::DeleteRange(request) => deletes(request).into_iter().map(Request::DeleteRange).collect(),
        Request::Txn(request) => {
            let ops = request.success.iter().chain(&request.failure).filter_map(alone);
            ops.chain(txns(request).into_iter().map(Request::Txn)).collect()
        }
        Request::Compact(request) => {
            let mut all = vec![CompactionRequest { physical: false, ..*request }];
            all.extend(earlier(request.revision).map(|revision| CompactionRequest { revision, ..*request }));
            changed(request, all).into_iter().map(Request::Compact).collect()
        }
    }
}

/// Revisions nearer to where the program starts, so that what made the later ones can be left out.
fn earlier(revision: i64) -> impl Iterator<Item = i64> {
    let offset = offset(revision).filter(|&offset| offset > 0).unwrap_or(0);
    [offset / 2, offset - 1].into_iter().filter(move |_| offset > 0).map(|offset| ORIGIN + offset)
}

/// The candidates that are not what they were made from.
fn changed<T: PartialEq>(from: &T, candidates: Vec<T>) -> Vec<T> {
    candidates.into_iter().filter(|candidate| candidate != from).collect()
}

fn ranges(request: &RangeRequest) -> Vec<RangeRequest> {
    let from = || request.clone();
    let none = Bytes::new();
    let mut all: Vec<_> = earlier(request.revision).map(|revision| RangeRequest { revision, ..from() }).collect();
    all.extend(changed(
        request,
        vec![
            RangeRequest { range_end: none, ..from() },
            RangeRequest { limit: 0, ..from() },
            RangeRequest { limit: request.limit.min(1), ..from() },
            RangeRequest { revision: 0, ..from() },
            RangeRequest { sort_order: 0, ..from() },
            RangeRequest { sort_target: 0, ..from() },
            RangeRequest { serializable: false, ..from() },
            RangeRequest { keys_only: false, ..from() },
            RangeRequest { count_only: false, ..from() },
            RangeRequest { min_mod_revision: 0, ..from() },
            RangeRequest { max_mod_revision: 0, ..from() },
            RangeRequest { min_create_revision: 0, ..from() },
            RangeRequest { max_create_revision: 0, ..from() },
        ],
    ));
    all
}

fn puts(request: &PutRequest) -> Vec<PutRequest> {
    let from = || request.clone();
    let shorter = request.value.slice(..request.value.len().min(1));
    changed(
        request,
        vec![
            PutRequest { lease: 0, ..from() },
            PutRequest { prev_kv: false, ..from() },
            PutRequest { ignore_value: false, ..from() },
            PutRequest { ignore_lease: false, ..from() },
            PutRequest { value: shorter, ..from() },
        ],
    )
}

fn deletes(request: &DeleteRangeRequest) -> Vec<DeleteRangeRequest> {
    let from = || request.clone();
    let none = Bytes::new();
    changed(
        request,
        vec![DeleteRangeRequest { range_end: none, ..from() }, DeleteRangeRequest { prev_kv: false, ..from() }],
    )
}

/// An operation as a request of its own.
fn alone(op: &RequestOp) -> Option<Request> {
    Some(match op.request.clone()? {
        Op::RequestRange(request) => Request::Range(request),
        Op::RequestPut(request) => Request::Put(request),
        Op::RequestDeleteRange(request) => Request::DeleteRange(request),
        Op::RequestTxn(request) => Request::Txn(request),
    })
}

fn txns(request: &TxnRequest) -> Vec<TxnRequest> {
    let TxnRequest { compare, success, failure } = request;
    let from = || request.clone();
    let mut all = changed(
        request,
        vec![
            TxnRequest { failure: Vec::new(), ..from() },
            TxnRequest { success: Vec::new(), ..from() },
            TxnRequest { compare: Vec::new(), ..from() },
            TxnRequest { compare: Vec::new(), success: failure.clone(), failure: Vec::new() },
        ],
    );
    for compare in shorter(compare, compares) {
        all.push(TxnRequest { compare, ..from() });
    }
    for success in shorter(success, ops) {
        all.push(TxnRequest { success, ..from() });
    }
    for failure in shorter(failure, ops) {
        all.push(TxnRequest { failure, ..from() });
    }
    all
}

/// The list without each half, without each item, and with something in each item's place.
fn shorter<T: Clone>(list: &[T], instead: fn(&T) -> Vec<Vec<T>>) -> Vec<Vec<T>> {
    let mut all = Vec::new();
    if list.len() > 3 {
        let (left, right) = list.split_at(list.len() / 2);
        all.extend([left.to_vec(), right.to_vec()]);
    }
    for (at, item) in list.iter().enumerate() {
        for middle in std::iter::once(Vec::new()).chain(instead(item)) {
            all.push([&list[..at], &middle, &list[at + 1..]].concat());
        }
    }
    all
}

fn compares(compare: &Compare) -> Vec<Vec<Compare>> {
    match compare.range_end.is_empty() {
        true => Vec::new(),
        false => vec![vec![Compare { range_end: Bytes::new(), ..compare.clone() }]],
    }
}

/// What can stand in place of an operation: a simpler one, or the operations of a nested transaction's branch.
fn ops(op: &RequestOp) -> Vec<Vec<RequestOp>> {
    let single = |op: Op| vec![RequestOp { request: Some(op) }];
    match &op.request {
        Some(Op::RequestRange(request)) => ranges(request).into_iter().map(Op::RequestRange).map(single).collect(),
        Some(Op::RequestPut(request)) => puts(request).into_iter().map(Op::RequestPut).map(single).collect(),
        Some(Op::RequestDeleteRange(request)) => {
            deletes(request).into_iter().map(Op::RequestDeleteRange).map(single).collect()
        }
        Some(Op::RequestTxn(request)) => {
            let mut all = vec![request.success.clone(), request.failure.clone()];
            all.extend(txns(request).into_iter().map(Op::RequestTxn).map(single));
            all
        }
        None => Vec::new(),
    }
}
