use super::*;
use crate::error::{
    DUPLICATE_KEY, EMPTY_KEY, INVALID_SORT_OPTION, KEY_NOT_FOUND, LEASE_PROVIDED, TOO_MANY_OPS, VALUE_PROVIDED,
};
use crate::etcd::etcdserverpb::Compare;

fn put_op(key: &'static str) -> RequestOp {
    op(Op::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
}

fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Op::RequestDeleteRange(DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false }))
}

fn range_op(key: &'static str) -> RequestOp {
    op(Op::RequestRange(RangeRequest { key: key.into(), ..Default::default() }))
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Op::RequestTxn(TxnRequest { compare: vec![], success, failure }))
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn compare(key: &'static str) -> Compare {
    Compare { key: key.into(), ..Default::default() }
}

/// Checks the same operations as success and as failure branch: both are checked, whatever the compares say.
fn check(ops: Vec<RequestOp>, expect: Result<(), EtcdStatus>) {
    let success = TxnRequest { success: ops.clone(), ..Default::default() };
    assert_eq!(txn(&success, 128), expect, "{success:?}");
    let failure = TxnRequest { failure: ops, ..Default::default() };
    assert_eq!(txn(&failure, 128), expect, "{failure:?}");
}

#[test]
fn single_requests() {
    let get = RangeRequest { key: "k".into(), ..Default::default() };
    assert_eq!(range(&get), Ok(()));
    assert_eq!(range(&RangeRequest { range_end: "z".into(), ..Default::default() }), Err(EMPTY_KEY));
    assert_eq!(range(&RangeRequest { sort_order: 2, sort_target: 4, ..get.clone() }), Ok(()));
    assert_eq!(range(&RangeRequest { sort_order: 3, ..get.clone() }), Err(INVALID_SORT_OPTION));
    assert_eq!(range(&RangeRequest { sort_order: -1, ..get.clone() }), Err(INVALID_SORT_OPTION));
    assert_eq!(range(&RangeRequest { sort_target: 5, ..get.clone() }), Err(INVALID_SORT_OPTION));
    assert_eq!(range(&RangeRequest { sort_target: 5, key: "".into(), ..get }), Err(EMPTY_KEY));

    let new = PutRequest { key: "k".into(), value: "v".into(), lease: 1, ..Default::default() };
    assert_eq!(put(&new), Ok(()));
    assert_eq!(put(&PutRequest { key: "".into(), ignore_value: true, ..new.clone() }), Err(EMPTY_KEY));
    assert_eq!(put(&PutRequest { ignore_value: true, ignore_lease: true, ..new.clone() }), Err(VALUE_PROVIDED));
    assert_eq!(put(&PutRequest { ignore_lease: true, ..new.clone() }), Err(LEASE_PROVIDED));
    assert_eq!(put(&PutRequest { ignore_value: true, value: "".into(), ..new.clone() }), Ok(()));
    assert_eq!(put(&PutRequest { ignore_lease: true, lease: 0, ..new }), Ok(()));

    assert_eq!(delete_range(&DeleteRangeRequest { key: "a".into(), ..Default::default() }), Ok(()));
    assert_eq!(delete_range(&DeleteRangeRequest { range_end: "\0".into(), ..Default::default() }), Err(EMPTY_KEY));
}

#[test]
fn every_operation_of_a_transaction_is_checked() {
    check(vec![], Ok(()));
    check(vec![range_op("a"), put_op("a"), range_op("a")], Ok(()));
    check(vec![range_op("")], Err(EMPTY_KEY));
    check(vec![put_op("")], Err(EMPTY_KEY));
    check(vec![delete_op("", "z")], Err(EMPTY_KEY));
    check(vec![RequestOp { request: None }], Err(KEY_NOT_FOUND));
    check(vec![nested(vec![], vec![put_op("")])], Err(EMPTY_KEY));
    check(vec![nested(vec![RequestOp { request: None }], vec![])], Err(KEY_NOT_FOUND));
    let unsorted = RangeRequest { key: "k".into(), sort_target: 9, ..Default::default() };
    check(vec![op(Op::RequestRange(unsorted))], Err(INVALID_SORT_OPTION));
    let kept = PutRequest { key: "k".into(), value: "v".into(), ignore_value: true, ..Default::default() };
    check(vec![op(Op::RequestPut(kept))], Err(VALUE_PROVIDED));
}

#[test]
fn faults_are_found_in_etcds_order() {
    let all_faults = TxnRequest {
        compare: vec![compare("")],
        success: vec![RequestOp { request: None }, put_op("")],
        failure: vec![put_op("a"), put_op("a")],
    };
    assert_eq!(txn(&all_faults, 1), Err(TOO_MANY_OPS));
    assert_eq!(txn(&all_faults, 2), Err(EMPTY_KEY));
    let no_compares = TxnRequest { compare: vec![], ..all_faults };
    assert_eq!(txn(&no_compares, 2), Err(KEY_NOT_FOUND));
    let good_success = TxnRequest { success: vec![put_op("a"), put_op("a")], failure: vec![put_op("")], ..no_compares };
    assert_eq!(txn(&good_success, 2), Err(EMPTY_KEY), "operations of both branches come before duplicates");
    let duplicates = TxnRequest { failure: vec![], ..good_success };
    assert_eq!(txn(&duplicates, 2), Err(DUPLICATE_KEY));
}

#[test]
fn the_budget_counts_the_longest_list_and_shrinks_with_nesting() {
    let ops = |count| vec![range_op("k"); count];
    let compares = |count| vec![compare("k"); count];
    let of = |compare, success, failure| TxnRequest { compare, success, failure };
    assert_eq!(txn(&of(compares(128), ops(128), ops(128)), 128), Ok(()));
    assert_eq!(txn(&of(compares(129), vec![], vec![]), 128), Err(TOO_MANY_OPS));
    assert_eq!(txn(&of(vec![], ops(129), vec![]), 128), Err(TOO_MANY_OPS));
    assert_eq!(txn(&of(vec![], vec![], ops(129)), 128), Err(TOO_MANY_OPS));

    let parent = |own: usize, child: TxnRequest| {
        let mut success = ops(own - 1);
        success.push(op(Op::RequestTxn(child)));
        of(vec![], success, vec![])
    };
    assert_eq!(txn(&parent(100, of(vec![], ops(28), vec![])), 128), Ok(()));
    assert_eq!(txn(&parent(100, of(vec![], ops(29), vec![])), 128), Err(TOO_MANY_OPS));
    assert_eq!(txn(&parent(128, of(vec![], vec![], vec![])), 128), Ok(()));
    assert_eq!(txn(&parent(128, of(compares(1), vec![], vec![])), 128), Err(TOO_MANY_OPS));
    let grandchild = parent(14, of(vec![], ops(14), vec![]));
    assert_eq!(txn(&parent(100, grandchild.clone()), 128), Ok(()));
    assert_eq!(txn(&parent(101, grandchild), 128), Err(TOO_MANY_OPS));
}

#[test]
fn one_branch_changes_a_key_once() {
    check(vec![put_op("a"), put_op("b")], Ok(()));
    check(vec![put_op("a"), put_op("a")], Err(DUPLICATE_KEY));
    check(vec![put_op("a"), delete_op("a", "")], Err(DUPLICATE_KEY));
    check(vec![delete_op("a", ""), put_op("a")], Err(DUPLICATE_KEY));
    check(vec![delete_op("a", "c"), put_op("b")], Err(DUPLICATE_KEY));
    check(vec![put_op("a"), delete_op("a", "c")], Err(DUPLICATE_KEY));
    check(vec![put_op("c"), delete_op("a", "c")], Ok(()));
    check(vec![put_op("a\0"), delete_op("a", "")], Ok(()));
    check(vec![put_op("b"), delete_op("c", "a")], Ok(()));
    check(vec![put_op("c"), delete_op("c", "c")], Ok(()));
    check(vec![delete_op("a", "m"), delete_op("b", ""), delete_op("c", "z")], Ok(()));
    check(vec![delete_op("a", "m"), delete_op("c", "z"), put_op("p")], Err(DUPLICATE_KEY));
}

#[test]
fn the_two_branches_may_put_the_same_key() {
    let both = TxnRequest { compare: vec![], success: vec![put_op("a")], failure: vec![put_op("a")] };
    assert_eq!(txn(&both, 128), Ok(()));
    let mixed = TxnRequest { failure: vec![delete_op("a", "")], ..both };
    assert_eq!(txn(&mixed, 128), Ok(()));
}

#[test]
fn nested_branches_exclude_each_other_but_not_their_siblings() {
    let put_a = || vec![put_op("a")];
    check(vec![nested(put_a(), put_a())], Ok(()));
    check(vec![nested(put_a(), vec![delete_op("a", "")])], Ok(()));
    check(vec![nested(put_a(), vec![]), put_op("a")], Err(DUPLICATE_KEY));
    check(vec![put_op("a"), nested(vec![], put_a())], Err(DUPLICATE_KEY));
    check(vec![nested(put_a(), vec![]), nested(put_a(), vec![])], Err(DUPLICATE_KEY));
    check(vec![nested(put_a(), vec![]), nested(vec![], put_a())], Err(DUPLICATE_KEY));
    check(vec![nested(put_a(), put_a()), nested(put_a(), vec![])], Err(DUPLICATE_KEY));
    check(vec![nested(put_a(), put_a()), delete_op("a", "")], Err(DUPLICATE_KEY));
    check(vec![delete_op("a", "b"), nested(vec![], put_a())], Err(DUPLICATE_KEY));
    check(vec![nested(vec![delete_op("a", "b")], vec![]), put_op("a")], Err(DUPLICATE_KEY));
    check(vec![nested(vec![delete_op("a", "b")], vec![]), nested(put_a(), vec![])], Err(DUPLICATE_KEY));
    check(vec![nested(vec![nested(put_a(), vec![])], vec![]), put_op("a")], Err(DUPLICATE_KEY));
    check(vec![nested(vec![], vec![put_op("a"), put_op("a")])], Err(DUPLICATE_KEY));
}

#[test]
fn a_put_and_a_delete_in_later_siblings_pass_as_in_etcd() {
    check(vec![nested(vec![put_op("a")], vec![]), nested(vec![delete_op("a", "")], vec![])], Ok(()));
    check(vec![nested(vec![put_op("a")], vec![]), nested(vec![], vec![delete_op("a", "z")])], Ok(()));
}

#[test]
fn an_open_delete_collides_unlike_in_etcd() {
    check(vec![delete_op("a", "\0"), put_op("b")], Err(DUPLICATE_KEY));
    check(vec![put_op("b"), delete_op("a", "\0")], Err(DUPLICATE_KEY));
    check(vec![put_op("b"), delete_op("\0", "\0")], Err(DUPLICATE_KEY));
    check(vec![put_op("b"), delete_op("c", "\0")], Ok(()));
    check(vec![delete_op("c", "d"), delete_op("b", "\0"), put_op("e")], Err(DUPLICATE_KEY));
}

#[test]
fn merged_ranges_hold_exactly_what_was_inserted() {
    const KEYS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for _ in 0..2_000 {
        let mut ranges = Ranges::default();
        let mut held = [false; KEYS.len()];
        for _ in 0..below(6) {
            let (from, to) = (below(KEYS.len()), below(KEYS.len() + 1));
            let end = KEYS.get(to).copied().unwrap_or("\0");
            ranges.insert(KEYS[from].as_bytes(), end.as_bytes());
            (from..to.max(from)).for_each(|index| held[index] = true);
        }
        for (key, held) in KEYS.iter().zip(held) {
            assert_eq!(ranges.avoid(key.as_bytes()).is_err(), held, "{key}");
        }
        let starts: Vec<_> = ranges.ranges.iter().collect();
        assert!(starts.windows(2).all(|pair| *pair[0].1 < End::Before(pair[1].0)), "ranges are disjoint");
    }
}
