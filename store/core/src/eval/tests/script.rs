//! Requests, states and outcomes as one line of text each.
//!
//! ```text
//! state     put a 1; del a; | put b 2; #3 @9     writes from @2 on are applied, those after `|` are in flight as seq 1, 2, …
//!                                               on top; `#1 @9` gives one its number; `lease=7` attaches a lease
//! request   put a 1 [lease=N] [prev] [ignore_value] [ignore_lease]
//!           get KEYS [limit=N] [rev=N] [sort=mod:desc] [keys] [count] [minmod=N] [maxmod=N] [mincreate=N] [maxcreate=N]
//!           del KEYS [prev]
//!           txn { if mod(a)=2 val(b)!x then put a 1 ; get b else get a }
//! KEYS      a   a..c   a..   ..                 one key, a range, everything from a on, everything
//! outcome   write [a=1 c2 v3 over 2, -b over 3]: put own prev a=1[c2 m2 v1] (rests on 2)
//!           `own`, `before` and `?2` stand for revisions that are not known yet
//! ```

use std::collections::HashSet;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, request_op::Request as Op, response_op::Response as Done,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::pb::{Change, region_response};
use bytes::Bytes;

use crate::eval::{Context, Evaluated, Leases, Request, WaitFor, evaluate, fill_changes};
use crate::overlay::Overlay;
use crate::placeholder::{BEFORE, OWN, PENDING};
use crate::view::View;
use crate::view::model::Model;

/// A state: applied data, and what is in flight above it.
pub struct State {
    pub base: Model,
    pub overlay: Overlay,
    /// Revision of the newest applied write.
    pub applied: i64,
}

impl State {
    pub fn parse(text: &str) -> Self {
        let mut state = Self { base: Model::default(), overlay: Overlay::default(), applied: 1 };
        let (applied, in_flight) = text.split_once('|').unwrap_or((text, ""));
        for step in steps(applied) {
            let revision = state.applied + 1;
            let mut changes = state.changes(step);
            fill_changes(&mut changes, &|_| unreachable!("nothing is in flight"), revision);
            state.base.apply(revision, &changes);
            state.applied = revision;
        }
        let mut seq = 0;
        for step in steps(in_flight) {
            if let Some(number) = step.strip_prefix('#') {
                let (seq, revision) = number.split_once(" @").expect("#SEQ @REVISION");
                state.overlay.resolve(seq.parse().unwrap(), revision.parse().unwrap());
                continue;
            }
            seq += 1;
            let changes = state.changes(step);
            state.overlay.push(seq, state.applied, &changes);
        }
        state
    }

    /// What a write of the set-up changes. Leases need no lease here.
    fn changes(&self, step: &str) -> Vec<Change> {
        let mut request = request(step);
        let lease = match &mut request {
            Request::Put(put) => std::mem::take(&mut put.lease),
            _ => 0,
        };
        match self.evaluate(&request, &Context { heard: self.applied, ..Context::default() }) {
            Evaluated::Write { mut changes, .. } => {
                changes.iter_mut().for_each(|change| change.lease = lease);
                changes
            }
            other => panic!("{step} is no write: {other:?}"),
        }
    }

    pub fn evaluate(&self, request: &Request, context: &Context) -> Evaluated {
        evaluate(request, &View { overlay: &self.overlay, base: &self.base }, context)
            .expect("the model is never damaged")
    }
}

fn steps(text: &str) -> impl Iterator<Item = &str> {
    text.split(';').map(str::trim).filter(|step| !step.is_empty())
}

/// Checks the outcome of `request` on `state`, with everything applied heard of just now. Lease 1 exists, 3 and 5 do not, and
/// nothing is known of others.
#[track_caller]
pub fn check(state: &str, request: &str, expect: &str) {
    let state = State::parse(state);
    let attached = HashSet::from([1]);
    let leases = Leases { attached: Some(&attached), missing: &[3, 5] };
    let context = Context { heard: state.applied, heard_is_fresh: true, leases, ..Context::default() };
    check_in(&state, request, &context, expect);
}

#[track_caller]
pub fn check_in(state: &State, text: &str, context: &Context, expect: &str) {
    assert_eq!(shown(&state.evaluate(&request(text), context)), expect, "{text}");
}

// ------------------------------------------------------------------------------------------------ reading

pub fn request(text: &str) -> Request {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut words = &words[..];
    let op = op(&mut words);
    assert!(words.is_empty(), "left over: {words:?}");
    match op {
        Op::RequestPut(put) => Request::Put(put),
        Op::RequestDeleteRange(delete) => Request::DeleteRange(delete),
        Op::RequestTxn(txn) => Request::Txn(txn),
        range => {
            Request::Txn(TxnRequest { success: vec![RequestOp { request: Some(range) }], ..TxnRequest::default() })
        }
    }
}

fn word<'a>(words: &mut &[&'a str]) -> &'a str {
    let (first, rest) = words.split_first().expect("one more word");
    *words = rest;
    first
}

fn op(words: &mut &[&str]) -> Op {
    match word(words) {
        "put" => Op::RequestPut(put(words)),
        "get" => Op::RequestRange(get(words)),
        "del" => {
            let (key, range_end) = keys(word(words));
            let prev_kv = words.first() == Some(&"prev");
            *words = &words[usize::from(prev_kv)..];
            Op::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv })
        }
        "txn" => {
            assert_eq!(word(words), "{");
            let txn = txn(words);
            assert_eq!(word(words), "}");
            Op::RequestTxn(txn)
        }
        other => panic!("no operation {other}"),
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(text: &str) -> (Bytes, Bytes) {
    match text.split_once("..") {
        None => (bytes(text), Bytes::new()),
        Some(("", "")) => (bytes("\0"), bytes("\0")),
        Some((start, "")) => (bytes(start), bytes("\0")),
        Some((start, end)) => (bytes(start), bytes(end)),
    }
}

fn ends(word: Option<&&str>) -> bool {
    matches!(word, None | Some(&(";" | "else" | "}")))
}

fn put(words: &mut &[&str]) -> PutRequest {
    let mut put = PutRequest { key: bytes(word(words)), ..PutRequest::default() };
    while !ends(words.first()) {
        match word(words) {
            "prev" => put.prev_kv = true,
            "ignore_value" => put.ignore_value = true,
            "ignore_lease" => put.ignore_lease = true,
            lease if lease.starts_with("lease=") => put.lease = lease[6..].parse().unwrap(),
            value => put.value = bytes(value),
        }
    }
    put
}

fn get(words: &mut &[&str]) -> RangeRequest {
    let (key, range_end) = keys(word(words));
    let mut get = RangeRequest { key, range_end, ..RangeRequest::default() };
    while !ends(words.first()) {
        let option = word(words);
        let (name, value) = option.split_once('=').unwrap_or((option, "0"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{option} is no number"));
        match name {
            "limit" => get.limit = number(),
            "rev" => get.revision = number(),
            "keys" => get.keys_only = true,
            "count" => get.count_only = true,
            "minmod" => get.min_mod_revision = number(),
            "maxmod" => get.max_mod_revision = number(),
            "mincreate" => get.min_create_revision = number(),
            "maxcreate" => get.max_create_revision = number(),
            "sort" => sort(&mut get, value),
            _ => panic!("no option {option}"),
        }
    }
    get
}

fn sort(get: &mut RangeRequest, value: &str) {
    let (target, order) = value.split_once(':').unwrap_or((value, "none"));
    get.set_sort_target(match target {
        "key" => SortTarget::Key,
        "ver" => SortTarget::Version,
        "create" => SortTarget::Create,
        "mod" => SortTarget::Mod,
        "val" => SortTarget::Value,
        _ => panic!("no target {target}"),
    });
    get.set_sort_order(match order {
        "none" => SortOrder::None,
        "asc" => SortOrder::Ascend,
        "desc" => SortOrder::Descend,
        _ => panic!("no order {order}"),
    });
}

fn txn(words: &mut &[&str]) -> TxnRequest {
    let mut txn = TxnRequest::default();
    if words.first() == Some(&"if") {
        word(words);
        while !matches!(words.first(), Some(&("then" | "else" | "}"))) {
            txn.compare.push(compare(word(words)));
        }
    }
    if words.first() == Some(&"then") {
        word(words);
        txn.success = ops(words);
    }
    if words.first() == Some(&"else") {
        word(words);
        txn.failure = ops(words);
    }
    txn
}

fn ops(words: &mut &[&str]) -> Vec<RequestOp> {
    let mut ops = Vec::new();
    while !matches!(words.first(), Some(&("else" | "}"))) {
        ops.push(RequestOp { request: Some(op(words)) });
        if words.first() == Some(&";") {
            word(words);
        }
    }
    ops
}

fn compare(text: &str) -> Compare {
    let (target, rest) = text.split_once('(').expect("target(key)=constant");
    let (name, rest) = rest.split_once(')').expect("target(key)=constant");
    let (result, constant) = match rest.split_at(1) {
        ("!", rest) => (CompareResult::NotEqual, &rest[1..]),
        ("=", rest) => (CompareResult::Equal, rest),
        (">", rest) => (CompareResult::Greater, rest),
        ("<", rest) => (CompareResult::Less, rest),
        _ => panic!("no relation in {text}"),
    };
    let (key, range_end) = keys(name);
    let number = || constant.parse().unwrap_or_else(|_| panic!("{text} has no number"));
    let (target, union) = match target {
        "ver" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "val" => (CompareTarget::Value, TargetUnion::Value(bytes(constant))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        _ => panic!("no target in {text}"),
    };
    Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
}

// ------------------------------------------------------------------------------------------------ showing

pub fn shown(evaluated: &Evaluated) -> String {
    let rests = |rests_on: &Option<u64>| rests_on.map_or(String::new(), |seq| format!(" (rests on {seq})"));
    match evaluated {
        Evaluated::Wait(WaitFor::Number(seq)) => format!("wait for number {seq}"),
        Evaluated::Wait(WaitFor::Applied(seq)) => format!("wait until {seq} is applied"),
        Evaluated::Wait(WaitFor::Bound) => "wait for a bound".to_owned(),
        Evaluated::Wait(WaitFor::Lease(lease)) => format!("wait for lease {lease}"),
        Evaluated::TooLarge => "too large".to_owned(),
        Evaluated::Fail { error, rests_on } => format!("fail {}: {}{}", error.code, error.message, rests(rests_on)),
        Evaluated::Read { response, rests_on } => format!("read: {}{}", answer(response), rests(rests_on)),
        Evaluated::Write { changes, response, rests_on } => {
            let changes: Vec<String> = changes.iter().map(change).collect();
            format!("write [{}]: {}{}", changes.join(", "), answer(response), rests(rests_on))
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn revision(revision: i64) -> String {
    match revision {
        OWN => "own".to_owned(),
        BEFORE => "before".to_owned(),
        PENDING.. => format!("?{}", revision - PENDING),
        known => known.to_string(),
    }
}

fn header(header: &Option<ResponseHeader>) -> String {
    revision(header.as_ref().expect("every answer has a header").revision)
}

fn change(change: &Change) -> String {
    let key = text(&change.key[1..]);
    let over = if change.supersedes == 0 { String::new() } else { format!(" over {}", revision(change.supersedes)) };
    if change.delete {
        return format!("-{key}{over}");
    }
    let lease = if change.lease == 0 { String::new() } else { format!(" lease {}", change.lease) };
    format!("{key}={} c{} v{}{lease}{over}", text(&change.value), revision(change.create_revision), change.version)
}

fn kv(kv: &KeyValue) -> String {
    let lease = if kv.lease == 0 { String::new() } else { format!(" l{}", kv.lease) };
    let (create, modified) = (revision(kv.create_revision), revision(kv.mod_revision));
    format!("{}={}[c{create} m{modified} v{}{lease}]", text(&kv.key), text(&kv.value), kv.version)
}

fn kvs(kvs: &[KeyValue]) -> String {
    kvs.iter().map(|found| format!(" {}", kv(found))).collect()
}

pub fn answer(result: &region_response::Result) -> String {
    match result {
        region_response::Result::Range(response) => range(response),
        region_response::Result::Put(response) => put_answer(response),
        region_response::Result::DeleteRange(response) => delete_answer(response),
        region_response::Result::Txn(response) => txn_answer(response),
        other => panic!("not an answer: {other:?}"),
    }
}

fn range(response: &RangeResponse) -> String {
    let more = if response.more { " more" } else { "" };
    format!("get {}{} of {}{more}", header(&response.header), kvs(&response.kvs), response.count)
}

fn put_answer(response: &PutResponse) -> String {
    let previous = response.prev_kv.as_ref().map_or(String::new(), |previous| format!(" prev {}", kv(previous)));
    format!("put {}{previous}", header(&response.header))
}

fn delete_answer(response: &DeleteRangeResponse) -> String {
    format!("del {} {}{}", header(&response.header), response.deleted, kvs(&response.prev_kvs))
}

fn txn_answer(response: &TxnResponse) -> String {
    let answers =
        response.responses.iter().map(|op| match op.response.as_ref().expect("an answer for each operation") {
            Done::ResponseRange(response) => range(response),
            Done::ResponsePut(response) => put_answer(response),
            Done::ResponseDeleteRange(response) => delete_answer(response),
            Done::ResponseTxn(response) => txn_answer(response),
        });
    let answers: Vec<String> = answers.collect();
    let taken = if response.succeeded { "then" } else { "else" };
    format!("txn {} {taken} {{{}}}", header(&response.header), answers.join("; "))
}
