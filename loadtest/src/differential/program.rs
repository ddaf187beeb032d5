//! Programs: requests to be sent one after the other, written so that they can run anywhere and any number of times.
//!
//! A program is written for a store without keys at revision [`ORIGIN`]. To run it, its revisions are moved to where the
//! store really is, and its keys go under the prefix that the run may use.

use braid_proto::etcd::etcdserverpb::compare::TargetUnion;
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use bytes::Bytes;

use crate::client::prefix_end;
use crate::model::{Request, is_open_ended};

/// Revision at which programs are written to start. Far from what a small number means in a request (0, -1, a version),
/// so that revisions are known by their size.
pub const ORIGIN: i64 = 1 << 40;
/// Numbers from here on are revisions relative to [`ORIGIN`]: comparisons name some that are a little below it.
const REVISIONS: i64 = ORIGIN - 1000;

/// Requests in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The requests, written for a store at [`ORIGIN`].
    pub requests: Vec<Request>,
}

/// How far after [`ORIGIN`] a number in a program is; none if it is no revision.
pub fn offset(number: i64) -> Option<i64> {
    (number >= REVISIONS).then_some(number - ORIGIN)
}

/// Where a program runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Revision of the store when it starts.
    pub base: i64,
    /// In front of every key. Without it the program uses the whole store.
    pub prefix: Bytes,
    /// Filters of ranges inside transactions name this revision where they would name a higher one.
    pub filters_max: i64,
}

impl Place {
    /// What is really sent.
    pub fn put(&self, request: &Request) -> Request {
        match request {
            Request::Range(request) => Request::Range(self.range(request)),
            Request::Put(request) => Request::Put(self.put_request(request)),
            Request::DeleteRange(request) => Request::DeleteRange(self.delete_range(request)),
            Request::Txn(request) => Request::Txn(self.txn(request)),
            Request::Compact(request) => {
                let mut request = *request;
                request.revision = self.revision(request.revision);
                Request::Compact(request)
            }
        }
    }

    /// A key of a program as it really is. An empty one stays what it is: a fault.
    pub fn key(&self, key: &Bytes) -> Bytes {
        if key.is_empty() { Bytes::new() } else { [&self.prefix[..], key].concat().into() }
    }

    fn range_end(&self, range_end: &Bytes) -> Bytes {
        match is_open_ended(range_end) && !self.prefix.is_empty() {
            true => prefix_end(&self.prefix),
            false if is_open_ended(range_end) => range_end.clone(),
            false => self.key(range_end),
        }
    }

    fn revision(&self, number: i64) -> i64 {
        offset(number).map_or(number, |offset| self.base + offset)
    }

    fn range(&self, request: &RangeRequest) -> RangeRequest {
        RangeRequest {
            key: self.key(&request.key),
            range_end: self.range_end(&request.range_end),
            revision: self.revision(request.revision),
            min_mod_revision: self.revision(request.min_mod_revision),
            max_mod_revision: self.revision(request.max_mod_revision),
            min_create_revision: self.revision(request.min_create_revision),
            max_create_revision: self.revision(request.max_create_revision),
            ..request.clone()
        }
    }

    fn range_inside(&self, request: &RangeRequest) -> RangeRequest {
        let mut request = self.range(request);
        let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } =
            &mut request;
        for filter in [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision] {
            *filter = self.filters_max.min(*filter);
        }
        request
    }

    fn put_request(&self, request: &PutRequest) -> PutRequest {
        PutRequest { key: self.key(&request.key), ..request.clone() }
    }

    fn delete_range(&self, request: &DeleteRangeRequest) -> DeleteRangeRequest {
        let (key, range_end) = (self.key(&request.key), self.range_end(&request.range_end));
        DeleteRangeRequest { key, range_end, ..request.clone() }
    }

    fn txn(&self, request: &TxnRequest) -> TxnRequest {
        let branch = |ops: &[RequestOp]| ops.iter().map(|op| self.op(op)).collect();
        TxnRequest {
            compare: request.compare.iter().map(|compare| self.compare(compare)).collect(),
            success: branch(&request.success),
            failure: branch(&request.failure),
        }
    }

    fn op(&self, op: &RequestOp) -> RequestOp {
        let request = op.request.as_ref().map(|op| match op {
            Op::RequestRange(request) => Op::RequestRange(self.range_inside(request)),
            Op::RequestPut(request) => Op::RequestPut(self.put_request(request)),
            Op::RequestDeleteRange(request) => Op::RequestDeleteRange(self.delete_range(request)),
            Op::RequestTxn(request) => Op::RequestTxn(self.txn(request)),
        });
        RequestOp { request }
    }

    fn compare(&self, compare: &Compare) -> Compare {
        let target_union = compare.target_union.clone().map(|union| match union {
            TargetUnion::CreateRevision(number) => TargetUnion::CreateRevision(self.revision(number)),
            TargetUnion::ModRevision(number) => TargetUnion::ModRevision(self.revision(number)),
            other => other,
        });
        let (key, range_end) = (self.key(&compare.key), self.range_end(&compare.range_end));
        Compare { key, range_end, target_union, ..compare.clone() }
    }
}
