//! Transactions: choose the path, check it, run it.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{
    RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op::Request as Op,
    response_op::Response as Done,
};

use super::run::{Run, Stop};
use super::{compare, fail, op, range};

/// Which branch a transaction takes, and those nested in that branch, in order.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

/// Runs a whole transaction.
pub fn txn(run: &mut Run<'_>, request: &TxnRequest) -> Result<TxnResponse, Stop> {
    let path = choose(run, request)?;
    check(run, request, &path, check_put)?;
    check(run, request, &path, check_range)?;
    let mut response = execute(run, request, &path)?;
    response.header = Some(run.header());
    Ok(response)
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn choose(run: &Run<'_>, request: &TxnRequest) -> Result<Path, Stop> {
    let succeeded = compare::all_hold(run, request)?;
    let mut nested = Vec::new();
    for op in branch(request, succeeded) {
        if let Some(Op::RequestTxn(inner)) = &op.request {
            nested.push(choose(run, inner)?);
        }
    }
    Ok(Path { succeeded, nested })
}

/// Checks the operations of the path against the state before. etcd checks all puts first and then all ranges, which
/// shows where both are at fault.
fn check(
    run: &Run<'_>,
    request: &TxnRequest,
    path: &Path,
    one: fn(&Run<'_>, &Op) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut nested = path.nested.iter();
    for op in branch(request, path.succeeded) {
        match &op.request {
            Some(Op::RequestTxn(inner)) => {
                check(run, inner, nested.next().expect("one path a nested transaction"), one)?;
            }
            Some(op) => one(run, op)?,
            None => return Err(fail(error::KEY_NOT_FOUND)),
        }
    }
    Ok(())
}

/// Unlike for a put alone, a key that is missing comes before a lease that is.
fn check_put(run: &Run<'_>, op: &Op) -> Result<(), Stop> {
    let Op::RequestPut(request) = op else { return Ok(()) };
    op::check_kept(run, request)?;
    op::check_lease(run, request)
}

fn check_range(run: &Run<'_>, op: &Op) -> Result<(), Stop> {
    let Op::RequestRange(request) = op else { return Ok(()) };
    range::check(run, request)
}

/// Runs the operations. The header of a nested transaction is there and empty, as in etcd.
fn execute(run: &mut Run<'_>, request: &TxnRequest, path: &Path) -> Result<TxnResponse, Stop> {
    let mut nested = path.nested.iter();
    let ops = branch(request, path.succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let done = match &op.request {
            Some(Op::RequestRange(request)) => Done::ResponseRange(range::range(run, request)?),
            Some(Op::RequestPut(request)) => Done::ResponsePut(op::put(run, request)?),
            Some(Op::RequestDeleteRange(request)) => Done::ResponseDeleteRange(op::delete(run, request)?),
            Some(Op::RequestTxn(inner)) => {
                Done::ResponseTxn(execute(run, inner, nested.next().expect("one path a nested transaction"))?)
            }
            None => return Err(fail(error::KEY_NOT_FOUND)),
        };
        responses.push(ResponseOp { response: Some(done) });
    }
    Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded: path.succeeded, responses })
}
