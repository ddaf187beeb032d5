//! The key space at one revision, and what each request does to it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseOp, TxnRequest, TxnResponse,
};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use super::history::{Request, Response};

/// Records by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    keys: BTreeMap<Bytes, KeyValue>,
}

/// What a request changed, step by step.
#[derive(Debug, Default)]
pub struct Changes {
    steps: Vec<(Bytes, Option<KeyValue>)>,
}

/// Keys with what they hold after a change: nothing if they were deleted.
pub type Effect = BTreeMap<Bytes, Option<KeyValue>>;

impl State {
    /// A state of these records.
    pub fn of(records: &[KeyValue]) -> Self {
        Self { keys: records.iter().map(|record| (record.key.clone(), record.clone())).collect() }
    }

    /// What a key holds.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// All records, in the order of their keys.
    pub fn records(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values()
    }

    /// Does a request as if it took this revision; gives the right answer, without headers. `branch` overrides a
    /// transaction's compares.
    pub fn apply(&mut self, request: &Request, revision: i64, branch: Option<bool>) -> (Response, Changes) {
        let mut changes = Changes::default();
        let response = match request {
            Request::Range(range) => Response::Range(self.range(range)),
            Request::Put(put) => Response::Put(self.put(put, revision, &mut changes)),
            Request::Delete(delete) => Response::Delete(self.delete(delete, &mut changes)),
            Request::Txn(txn) => Response::Txn(self.txn(txn, revision, branch, &mut changes)),
        };
        (response, changes)
    }

    /// Takes back what `apply` did last.
    pub fn undo(&mut self, changes: Changes) {
        for (key, before) in changes.steps.into_iter().rev() {
            self.set(key, before);
        }
    }

    /// What `changes`, just made, come to.
    pub fn effect(&self, changes: &Changes) -> Effect {
        let mut first = HashMap::new();
        for (key, before) in &changes.steps {
            first.entry(key).or_insert(before);
        }
        let changed = first.into_iter().filter(|(key, before)| self.get(key) != before.as_ref());
        changed.map(|(key, _)| (key.clone(), self.get(key).cloned())).collect()
    }

    /// What a request would change if it took this revision.
    pub fn effect_of(&mut self, request: &Request, revision: i64) -> Effect {
        let (_, changes) = self.apply(request, revision, None);
        let effect = self.effect(&changes);
        self.undo(changes);
        effect
    }

    /// What leads from this state to another one.
    pub fn difference(&self, other: &Self) -> Effect {
        let gone = self.keys.keys().filter(|key| !other.keys.contains_key(*key)).map(|key| (key.clone(), None));
        let new = other.keys.iter().filter(|(key, record)| self.get(key) != Some(record));
        gone.chain(new.map(|(key, record)| (key.clone(), Some(record.clone())))).collect()
    }

    fn set(&mut self, key: Bytes, record: Option<KeyValue>) -> Option<KeyValue> {
        match record {
            Some(record) => self.keys.insert(key, record),
            None => self.keys.remove(&key),
        }
    }

    fn put(&mut self, request: &PutRequest, revision: i64, changes: &mut Changes) -> PutResponse {
        let before = self.get(&request.key).cloned();
        let record = KeyValue {
            key: request.key.clone(),
            create_revision: before.as_ref().map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(0, |before| before.version) + 1,
            value: request.value.clone(),
            lease: 0,
        };
        self.set(request.key.clone(), Some(record));
        changes.steps.push((request.key.clone(), before.clone()));
        PutResponse { header: None, prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, changes: &mut Changes) -> DeleteRangeResponse {
        let found: Vec<_> = self.within(&request.key, &request.range_end).cloned().collect();
        for record in &found {
            self.set(record.key.clone(), None);
            changes.steps.push((record.key.clone(), Some(record.clone())));
        }
        let deleted = count(&found);
        DeleteRangeResponse { header: None, deleted, prev_kvs: if request.prev_kv { found } else { Vec::new() } }
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let found: Vec<_> = self.within(&request.key, &request.range_end).collect();
        let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let shown = if request.count_only { 0 } else { found.len().min(limit) };
        RangeResponse {
            header: None,
            kvs: found[..shown].iter().map(|&record| record.clone()).collect(),
            more: !request.count_only && shown < found.len(),
            count: count(&found),
        }
    }

    fn txn(&mut self, txn: &TxnRequest, revision: i64, branch: Option<bool>, changes: &mut Changes) -> TxnResponse {
        let succeeded = branch.unwrap_or_else(|| txn.compare.iter().all(|compare| self.holds(compare)));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().map(|op| self.op(op, revision, changes)).collect();
        TxnResponse { header: None, succeeded, responses }
    }

    fn op(&mut self, op: &RequestOp, revision: i64, changes: &mut Changes) -> ResponseOp {
        let response = match op.request.as_ref() {
            Some(OpRequest::RequestRange(range)) => Some(OpResponse::ResponseRange(self.range(range))),
            Some(OpRequest::RequestPut(put)) => Some(OpResponse::ResponsePut(self.put(put, revision, changes))),
            Some(OpRequest::RequestDeleteRange(delete)) => {
                Some(OpResponse::ResponseDeleteRange(self.delete(delete, changes)))
            }
            // Refused when the history is read.
            Some(OpRequest::RequestTxn(_)) | None => None,
        };
        ResponseOp { response }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let record = self.get(&compare.key);
        let number = |of: fn(&KeyValue) -> i64| record.map_or(0, of);
        let order = match &compare.target_union {
            Some(TargetUnion::Version(version)) => number(|record| record.version).cmp(version),
            Some(TargetUnion::CreateRevision(revision)) => number(|record| record.create_revision).cmp(revision),
            Some(TargetUnion::ModRevision(revision)) => number(|record| record.mod_revision).cmp(revision),
            // A missing key has no value: no comparison with it holds.
            Some(TargetUnion::Value(value)) => match record {
                Some(record) => record.value.cmp(value),
                None => return false,
            },
            Some(TargetUnion::Lease(_)) | None => return false,
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
        }
    }

    fn within(&self, key: &Bytes, range_end: &Bytes) -> impl Iterator<Item = &KeyValue> {
        let end = match &range_end[..] {
            b"" => Bound::Included(key),
            b"\0" => Bound::Unbounded,
            // A range that ends before it starts is empty, which a map's range may not be asked for.
            end if *end <= key[..] => Bound::Excluded(key),
            _ => Bound::Excluded(range_end),
        };
        self.keys.range::<Bytes, _>((Bound::Included(key), end)).map(|(_, record)| record)
    }
}

/// Whether a request's range has a key.
pub(super) fn covers(key: &[u8], range_end: &[u8], asked: &[u8]) -> bool {
    match range_end {
        b"" => asked == key,
        b"\0" => asked >= key,
        _ => (key..range_end).contains(&asked),
    }
}

fn count<T>(found: &[T]) -> i64 {
    i64::try_from(found.len()).expect("fewer keys than an i64 counts")
}
