//! What a transaction touches, cut into what each region is asked. Pure.

use std::ops::ControlFlow;
use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op};
use braid_proto::key::KeyRange;
use braid_proto::pb::{LockRange, LockRead};
use braid_proto::span::txn_accesses;
use braid_store_client::route::Route;
use braid_store_core::eval::Request;

/// What a transaction touches.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// What is locked, in key order and without overlaps; true: it may be written.
    pub locks: Vec<(KeyRange, bool)>,
    /// Ranges at a revision of their own: no lock changes what they see.
    pub past: Vec<RangeRequest>,
}

impl Plan {
    /// The plan of `request`: both branches of a transaction, because only the state under the locks decides.
    pub fn of(request: &Request) -> Self {
        let mut accesses = Vec::new();
        let mut past = Vec::new();
        match request {
            Request::Txn(txn) => {
                let mut present = txn.clone();
                take_past(&mut present, &mut past);
                _ = txn_accesses(&present, &mut |span, writes| {
                    accesses.push((span, writes));
                    ControlFlow::Continue(())
                });
            }
            other => accesses = other.accesses(),
        }
        accesses.retain(|(span, _)| !span.is_empty());
        Self { locks: disjoint(accesses), past }
    }
}

/// Moves the ranges that name a revision out of `txn`.
fn take_past(txn: &mut TxnRequest, past: &mut Vec<RangeRequest>) {
    let mut take = |op: &mut RequestOp| match &mut op.request {
        Some(request_op::Request::RequestRange(range)) if range.revision > 0 => {
            past.push(range.clone());
            false
        }
        Some(request_op::Request::RequestTxn(nested)) => {
            take_past(nested, past);
            true
        }
        _ => true,
    };
    txn.success.retain_mut(&mut take);
    txn.failure.retain_mut(&mut take);
}

/// Makes disjoint, sorted ranges out of any: what is written by one of them is written.
fn disjoint(accesses: Vec<(KeyRange, bool)>) -> Vec<(KeyRange, bool)> {
    let mut cuts: Vec<&[u8]> = accesses.iter().flat_map(|(span, _)| [&span.start[..], &span.end[..]]).collect();
    cuts.retain(|cut| !cut.is_empty());
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces: Vec<(KeyRange, bool)> = Vec::new();
    let starts = accesses.iter().map(|(span, _)| &span.start[..]).min().into_iter();
    let mut bounds: Vec<&[u8]> = starts.chain(cuts.iter().copied()).collect();
    bounds.dedup();
    let unbounded = accesses.iter().any(|(span, _)| span.end.is_empty());
    let last = bounds.len();
    for (at, start) in bounds.iter().enumerate() {
        let end: &[u8] = match bounds.get(at + 1) {
            Some(end) => end,
            None if unbounded && at + 1 == last => &[],
            None => break,
        };
        let piece = KeyRange { start: start.to_vec().into(), end: end.to_vec().into() };
        let covering = accesses.iter().filter(|(span, _)| span.contains_range(&piece));
        let Some(writes) = covering.map(|(_, writes)| *writes).reduce(|a, b| a || b) else { continue };
        match pieces.last_mut() {
            Some((last, same)) if *same == writes && last.end == piece.start => last.end = piece.end,
            _ => pieces.push((piece, writes)),
        }
    }
    pieces
}

/// What one region is asked to lock.
#[derive(Clone, Debug)]
pub struct Part {
    /// The region.
    pub route: Arc<Route>,
    /// What is locked there, in key order.
    pub ranges: Vec<LockRange>,
    /// Leases that may be put there, all attached to the region.
    pub attaches: Vec<i64>,
}

impl Part {
    /// The first key locked.
    pub fn key(&self) -> &bytes::Bytes {
        &self.ranges[0].start
    }

    /// Whether a region of this range holds all of it.
    pub fn lies_in(&self, range: &KeyRange) -> bool {
        let inside =
            |lock: &LockRange| range.contains_range(&KeyRange { start: lock.start.clone(), end: lock.end.clone() });
        self.ranges.iter().all(inside)
    }

    /// What is read under the lock: everything that is locked.
    pub fn reads(&self, count_only: bool) -> Vec<LockRead> {
        let mut reads: Vec<LockRead> = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            match reads.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end.clone(),
                _ => reads.push(LockRead { start: range.start.clone(), end: range.end.clone(), count_only }),
            }
        }
        reads
    }
}

/// Gathers pieces, which come in key order, by region.
pub fn by_region(pieces: impl IntoIterator<Item = (Arc<Route>, KeyRange, bool)>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (route, piece, exclusive) in pieces {
        let range = LockRange { start: piece.start, end: piece.end, exclusive };
        match parts.last_mut().filter(|part| part.route.region == route.region) {
            Some(part) => part.ranges.push(range),
            None => parts.push(Part { route, ranges: vec![range], attaches: Vec::new() }),
        }
    }
    parts
}

/// Whether `request` changes something whatever the state is, so that a look at it beforehand decides nothing.
pub fn surely_writes(request: &Request) -> bool {
    match request {
        Request::Put(_) => true,
        Request::DeleteRange(_) => false,
        Request::Txn(txn) => {
            let put = |op: &RequestOp| matches!(op.request, Some(request_op::Request::RequestPut(_)));
            txn.compare.is_empty() && txn.success.iter().any(put)
        }
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest};

    use super::*;

    fn span(start: &str, end: &str, writes: bool) -> (KeyRange, bool) {
        (KeyRange { start: start.to_owned().into(), end: end.to_owned().into() }, writes)
    }

    #[test]
    fn ranges_become_disjoint_and_keep_who_writes() {
        let cut = |accesses: &[(KeyRange, bool)]| disjoint(accesses.to_vec());
        assert_eq!(cut(&[span("c", "d", true), span("a", "b", false)]), [span("a", "b", false), span("c", "d", true)]);
        assert_eq!(
            cut(&[span("a", "z", false), span("c", "d", true)]),
            [span("a", "c", false), span("c", "d", true), span("d", "z", false)]
        );
        assert_eq!(cut(&[span("a", "c", true), span("b", "d", true)]), [span("a", "d", true)]);
        assert_eq!(cut(&[span("a", "c", true), span("b", "", false)]), [span("a", "c", true), span("c", "", false)]);
        assert_eq!(cut(&[span("b", "", false)]), [span("b", "", false)]);
        assert_eq!(cut(&[span("a", "b", true), span("a", "b", true)]), [span("a", "b", true)]);
        assert_eq!(cut(&[]), []);
    }

    #[test]
    fn both_branches_are_planned_and_the_past_needs_no_lock() {
        let op = |request| RequestOp { request: Some(request) };
        let put = |key: &'static str| {
            op(request_op::Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
        };
        let range = |revision| RangeRequest { key: "r".into(), revision, ..Default::default() };
        let nested = TxnRequest {
            success: vec![op(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key: "m".into(),
                range_end: "n".into(),
                prev_kv: false,
            }))],
            failure: vec![op(request_op::Request::RequestRange(range(7)))],
            ..Default::default()
        };
        let txn = TxnRequest {
            compare: vec![Compare { key: "a".into(), ..Default::default() }],
            success: vec![put("b"), op(request_op::Request::RequestTxn(nested))],
            failure: vec![op(request_op::Request::RequestRange(range(0)))],
        };
        let plan = Plan::of(&Request::Txn(txn));
        let shown: Vec<_> = plan
            .locks
            .iter()
            .map(|(span, writes)| (String::from_utf8_lossy(&span.start[1..]).into_owned(), *writes))
            .collect();
        let expected = [("a", false), ("b", true), ("m", true), ("r", false)];
        assert_eq!(shown, expected.map(|(key, writes)| (key.to_owned(), writes)));
        assert_eq!(plan.past, [range(7)]);
    }
}
