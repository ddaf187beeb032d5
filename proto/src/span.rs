//! Which internal keys a request touches: what routing, epoch checks and read barriers need to know.

use std::ops::ControlFlow;

use crate::etcd::etcdserverpb::{TxnRequest, request_op::Request as Op};
use crate::key::KeyRange;

/// Visits the range of every compare and every operation of `txn`, of both branches and of nested transactions, and
/// whether it writes there. `visit` may stop the walk.
pub fn txn_accesses(txn: &TxnRequest, visit: &mut dyn FnMut(KeyRange, bool) -> ControlFlow<()>) -> ControlFlow<()> {
    for compare in &txn.compare {
        visit(KeyRange::user(&compare.key, &compare.range_end), false)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestRange(range)) => visit(KeyRange::user(&range.key, &range.range_end), false)?,
            Some(Op::RequestPut(put)) => visit(KeyRange::user(&put.key, b""), true)?,
            Some(Op::RequestDeleteRange(delete)) => visit(KeyRange::user(&delete.key, &delete.range_end), true)?,
            Some(Op::RequestTxn(nested)) => txn_accesses(nested, visit)?,
            None => {}
        }
    }
    ControlFlow::Continue(())
}

/// [`txn_accesses`] for those who do not care who writes.
pub fn txn_spans(txn: &TxnRequest, visit: &mut dyn FnMut(KeyRange) -> ControlFlow<()>) -> ControlFlow<()> {
    txn_accesses(txn, &mut |span, _| visit(span))
}

/// Whether everything that `txn` touches lies in `range`.
pub fn txn_within(txn: &TxnRequest, range: &KeyRange) -> bool {
    let outside = |span: KeyRange| match range.contains_range(&span) {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    txn_spans(txn, &mut { outside }).is_continue()
}
