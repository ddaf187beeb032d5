//! Answers: as the model gives them, and as they look on the wire.

use std::ops::Range;

use braid_proto::etcd::etcdserverpb::range_request::SortTarget;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse,
};
use braid_proto::etcd::mvccpb::KeyValue;
use tonic::{Code, Status};

use super::Refusal;
use super::range::order;

/// What the model answers. `revision` is the one in the header.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To a Range.
    Range(RangeReply),
    /// To a Put.
    Put {
        /// In the header.
        revision: i64,
        /// The key before, if it was asked for and there was one.
        prev_kv: Option<KeyValue>,
    },
    /// To a DeleteRange.
    DeleteRange {
        /// In the header.
        revision: i64,
        /// How many keys are gone.
        deleted: i64,
        /// They, in key order, if they were asked for.
        prev_kvs: Vec<KeyValue>,
    },
    /// To a Txn.
    Txn(TxnReply),
    /// To a Compact.
    Compact {
        /// In the header.
        revision: i64,
    },
}

/// The answer to a Range, with more than what is on the wire: etcd's sort is not stable, so where keys tie at the cut
/// any of them may be returned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RangeReply {
    /// In the header.
    pub revision: i64,
    /// Every key that the cut by limit chooses from, whole, in order; keys that tie are in key order.
    pub sorted: Vec<KeyValue>,
    /// How many of them are returned.
    pub returned: usize,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Number of keys in the range.
    pub count: i64,
    /// What they are sorted by.
    pub sort_target: SortTarget,
    /// Values are left out.
    pub keys_only: bool,
}

/// The answer to a Txn.
#[derive(Debug, Clone, PartialEq)]
pub struct TxnReply {
    /// In the header; 0 for a nested transaction.
    pub revision: i64,
    /// Whether every comparison held.
    pub succeeded: bool,
    /// One for each operation of the branch that ran.
    pub replies: Vec<Reply>,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To a Range.
    Range(RangeResponse),
    /// To a Put.
    Put(PutResponse),
    /// To a DeleteRange.
    DeleteRange(DeleteRangeResponse),
    /// To a Txn.
    Txn(TxnResponse),
    /// To a Compact.
    Compact(CompactionResponse),
    /// An error instead of an answer.
    Refused {
        /// Its gRPC code.
        code: Code,
        /// Its text.
        message: String,
    },
}

impl RangeReply {
    /// Runs of keys that tie, in order, as places in `sorted`.
    pub fn ties(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let runs = self.sorted.chunk_by(|a, b| order(self.sort_target, a, b).is_eq());
        runs.map(|run| {
            let run = start..start + run.len();
            start = run.end;
            run
        })
        .collect()
    }

    /// One of `sorted` as it is returned.
    pub fn shown(&self, at: usize) -> KeyValue {
        let mut key_value = self.sorted[at].clone();
        if self.keys_only {
            key_value.value.clear();
        }
        key_value
    }
}

impl Answer {
    /// What a server that agrees with the model answers.
    pub fn of(reply: Result<Reply, Refusal>) -> Self {
        match reply {
            Err(Refusal { code, message }) => Self::Refused { code, message: message.to_owned() },
            Ok(Reply::Compact { revision }) => Self::Compact(CompactionResponse { header: header(revision) }),
            Ok(reply) => match on_wire(reply) {
                OpResponse::ResponseRange(response) => Self::Range(response),
                OpResponse::ResponsePut(response) => Self::Put(response),
                OpResponse::ResponseDeleteRange(response) => Self::DeleteRange(response),
                OpResponse::ResponseTxn(response) => Self::Txn(response),
            },
        }
    }

    /// A failed call.
    pub fn refused(status: &Status) -> Self {
        Self::Refused { code: status.code(), message: status.message().to_owned() }
    }

    /// The revision in the header, if there is one.
    pub fn revision(&self) -> Option<i64> {
        let header = match self {
            Self::Range(response) => &response.header,
            Self::Put(response) => &response.header,
            Self::DeleteRange(response) => &response.header,
            Self::Txn(response) => &response.header,
            Self::Compact(response) => &response.header,
            Self::Refused { .. } => &None,
        };
        header.as_ref().map(|header| header.revision)
    }
}

fn on_wire(reply: Reply) -> OpResponse {
    match reply {
        Reply::Range(reply) => OpResponse::ResponseRange(RangeResponse {
            header: header(reply.revision),
            kvs: (0..reply.returned).map(|at| reply.shown(at)).collect(),
            more: reply.more,
            count: reply.count,
        }),
        Reply::Put { revision, prev_kv } => OpResponse::ResponsePut(PutResponse { header: header(revision), prev_kv }),
        Reply::DeleteRange { revision, deleted, prev_kvs } => {
            OpResponse::ResponseDeleteRange(DeleteRangeResponse { header: header(revision), deleted, prev_kvs })
        }
        Reply::Txn(TxnReply { revision, succeeded, replies }) => {
            let responses = replies.into_iter().map(|reply| ResponseOp { response: Some(on_wire(reply)) }).collect();
            OpResponse::ResponseTxn(TxnResponse { header: header(revision), succeeded, responses })
        }
        Reply::Compact { .. } => unreachable!("no operation of a transaction"),
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}
