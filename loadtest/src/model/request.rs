//! What can be asked of a KV service, and how it is refused.

use braid_proto::etcd::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use tonic::Code;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// KV.Range
    Range(RangeRequest),
    /// KV.Put
    Put(PutRequest),
    /// KV.DeleteRange
    DeleteRange(DeleteRangeRequest),
    /// KV.Txn
    Txn(TxnRequest),
    /// KV.Compact
    Compact(CompactionRequest),
}

/// An error that etcd answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Its gRPC code.
    pub code: Code,
    /// Its whole text.
    pub message: &'static str,
}

const fn invalid(message: &'static str) -> Refusal {
    Refusal { code: Code::InvalidArgument, message }
}

pub(super) const EMPTY_KEY: Refusal = invalid("etcdserver: key is not provided");
pub(super) const KEY_NOT_FOUND: Refusal = invalid("etcdserver: key not found");
pub(super) const VALUE_PROVIDED: Refusal = invalid("etcdserver: value is provided");
pub(super) const LEASE_PROVIDED: Refusal = invalid("etcdserver: lease is provided");
pub(super) const TOO_MANY_OPS: Refusal = invalid("etcdserver: too many operations in txn request");
pub(super) const DUPLICATE_KEY: Refusal = invalid("etcdserver: duplicate key given in txn request");
pub(super) const INVALID_SORT: Refusal = invalid("etcdserver: invalid sort option");
pub(super) const LEASE_NOT_FOUND: Refusal =
    Refusal { code: Code::NotFound, message: "etcdserver: requested lease not found" };
pub(super) const COMPACTED: Refusal =
    Refusal { code: Code::OutOfRange, message: "etcdserver: mvcc: required revision has been compacted" };
pub(super) const FUTURE: Refusal =
    Refusal { code: Code::OutOfRange, message: "etcdserver: mvcc: required revision is a future revision" };
