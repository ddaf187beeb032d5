//! How requests and records are written in violations.

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseOp,
};
use braid_proto::etcd::mvccpb::KeyValue;

use super::history::{Op, Outcome, Place, Request, Response};
use crate::history::Moment;

/// Records of one answer that are written out.
const RECORDS: usize = 12;

/// A whole request: who, when, what, and what came of it.
pub fn op_text(op: &Op) -> String {
    let Op { client, number, sent, ended, .. } = op;
    let outcome = match &op.outcome {
        Outcome::Answered { revision, response } => match op.place() {
            Some(Place::Took(_)) => format!("took @{revision}: {}", response_text(response)),
            _ => format!("header @{revision}: {}", response_text(response)),
        },
        Outcome::Unknown => "unknown".to_owned(),
        Outcome::Refused(why) => format!("refused: {why}"),
    };
    format!("c{client}.{number} [{}..{}] {} -> {outcome}", seconds(*sent), seconds(*ended), request_text(&op.request))
}

/// A record, or that there is none.
pub fn record_text(record: Option<&KeyValue>) -> String {
    let Some(record) = record else { return "nothing".to_owned() };
    let KeyValue { mod_revision, create_revision, version, value, .. } = record;
    format!("{} (@{mod_revision}, created @{create_revision}, version {version})", value.escape_ascii())
}

fn seconds(moment: Moment) -> String {
    format!("{:.6}s", moment.0 as f64 / 1e9)
}

fn request_text(request: &Request) -> String {
    match request {
        Request::Range(range) => range_text(range),
        Request::Put(put) => put_text(put),
        Request::Delete(delete) => delete_text(delete),
        Request::Txn(txn) => {
            let compares: Vec<_> = txn.compare.iter().map(compare_text).collect();
            let [then, otherwise] =
                [&txn.success, &txn.failure].map(|ops| ops.iter().map(op_request_text).collect::<Vec<_>>().join("; "));
            format!("txn if [{}] then [{then}] else [{otherwise}]", compares.join(", "))
        }
    }
}

fn op_request_text(op: &RequestOp) -> String {
    match &op.request {
        Some(OpRequest::RequestRange(range)) => range_text(range),
        Some(OpRequest::RequestPut(put)) => put_text(put),
        Some(OpRequest::RequestDeleteRange(delete)) => delete_text(delete),
        Some(OpRequest::RequestTxn(_)) | None => "?".to_owned(),
    }
}

fn range_text(range: &RangeRequest) -> String {
    let mut text = format!("range {}", keys(&range.key, &range.range_end));
    if range.limit > 0 {
        text += &format!(" limit {}", range.limit);
    }
    if range.count_only {
        text += " count";
    }
    if range.revision > 0 {
        text += &format!(" at @{}", range.revision);
    }
    text
}

fn put_text(put: &PutRequest) -> String {
    format!("put {}={}", put.key.escape_ascii(), put.value.escape_ascii())
}

fn delete_text(delete: &DeleteRangeRequest) -> String {
    format!("delete {}", keys(&delete.key, &delete.range_end))
}

fn keys(key: &[u8], end: &[u8]) -> String {
    match end {
        b"" => key.escape_ascii().to_string(),
        b"\0" => format!("[{}..]", key.escape_ascii()),
        _ => format!("[{}..{}]", key.escape_ascii(), end.escape_ascii()),
    }
}

fn compare_text(compare: &Compare) -> String {
    let sign = match compare.result() {
        CompareResult::Equal => "=",
        CompareResult::NotEqual => "!=",
        CompareResult::Greater => ">",
        CompareResult::Less => "<",
    };
    let target = match &compare.target_union {
        Some(TargetUnion::Version(version)) => format!("version {sign} {version}"),
        Some(TargetUnion::CreateRevision(revision)) => format!("create {sign} @{revision}"),
        Some(TargetUnion::ModRevision(revision)) => format!("mod {sign} @{revision}"),
        Some(TargetUnion::Value(value)) => format!("value {sign} {}", value.escape_ascii()),
        Some(TargetUnion::Lease(_)) | None => "?".to_owned(),
    };
    format!("{} {target}", compare.key.escape_ascii())
}

fn response_text(response: &Response) -> String {
    match response {
        Response::Range(range) => range_answer_text(range),
        Response::Put(put) => put_answer_text(put),
        Response::Delete(delete) => delete_answer_text(delete),
        Response::Txn(txn) => {
            let answers: Vec<_> = txn.responses.iter().map(op_answer_text).collect();
            format!("{} [{}]", if txn.succeeded { "succeeded" } else { "failed" }, answers.join("; "))
        }
    }
}

fn op_answer_text(op: &ResponseOp) -> String {
    match &op.response {
        Some(OpResponse::ResponseRange(range)) => range_answer_text(range),
        Some(OpResponse::ResponsePut(put)) => put_answer_text(put),
        Some(OpResponse::ResponseDeleteRange(delete)) => delete_answer_text(delete),
        Some(OpResponse::ResponseTxn(_)) | None => "?".to_owned(),
    }
}

fn range_answer_text(range: &RangeResponse) -> String {
    format!("{} keys{}", range.count, records(&range.kvs))
}

fn put_answer_text(put: &PutResponse) -> String {
    match &put.prev_kv {
        Some(_) => format!("put, was {}", record_text(put.prev_kv.as_ref())),
        None => "put".to_owned(),
    }
}

fn delete_answer_text(delete: &DeleteRangeResponse) -> String {
    format!("{} deleted{}", delete.deleted, records(&delete.prev_kvs))
}

fn records(kvs: &[KeyValue]) -> String {
    let shown = kvs.iter().take(RECORDS);
    let mut text: String =
        shown.map(|record| format!(" {}={}", record.key.escape_ascii(), record_text(Some(record)))).collect();
    if kvs.len() > RECORDS {
        text += &format!(" and {} more", kvs.len() - RECORDS);
    }
    text
}
