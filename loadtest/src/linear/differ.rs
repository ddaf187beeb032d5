//! Where an answer differs from the right one.

use std::collections::BTreeMap;
use std::fmt::Debug;

use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{DeleteRangeResponse, RangeResponse};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use super::history::Response;

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// A key was shown otherwise than it was.
    Key {
        /// The key.
        key: Bytes,
        /// What it held.
        right: Option<KeyValue>,
        /// What was shown.
        shown: Option<KeyValue>,
    },
    /// Anything else, in words.
    Other(String),
}

/// All differences. Counts are only looked at where the records do not differ: they would differ for the same reason.
pub fn differences(right: &Response, shown: &Response) -> Vec<Difference> {
    let mut found = Vec::new();
    match (right, shown) {
        (Response::Range(right), Response::Range(shown)) => ranges(right, shown, &mut found),
        (Response::Put(right), Response::Put(shown)) => {
            previous(right.prev_kv.as_ref(), shown.prev_kv.as_ref(), &mut found);
        }
        (Response::Delete(right), Response::Delete(shown)) => deletes(right, shown, &mut found),
        (Response::Txn(right), Response::Txn(shown)) if right.succeeded != shown.succeeded => {
            other("the outcome of the compares", right.succeeded, shown.succeeded, &mut found);
        }
        (Response::Txn(right), Response::Txn(shown)) => {
            other("the number of answers", right.responses.len(), shown.responses.len(), &mut found);
            for (right, shown) in right.responses.iter().zip(&shown.responses) {
                match (&right.response, &shown.response) {
                    (Some(OpResponse::ResponseRange(right)), Some(OpResponse::ResponseRange(shown))) => {
                        ranges(right, shown, &mut found);
                    }
                    (Some(OpResponse::ResponsePut(right)), Some(OpResponse::ResponsePut(shown))) => {
                        previous(right.prev_kv.as_ref(), shown.prev_kv.as_ref(), &mut found);
                    }
                    (Some(OpResponse::ResponseDeleteRange(right)), Some(OpResponse::ResponseDeleteRange(shown))) => {
                        deletes(right, shown, &mut found);
                    }
                    _ => found.push(Difference::Other("an answer is of another kind than its request".to_owned())),
                }
            }
        }
        _ => found.push(Difference::Other("the answer is of another kind than the request".to_owned())),
    }
    found
}

/// Differences of two whole key spaces.
pub fn snapshots<'a>(right: impl Iterator<Item = &'a KeyValue>, shown: &[KeyValue]) -> Vec<Difference> {
    let mut found = Vec::new();
    let right: Vec<_> = right.cloned().collect();
    records(&right, false, shown, &mut found);
    found
}

fn ranges(right: &RangeResponse, shown: &RangeResponse, found: &mut Vec<Difference>) {
    let before = found.len();
    records(&right.kvs, right.more, &shown.kvs, found);
    if found.len() == before {
        other("count", right.count, shown.count, found);
        other("more", right.more, shown.more, found);
    }
}

fn deletes(right: &DeleteRangeResponse, shown: &DeleteRangeResponse, found: &mut Vec<Difference>) {
    let before = found.len();
    records(&right.prev_kvs, false, &shown.prev_kvs, found);
    if found.len() == before {
        other("the number of deleted keys", right.deleted, shown.deleted, found);
    }
}

fn previous(right: Option<&KeyValue>, shown: Option<&KeyValue>, found: &mut Vec<Difference>) {
    let key = right.or(shown).map(|record| record.key.clone());
    if let Some(key) = key.filter(|_| right != shown) {
        found.push(Difference::Key { key, right: right.cloned(), shown: shown.cloned() });
    }
}

/// `cut`: the right records were cut by a limit, so what follows the last of them is not known.
fn records(right: &[KeyValue], cut: bool, shown: &[KeyValue], found: &mut Vec<Difference>) {
    if right == shown {
        return;
    }
    if !shown.is_sorted_by(|a, b| a.key < b.key) {
        found.push(Difference::Other("keys are not in order, or come twice".to_owned()));
        return;
    }
    let mut keys: BTreeMap<&Bytes, [Option<&KeyValue>; 2]> = BTreeMap::new();
    right.iter().for_each(|record| keys.entry(&record.key).or_default()[0] = Some(record));
    shown.iter().for_each(|record| keys.entry(&record.key).or_default()[1] = Some(record));
    let end = right.last().filter(|_| cut).map(|record| &record.key);
    let before = found.len();
    for (key, [right, shown]) in keys {
        if right == shown || end.is_some_and(|end| key > end) {
            continue;
        }
        found.push(Difference::Key { key: key.clone(), right: right.cloned(), shown: shown.cloned() });
    }
    if found.len() == before {
        found.push(Difference::Other("more keys than asked for".to_owned()));
    }
}

fn other<T: PartialEq + Debug>(what: &str, right: T, shown: T, found: &mut Vec<Difference>) {
    if right != shown {
        found.push(Difference::Other(format!("{what} should be {right:?}, is {shown:?}")));
    }
}
