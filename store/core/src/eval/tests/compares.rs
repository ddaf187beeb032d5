//! Compares (2.7).

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::{Compare, TxnRequest};

use super::script::{State, check, shown};
use crate::eval::{Context, Request};

/// a: created @2, modified @4, version 2, value x. b: created @3, lease 7, value y.
const AB: &str = "put a w; put b y lease=7; put a x";

#[track_caller]
fn holds(state: &str, compares: &str, holds: bool) {
    let taken = if holds { "then" } else { "else" };
    check(state, &format!("txn {{ if {compares} }}"), &format!("read: txn before {taken} {{}}"));
}

#[test]
fn every_target_with_every_relation() {
    for (target, value) in [("mod", 4), ("create", 2), ("ver", 2), ("lease", 0)] {
        for constant in value - 1..=value + 1 {
            holds(AB, &format!("{target}(a)={constant}"), value == constant);
            holds(AB, &format!("{target}(a)!={constant}"), value != constant);
            holds(AB, &format!("{target}(a)>{constant}"), value > constant);
            holds(AB, &format!("{target}(a)<{constant}"), value < constant);
        }
    }
    holds(AB, "lease(b)=7", true);
    holds(AB, "lease(b)>7", false);
    for (relation, results) in [
        ("=", [false, true, false]),
        ("!=", [true, false, true]),
        (">", [true, false, false]),
        ("<", [false, false, true]),
    ] {
        for (constant, expected) in ["w", "x", "xx"].iter().zip(results) {
            holds(AB, &format!("val(a){relation}{constant}"), expected);
        }
    }
}

#[test]
fn all_must_hold_and_none_always_does() {
    holds(AB, "", true);
    holds(AB, "mod(a)=4 val(b)=y ver(b)=1", true);
    holds(AB, "mod(a)=4 val(b)=y ver(b)=2", false);
    holds(AB, "mod(a)=3 val(b)=y", false);
}

#[test]
fn an_absent_key_counts_as_zero_but_has_no_value() {
    for target in ["mod", "create", "ver", "lease"] {
        holds(AB, &format!("{target}(z)=0"), true);
        holds(AB, &format!("{target}(z)>0"), false);
        holds(AB, &format!("{target}(z)<1"), true);
        holds(AB, &format!("{target}(z)!=0"), false);
    }
    for compare in ["val(z)=", "val(z)=x", "val(z)!=x", "val(z)<x", "val(z)>"] {
        holds(AB, compare, false);
    }
    holds("put a x; del a", "ver(a)=0", true);
    holds("put a x; del a", "val(a)!=x", false);
    holds("put a", "val(a)=", true);
}

#[test]
fn a_range_must_hold_for_each_of_its_keys() {
    holds(AB, "ver(a..c)>0", true);
    holds(AB, "ver(a..c)=1", false);
    holds(AB, "val(a..c)>w", true);
    holds(AB, "val(..)>x", false);
    holds(AB, "mod(b..)=3", true);
    // Nothing in it: the rule of the absent key.
    holds(AB, "ver(p..q)=0", true);
    holds(AB, "val(p..q)=x", false);
    holds(AB, "ver(c..a)=0", true);
}

#[test]
fn what_etcd_does_not_know_compares_nothing_or_always_holds() {
    let state = State::parse(AB);
    let run = |compare: Compare| {
        let request = Request::Txn(TxnRequest { compare: vec![compare], ..TxnRequest::default() });
        shown(&state.evaluate(&request, &Context::default()))
    };
    let compare = |result: i32, target: i32, union| Compare {
        result,
        target,
        key: "a".into(),
        target_union: union,
        ..Compare::default()
    };
    let (then, other) = ("read: txn before then {}", "read: txn before else {}");
    let (equal, greater) = (CompareResult::Equal as i32, CompareResult::Greater as i32);
    // A union that does not match the target: compared with zero, or with nothing.
    assert_eq!(run(compare(greater, CompareTarget::Mod as i32, Some(TargetUnion::Version(99)))), then);
    assert_eq!(run(compare(equal, CompareTarget::Create as i32, None)), other);
    assert_eq!(run(compare(greater, CompareTarget::Version as i32, None)), then);
    assert_eq!(run(compare(equal, CompareTarget::Lease as i32, None)), then);
    assert_eq!(run(compare(equal, CompareTarget::Value as i32, Some(TargetUnion::Version(1)))), other);
    assert_eq!(run(compare(greater, CompareTarget::Value as i32, None)), then);
    // An unknown target is equal, an unknown relation holds.
    assert_eq!(run(compare(equal, 17, None)), then);
    assert_eq!(run(compare(greater, 17, None)), other);
    assert_eq!(run(compare(17, CompareTarget::Mod as i32, Some(TargetUnion::ModRevision(0)))), then);
}
