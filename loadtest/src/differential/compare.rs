//! Compares an answer with what the model says, field by field. Of the header only the revision counts. Where the model
//! leaves the order of keys open (ties of a sort), any order is right, and any choice where the limit cuts through them.

use std::fmt;

use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse};
use braid_proto::etcd::mvccpb::KeyValue;

use super::print::{self, key_value};
use crate::model::{Answer, RangeReply, Refusal, Reply, TxnReply};

/// A field that is not what the model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which field.
    pub field: String,
    /// What the model says.
    pub expected: String,
    /// What was answered.
    pub actual: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.field, self.expected, self.actual)
    }
}

/// Compares.
///
/// # Errors
/// The first field that differs.
pub fn compare(expected: &Result<Reply, Refusal>, actual: &Answer) -> Result<(), Difference> {
    match (expected, actual) {
        (Err(expected), Answer::Refused { code, message }) => {
            same("code", &format!("{:?}", expected.code), &format!("{code:?}"))?;
            same("message", &expected.message, &message.as_str())
        }
        (Ok(Reply::Range(expected)), Answer::Range(actual)) => range("", expected, actual),
        (Ok(Reply::Put { revision, prev_kv }), Answer::Put(actual)) => put("", *revision, prev_kv.as_ref(), actual),
        (Ok(Reply::DeleteRange { revision, deleted, prev_kvs }), Answer::DeleteRange(actual)) => {
            delete_range("", *revision, *deleted, prev_kvs, actual)
        }
        (Ok(Reply::Txn(expected)), Answer::Txn(actual)) => txn("", expected, actual),
        (Ok(Reply::Compact { revision }), Answer::Compact(actual)) => header("", *revision, actual.header.as_ref()),
        (expected, actual) => {
            let field = "answer".to_owned();
            Err(Difference {
                field,
                expected: print::answer(&Answer::of(expected.clone())),
                actual: print::answer(actual),
            })
        }
    }
}

fn same<T: PartialEq + fmt::Debug>(field: &str, expected: &T, actual: &T) -> Result<(), Difference> {
    match expected == actual {
        true => Ok(()),
        false => Err(Difference {
            field: field.to_owned(),
            expected: format!("{expected:?}"),
            actual: format!("{actual:?}"),
        }),
    }
}

fn header(path: &str, revision: i64, actual: Option<&ResponseHeader>) -> Result<(), Difference> {
    same(&format!("{path}header.revision"), &Some(revision), &actual.map(|header| header.revision))
}

fn same_key_value(field: &str, expected: Option<&KeyValue>, actual: Option<&KeyValue>) -> Result<(), Difference> {
    let show = |found: Option<&KeyValue>| found.map_or_else(|| "nothing".to_owned(), key_value);
    match expected == actual {
        true => Ok(()),
        false => Err(Difference { field: field.to_owned(), expected: show(expected), actual: show(actual) }),
    }
}

fn range(path: &str, expected: &RangeReply, actual: &RangeResponse) -> Result<(), Difference> {
    header(path, expected.revision, actual.header.as_ref())?;
    same(&format!("{path}count"), &expected.count, &actual.count)?;
    same(&format!("{path}more"), &expected.more, &actual.more)?;
    same(&format!("{path}kvs.len"), &expected.returned, &actual.kvs.len())?;
    for tie in expected.ties() {
        let mut open: Vec<_> = tie.clone().map(|at| expected.shown(at)).collect();
        for at in tie.start..tie.end.min(expected.returned) {
            // The one at this place first, so that the report names the plain difference where nothing ties.
            let found = open.iter().position(|candidate| *candidate == actual.kvs[at]);
            let Some(found) = found else {
                return same_key_value(&format!("{path}kvs[{at}]"), open.first(), Some(&actual.kvs[at]));
            };
            open.remove(found);
        }
    }
    Ok(())
}

fn put(path: &str, revision: i64, prev_kv: Option<&KeyValue>, actual: &PutResponse) -> Result<(), Difference> {
    header(path, revision, actual.header.as_ref())?;
    same_key_value(&format!("{path}prev_kv"), prev_kv, actual.prev_kv.as_ref())
}

fn delete_range(
    path: &str,
    revision: i64,
    deleted: i64,
    prev_kvs: &[KeyValue],
    actual: &DeleteRangeResponse,
) -> Result<(), Difference> {
    header(path, revision, actual.header.as_ref())?;
    same(&format!("{path}deleted"), &deleted, &actual.deleted)?;
    same(&format!("{path}prev_kvs.len"), &prev_kvs.len(), &actual.prev_kvs.len())?;
    for (at, (expected, actual)) in prev_kvs.iter().zip(&actual.prev_kvs).enumerate() {
        same_key_value(&format!("{path}prev_kvs[{at}]"), Some(expected), Some(actual))?;
    }
    Ok(())
}

fn txn(path: &str, expected: &TxnReply, actual: &TxnResponse) -> Result<(), Difference> {
    header(path, expected.revision, actual.header.as_ref())?;
    same(&format!("{path}succeeded"), &expected.succeeded, &actual.succeeded)?;
    same(&format!("{path}responses.len"), &expected.replies.len(), &actual.responses.len())?;
    for (at, (expected, actual)) in expected.replies.iter().zip(&actual.responses).enumerate() {
        let path = format!("{path}responses[{at}].");
        match (expected, &actual.response) {
            (Reply::Range(expected), Some(OpResponse::ResponseRange(actual))) => range(&path, expected, actual)?,
            (Reply::Put { revision, prev_kv }, Some(OpResponse::ResponsePut(actual))) => {
                put(&path, *revision, prev_kv.as_ref(), actual)?;
            }
            (Reply::DeleteRange { revision, deleted, prev_kvs }, Some(OpResponse::ResponseDeleteRange(actual))) => {
                delete_range(&path, *revision, *deleted, prev_kvs, actual)?;
            }
            (Reply::Txn(expected), Some(OpResponse::ResponseTxn(actual))) => txn(&path, expected, actual)?,
            (expected, actual) => {
                let (expected, actual) = (format!("{expected:?}"), format!("{actual:?}"));
                return Err(Difference { field: path + "response", expected, actual });
            }
        }
    }
    Ok(())
}
