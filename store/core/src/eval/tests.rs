//! etcd's semantics on small states, one claim a test. The randomised comparison with a naive etcd is the pipeline's.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, compare, request_op,
    response_op,
};
use braid_proto::key::user_key;
use bytes::Bytes;

use super::*;
use crate::overlay::Overlay;
use crate::placeholder::{BEFORE, OWN, pending};
use crate::view::model::Model;

/// a=1 @2, b=2 @3 (created @2, version 2), c gone @4.
fn scene() -> Model {
    let change = |key: &str, value: &'static str, supersedes, create_revision, version| Change {
        key: user_key(key.as_bytes()),
        supersedes,
        create_revision,
        version,
        value: value.into(),
        ..Default::default()
    };
    let mut model = Model::default();
    model.apply(2, &[change("a", "1", 0, 2, 1), change("b", "1", 0, 2, 1), change("c", "1", 0, 2, 1)]);
    model.apply(3, &[change("b", "2", 2, 2, 2)]);
    let gone = Change { key: user_key(b"c"), supersedes: 2, delete: true, ..Default::default() };
    model.apply(4, &[gone]);
    model
}

fn run(request: Request) -> Evaluated {
    run_on(&Overlay::default(), request, Context { heard: 4, ..Default::default() })
}

fn run_on(overlay: &Overlay, request: Request, context: Context) -> Evaluated {
    evaluate(&request, &View { overlay, base: &scene() }, &context).expect("readable")
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: b(key), value: b(value), ..Default::default() }
}

fn op_put(key: &str, value: &str) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put(key, value))) }
}

fn op_range(key: &str, end: &str, revision: i64) -> RequestOp {
    let range = RangeRequest { key: b(key), range_end: b(end), revision, ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestRange(range)) }
}

fn op_delete(key: &str, end: &str) -> RequestOp {
    let delete = DeleteRangeRequest { key: b(key), range_end: b(end), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestDeleteRange(delete)) }
}

fn op_txn(txn: TxnRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestTxn(txn)) }
}

fn compare(key: &str, end: &str, result: compare::CompareResult, with: compare::TargetUnion) -> Compare {
    use compare::{CompareTarget as T, TargetUnion as U};
    let target = match with {
        U::Version(_) => T::Version,
        U::CreateRevision(_) => T::Create,
        U::ModRevision(_) => T::Mod,
        U::Value(_) => T::Value,
        U::Lease(_) => T::Lease,
    };
    let (result, target) = (result.into(), target.into());
    Compare { result, target, key: b(key), range_end: b(end), target_union: Some(with) }
}

fn decides(compare: Compare) -> bool {
    let txn = TxnRequest { compare: vec![compare], ..Default::default() };
    match run(Request::Txn(txn)) {
        Evaluated::Read { response: region_response::Result::Txn(txn), .. } => txn.succeeded,
        other => panic!("{other:?}"),
    }
}

fn written(evaluated: Evaluated) -> (Vec<Change>, region_response::Result) {
    match evaluated {
        Evaluated::Write { changes, response, .. } => (changes, response),
        other => panic!("{other:?}"),
    }
}

fn txn_of(result: region_response::Result) -> TxnResponse {
    match result {
        region_response::Result::Txn(txn) => txn,
        other => panic!("{other:?}"),
    }
}

fn failed(evaluated: Evaluated) -> String {
    match evaluated {
        Evaluated::Fail { error, .. } => error.message,
        other => panic!("{other:?}"),
    }
}

fn nth_range(txn: &TxnResponse, n: usize) -> &braid_proto::etcd::etcdserverpb::RangeResponse {
    match &txn.responses[n].response {
        Some(response_op::Response::ResponseRange(range)) => range,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_put_keeps_the_keys_birth_and_counts_its_versions() {
    let (changes, _) = written(run(Request::Put(put("b", "3"))));
    assert_eq!((changes[0].supersedes, changes[0].create_revision, changes[0].version), (3, 2, 3));
    let (changes, _) = written(run(Request::Put(put("c", "3"))));
    assert_eq!((changes[0].supersedes, changes[0].create_revision, changes[0].version), (0, OWN, 1), "a new life");
}

#[test]
fn prev_kv_is_what_was_there() {
    let (_, response) = written(run(Request::Put(PutRequest { prev_kv: true, ..put("b", "3") })));
    let region_response::Result::Put(response) = response else { panic!() };
    assert_eq!(response.prev_kv.map(|kv| (kv.value, kv.mod_revision)), Some(("2".into(), 3)));
    let (_, response) = written(run(Request::Put(PutRequest { prev_kv: true, ..put("c", "3") })));
    let region_response::Result::Put(response) = response else { panic!() };
    assert_eq!(response.prev_kv, None);
}

#[test]
fn ignore_value_needs_the_key() {
    let keep = |key| Request::Put(PutRequest { ignore_value: true, ..put(key, "") });
    let (changes, _) = written(run(keep("b")));
    assert_eq!(changes[0].value, "2");
    assert_eq!(failed(run(keep("c"))), error::KEY_NOT_FOUND.message);
    let keep_lease = Request::Put(PutRequest { ignore_lease: true, ..put("c", "1") });
    assert_eq!(failed(run(keep_lease)), error::KEY_NOT_FOUND.message);
}

#[test]
fn a_lease_that_nobody_granted_is_not_found() {
    assert_eq!(failed(run(Request::Put(PutRequest { lease: 7, ..put("a", "1") }))), error::LEASE_NOT_FOUND.message);
}

#[test]
fn a_delete_counts_what_it_deletes_and_changes_nothing_else() {
    let delete = |key, end| DeleteRangeRequest { key: b(key), range_end: b(end), prev_kv: true };
    let (changes, response) = written(run(Request::DeleteRange(delete("a", "z"))));
    let region_response::Result::DeleteRange(response) = response else { panic!() };
    assert_eq!((changes.len(), response.deleted, response.prev_kvs.len()), (2, 2, 2));
    assert!(matches!(run(Request::DeleteRange(delete("c", ""))), Evaluated::Read { .. }), "nothing to delete");
    assert!(matches!(run(Request::DeleteRange(delete("z", "a"))), Evaluated::Read { .. }), "an empty range");
}

#[test]
fn compares_of_every_target() {
    use compare::CompareResult::{Equal, Greater, Less, NotEqual};
    use compare::TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
    for (key, result, with, holds) in [
        ("b", Equal, Version(2), true),
        ("b", Greater, Version(1), true),
        ("b", Less, Version(2), false),
        ("b", Equal, CreateRevision(2), true),
        ("b", NotEqual, ModRevision(3), false),
        ("b", Equal, Value("2".into()), true),
        ("b", Greater, Value("10".into()), true),
        ("b", Equal, Lease(0), true),
        ("c", Equal, Version(0), true),
        ("c", Equal, ModRevision(0), true),
        ("c", Equal, Value("".into()), false),
        ("c", NotEqual, Value("x".into()), false),
    ] {
        let text = format!("{key} {result:?} {with:?}");
        assert_eq!(decides(compare(key, "", result, with)), holds, "{text}");
    }
}

#[test]
fn a_compare_of_a_range_must_hold_for_every_key() {
    use compare::CompareResult::{Equal, Greater};
    use compare::TargetUnion::{CreateRevision, Version};
    assert!(decides(compare("a", "z", Equal, CreateRevision(2))));
    assert!(!decides(compare("a", "z", Greater, Version(1))));
    assert!(decides(compare("x", "z", Equal, Version(0))), "an empty range is a missing key");
}

#[test]
fn operations_see_earlier_ones_and_headers_follow_the_first_change() {
    let txn = TxnRequest {
        success: vec![op_range("a", "z", 0), op_put("c", "new"), op_range("a", "z", 0), op_delete("a", ""), op_range("a", "", 0)],
        ..Default::default()
    };
    let (changes, response) = written(run(Request::Txn(txn)));
    let txn = txn_of(response);
    let header = |n| nth_range(&txn, n).header.map(|header| header.revision);
    assert_eq!((nth_range(&txn, 0).count, header(0)), (2, Some(BEFORE)));
    assert_eq!((nth_range(&txn, 2).count, header(2)), (3, Some(OWN)));
    assert_eq!(nth_range(&txn, 2).kvs[2].mod_revision, OWN);
    assert_eq!(nth_range(&txn, 4).count, 0);
    assert_eq!(changes.iter().map(|change| change.delete).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn ranges_at_an_explicit_revision_see_only_that() {
    let txn = TxnRequest { success: vec![op_put("a", "new"), op_range("a", "z", 2)], ..Default::default() };
    let txn = txn_of(written(run(Request::Txn(txn))).1);
    assert_eq!(nth_range(&txn, 1).kvs.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(), ["1", "1", "1"]);
}

#[test]
fn a_future_revision_fails_the_whole_once_it_is_certain() {
    let txn = || Request::Txn(TxnRequest { success: vec![op_put("a", "x"), op_range("a", "", 9)], ..Default::default() });
    let none = Overlay::default();
    assert_eq!(run_on(&none, txn(), Context { heard: 4, ..Default::default() }), Evaluated::Wait(WaitFor::Bound));
    let fresh = Context { heard: 4, heard_is_fresh: true, ..Default::default() };
    assert_eq!(failed(run_on(&none, txn(), fresh)), error::FUTURE_REVISION.message);
    let compacted = Context { heard: 9, compacted: 3, ..Default::default() };
    let old = Request::Txn(TxnRequest { success: vec![op_range("a", "", 2)], ..Default::default() });
    assert_eq!(failed(run_on(&none, old, compacted)), error::COMPACTED.message);
}

#[test]
fn the_whole_tree_of_compares_is_decided_before_anything_runs() {
    use compare::CompareResult::Equal;
    use compare::TargetUnion::Version;
    let nested = TxnRequest {
        compare: vec![compare("c", "", Equal, Version(0))],
        success: vec![op_put("d", "c was absent")],
        failure: vec![op_put("d", "c was there")],
    };
    let txn = TxnRequest { success: vec![op_put("c", "now"), op_txn(nested)], ..Default::default() };
    let (changes, _) = written(run(Request::Txn(txn)));
    assert_eq!(changes[1].value, "c was absent");
}

#[test]
fn one_bad_operation_fails_all() {
    let keep = RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest { ignore_value: true, ..put("nothing", "") })),
    };
    let txn = TxnRequest { success: vec![op_put("a", "x"), keep], ..Default::default() };
    assert_eq!(failed(run(Request::Txn(txn))), error::KEY_NOT_FOUND.message);
}

#[test]
fn too_much_at_once_is_refused_before_it_is_numbered() {
    let context = Context { heard: 4, effect_changes_max: 1, ..Default::default() };
    let delete = DeleteRangeRequest { key: b("a"), range_end: b("z"), ..Default::default() };
    let message = failed(run_on(&Overlay::default(), Request::DeleteRange(delete), context));
    assert!(message.starts_with("braid: the request changes more than 1 keys"), "{message}");
}

#[test]
fn what_was_read_in_flight_is_named() {
    let mut overlay = Overlay::default();
    let change = Change { key: user_key(b"a"), supersedes: 2, create_revision: 2, version: 2, ..Default::default() };
    overlay.push(7, 4, &[change]);
    let context = Context { heard: 4, ..Default::default() };
    let get = Request::Txn(TxnRequest { success: vec![op_range("a", "", 0)], ..Default::default() });
    let Evaluated::Read { rests_on, response } = run_on(&overlay, get, context) else { panic!() };
    assert_eq!(rests_on, Some(7));
    assert_eq!(nth_range(&txn_of(response), 0).kvs[0].mod_revision, pending(7));
    let then = Request::Txn(TxnRequest { success: vec![op_range("a", "", 3)], ..Default::default() });
    assert_eq!(run_on(&overlay, then, context), Evaluated::Wait(WaitFor::Applied(7)));
}
