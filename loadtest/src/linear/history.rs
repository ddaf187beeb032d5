//! What clients asked, when, and what they were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{bail, ensure};
use braid_proto::etcd::etcdserverpb::compare::TargetUnion;
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseOp, TxnRequest, TxnResponse,
};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use crate::history::Moment;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A range, of one key or many.
    Range(RangeRequest),
    /// A put.
    Put(PutRequest),
    /// A delete, of one key or many.
    Delete(DeleteRangeRequest),
    /// A transaction, not nested.
    Txn(TxnRequest),
}

/// An answer's content; its headers are not looked at.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    Delete(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Answered.
    Answered {
        /// Revision in the answer's header.
        revision: i64,
        /// The rest of the answer.
        response: Response,
    },
    /// Done or not, now or later.
    Unknown,
    /// Not done, and never will be. The server's words.
    Refused(String),
}

/// One request of one client.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// The client.
    pub client: u32,
    /// Its number among the client's requests.
    pub number: u32,
    /// Just before it was sent.
    pub sent: Moment,
    /// Just after its answer came or was given up.
    pub ended: Moment,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// Everything that happened to a key space that was empty before and that nobody else wrote to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Revision at which everything was empty.
    pub base: i64,
    /// All requests, in no order.
    pub ops: Vec<Op>,
    /// The whole key space at old revisions, as the cluster told it afterwards.
    pub snapshots: BTreeMap<i64, Vec<KeyValue>>,
    /// Money that is moved around, if any.
    pub accounts: Option<Accounts>,
}

/// Keys whose balances add up to the same sum at all times, once they are there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Accounts {
    /// The keys.
    pub keys: BTreeSet<Bytes>,
    /// The sum.
    pub total: i64,
}

/// Where in the order of all requests an answered one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It changed something, at this revision of its own.
    Took(i64),
    /// It saw the state after this revision and changed nothing.
    Saw(i64),
}

impl Op {
    /// Its place; none without an answer.
    pub fn place(&self) -> Option<Place> {
        let Outcome::Answered { revision, response } = &self.outcome else { return None };
        Some(match &self.request {
            Request::Range(range) if range.revision > 0 => Place::Saw(range.revision),
            _ if response.mutated() => Place::Took(*revision),
            _ => Place::Saw(*revision),
        })
    }

    /// The revision in its answer's header.
    pub fn shown(&self) -> Option<i64> {
        match self.outcome {
            Outcome::Answered { revision, .. } => Some(revision),
            Outcome::Unknown | Outcome::Refused(_) => None,
        }
    }

    /// Every range it was answered, with its request.
    pub fn ranges(&self) -> Vec<(&RangeRequest, &RangeResponse)> {
        let Outcome::Answered { response, .. } = &self.outcome else { return Vec::new() };
        match (&self.request, response) {
            (Request::Range(request), Response::Range(response)) => vec![(request, response)],
            (Request::Txn(request), Response::Txn(response)) => {
                let branch = if response.succeeded { &request.success } else { &request.failure };
                let pairs = branch.iter().zip(&response.responses);
                pairs.filter_map(|(op, answer)| range_pair(op, answer)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn range_pair<'a>(request: &'a RequestOp, response: &'a ResponseOp) -> Option<(&'a RangeRequest, &'a RangeResponse)> {
    match (&request.request, &response.response) {
        (Some(OpRequest::RequestRange(request)), Some(OpResponse::ResponseRange(response))) => {
            Some((request, response))
        }
        _ => None,
    }
}

impl Request {
    /// Every put in it, of whatever branch.
    pub fn puts(&self) -> Vec<&PutRequest> {
        match self {
            Self::Put(put) => vec![put],
            Self::Range(_) | Self::Delete(_) => Vec::new(),
            Self::Txn(txn) => {
                let ops = txn.success.iter().chain(&txn.failure);
                ops.filter_map(|op| match &op.request {
                    Some(OpRequest::RequestPut(put)) => Some(put),
                    _ => None,
                })
                .collect()
            }
        }
    }

    /// Whether it could change something.
    pub fn may_mutate(&self) -> bool {
        match self {
            Self::Put(_) | Self::Delete(_) => true,
            Self::Range(_) => false,
            Self::Txn(txn) => txn
                .success
                .iter()
                .chain(&txn.failure)
                .any(|op| matches!(op.request, Some(OpRequest::RequestPut(_) | OpRequest::RequestDeleteRange(_)))),
        }
    }

    /// Fails if the checker does not know what the request means.
    fn supported(&self) -> anyhow::Result<()> {
        match self {
            Self::Range(range) => plain_range(range),
            Self::Put(put) => plain_put(put),
            Self::Delete(_) => Ok(()),
            Self::Txn(txn) => {
                txn.compare.iter().try_for_each(plain_compare)?;
                txn.success.iter().chain(&txn.failure).try_for_each(|op| match &op.request {
                    Some(OpRequest::RequestRange(range)) => {
                        ensure!(range.revision <= 0, "ranges at a revision inside of transactions are not supported");
                        plain_range(range)
                    }
                    Some(OpRequest::RequestPut(put)) => plain_put(put),
                    Some(OpRequest::RequestDeleteRange(_)) => Ok(()),
                    Some(OpRequest::RequestTxn(_)) | None => bail!("nested transactions are not supported"),
                })
            }
        }
    }
}

fn plain_range(range: &RangeRequest) -> anyhow::Result<()> {
    let plain = RangeRequest {
        key: range.key.clone(),
        range_end: range.range_end.clone(),
        limit: range.limit,
        revision: range.revision,
        count_only: range.count_only,
        ..RangeRequest::default()
    };
    ensure!(*range == plain, "sorted, filtered, serializable and keys-only ranges are not supported");
    Ok(())
}

fn plain_put(put: &PutRequest) -> anyhow::Result<()> {
    ensure!(put.lease == 0 && !put.ignore_value && !put.ignore_lease, "puts with a lease or without a value");
    Ok(())
}

fn plain_compare(compare: &Compare) -> anyhow::Result<()> {
    ensure!(compare.range_end.is_empty(), "compares of ranges are not supported");
    ensure!(!matches!(compare.target_union, Some(TargetUnion::Lease(_))), "compares of leases are not supported");
    Ok(())
}

impl Response {
    /// Whether it says that something was changed.
    pub fn mutated(&self) -> bool {
        match self {
            Self::Put(_) => true,
            Self::Range(_) => false,
            Self::Delete(delete) => delete.deleted > 0,
            Self::Txn(txn) => txn.responses.iter().any(|op| match &op.response {
                Some(OpResponse::ResponsePut(_)) => true,
                Some(OpResponse::ResponseDeleteRange(delete)) => delete.deleted > 0,
                _ => false,
            }),
        }
    }

    /// Every record it shows.
    pub fn records(&self) -> Vec<&KeyValue> {
        match self {
            Self::Range(range) => range.kvs.iter().collect(),
            Self::Put(put) => put.prev_kv.iter().collect(),
            Self::Delete(delete) => delete.prev_kvs.iter().collect(),
            Self::Txn(txn) => {
                let inner = txn.responses.iter().filter_map(|op| op.response.as_ref());
                inner
                    .flat_map(|response| match response {
                        OpResponse::ResponseRange(range) => range.kvs.iter().collect::<Vec<_>>(),
                        OpResponse::ResponsePut(put) => put.prev_kv.iter().collect(),
                        OpResponse::ResponseDeleteRange(delete) => delete.prev_kvs.iter().collect(),
                        OpResponse::ResponseTxn(_) => Vec::new(),
                    })
                    .collect()
            }
        }
    }

    /// Takes the headers out; gives the outer one's revision, 0 if there was none.
    pub fn take_revision(&mut self) -> i64 {
        let header = match self {
            Self::Range(range) => range.header.take(),
            Self::Put(put) => put.header.take(),
            Self::Delete(delete) => delete.header.take(),
            Self::Txn(txn) => {
                for op in &mut txn.responses {
                    match &mut op.response {
                        Some(OpResponse::ResponseRange(range)) => range.header = None,
                        Some(OpResponse::ResponsePut(put)) => put.header = None,
                        Some(OpResponse::ResponseDeleteRange(delete)) => delete.header = None,
                        Some(OpResponse::ResponseTxn(_)) | None => {}
                    }
                }
                txn.header.take()
            }
        };
        header.map_or(0, |header| header.revision)
    }
}

/// Which request wrote what, by value and by revision.
pub(super) struct Index<'a> {
    by_value: HashMap<&'a [u8], (usize, &'a [u8])>,
    /// Requests by the revision that their answers say they took. More than one is a violation.
    pub taken: BTreeMap<i64, Vec<usize>>,
}

impl<'a> Index<'a> {
    pub fn new(history: &'a History) -> anyhow::Result<Self> {
        let mut index = Self { by_value: HashMap::new(), taken: BTreeMap::new() };
        for (at, op) in history.ops.iter().enumerate() {
            op.request.supported()?;
            for put in op.request.puts() {
                let before = index.by_value.insert(&put.value, (at, &put.key));
                ensure!(before.is_none(), "the value {} is put twice", put.value.escape_ascii());
            }
            if let Some(Place::Took(revision)) = op.place() {
                index.taken.entry(revision).or_default().push(at);
            }
        }
        Ok(index)
    }

    /// The request that puts this value to this key.
    pub fn writer(&self, record: &KeyValue) -> Option<usize> {
        let (op, key) = self.by_value.get(&record.value[..])?;
        (*key == &record.key[..]).then_some(*op)
    }
}
