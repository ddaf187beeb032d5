//! Programs and answers as text for people.

use std::fmt;

use braid_proto::etcd::etcdserverpb::compare::TargetUnion;
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use braid_proto::etcd::mvccpb::KeyValue;

use super::program::{Program, offset};
use crate::model::{Answer, Request};

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, request) in self.requests.iter().enumerate() {
            writeln!(f, "{:>4}  {}", at + 1, one(request))?;
        }
        Ok(())
    }
}

/// One request on one line.
pub fn one(request: &Request) -> String {
    match request {
        Request::Range(request) => range(request),
        Request::Put(request) => put(request),
        Request::DeleteRange(request) => delete_range(request),
        Request::Txn(request) => txn(request),
        Request::Compact(request) => {
            format!("compact {}{}", number(request.revision), flag(request.physical, " physical"))
        }
    }
}

/// A key as it is returned.
pub fn key_value(key_value: &KeyValue) -> String {
    let KeyValue { key, create_revision, mod_revision, version, value, lease } = key_value;
    let (key, value) = (text(key), text(value));
    format!("{key}={value} (create {create_revision}, mod {mod_revision}, version {version}, lease {lease:#x})")
}

/// What kind of answer it is.
pub fn answer(answer: &Answer) -> String {
    let kind = match answer {
        Answer::Refused { code, message } => return format!("{code:?} {message:?}"),
        Answer::Range(_) => "a range",
        Answer::Put(_) => "a put",
        Answer::DeleteRange(_) => "a delete",
        Answer::Txn(_) => "a transaction",
        Answer::Compact(_) => "a compaction",
    };
    let revision = answer.revision().map_or_else(|| "without a header".to_owned(), |at| format!("at revision {at}"));
    format!("the answer of {kind} {revision}")
}

fn range(request: &RangeRequest) -> String {
    let mut line = format!("get {}", keys(&request.key, &request.range_end));
    let numbers = [
        ("at", request.revision),
        ("limit", request.limit),
        ("min_mod", request.min_mod_revision),
        ("max_mod", request.max_mod_revision),
        ("min_create", request.min_create_revision),
        ("max_create", request.max_create_revision),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        line += &format!(" {name} {}", number(value));
    }
    if (request.sort_order, request.sort_target) != (0, 0) {
        let order = named(&["none", "ascend", "descend"], request.sort_order);
        let target = named(&["key", "version", "create", "mod", "value"], request.sort_target);
        line += &format!(" sort {target} {order}");
    }
    line += flag(request.serializable, " serializable");
    line += flag(request.keys_only, " keys_only");
    line + flag(request.count_only, " count_only")
}

fn put(request: &PutRequest) -> String {
    let mut line = format!("put {} = {}", text(&request.key), text(&request.value));
    if request.lease != 0 {
        line += &format!(" lease {:#x}", request.lease);
    }
    line += flag(request.prev_kv, " prev_kv");
    line += flag(request.ignore_value, " ignore_value");
    line + flag(request.ignore_lease, " ignore_lease")
}

fn delete_range(request: &DeleteRangeRequest) -> String {
    format!("delete {}{}", keys(&request.key, &request.range_end), flag(request.prev_kv, " prev_kv"))
}

fn txn(request: &TxnRequest) -> String {
    let compares: Vec<_> = request.compare.iter().map(compare).collect();
    let when = if compares.is_empty() { "true".to_owned() } else { compares.join(" and ") };
    format!("txn if {when} then {} else {}", branch(&request.success), branch(&request.failure))
}

fn branch(ops: &[RequestOp]) -> String {
    const SHOWN: usize = 12;
    let mut all: Vec<_> = ops.iter().take(SHOWN).map(op).collect();
    if ops.len() > SHOWN {
        all.push(format!("... {} more", ops.len() - SHOWN));
    }
    format!("[{}]", all.join("; "))
}

fn op(op: &RequestOp) -> String {
    match &op.request {
        Some(Op::RequestRange(request)) => range(request),
        Some(Op::RequestPut(request)) => put(request),
        Some(Op::RequestDeleteRange(request)) => delete_range(request),
        Some(Op::RequestTxn(request)) => txn(request),
        None => "(no operation)".to_owned(),
    }
}

fn compare(compare: &Compare) -> String {
    let target = named(&["version", "create", "mod", "value", "lease"], compare.target);
    let result = named(&["=", ">", "<", "!="], compare.result);
    let given = match &compare.target_union {
        None => "(nothing)".to_owned(),
        Some(TargetUnion::Version(value)) => format!("version {value}"),
        Some(TargetUnion::CreateRevision(value)) => format!("create {}", number(*value)),
        Some(TargetUnion::ModRevision(value)) => format!("mod {}", number(*value)),
        Some(TargetUnion::Value(value)) => format!("value {}", text(value)),
        Some(TargetUnion::Lease(value)) => format!("lease {value:#x}"),
    };
    format!("{target}({}) {result} {given}", keys(&compare.key, &compare.range_end))
}

fn keys(key: &[u8], range_end: &[u8]) -> String {
    match range_end {
        [] => text(key),
        [0] => format!("[{}, ∞)", text(key)),
        end => format!("[{}, {})", text(key), text(end)),
    }
}

/// A number, or a revision as its distance from where the program started.
fn number(number: i64) -> String {
    offset(number).map_or_else(|| number.to_string(), |offset| format!("base{offset:+}"))
}

fn named(names: &[&str], value: i32) -> String {
    let name = usize::try_from(value).ok().and_then(|at| names.get(at));
    name.map_or_else(|| format!("(unknown {value})"), |name| (*name).to_owned())
}

fn text(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// A flag's name, which begins with a space, where the flag is set.
fn flag(set: bool, name: &'static str) -> &'static str {
    if set { name } else { "" }
}
