//! What is in flight: seen by later evaluations, with revisions that are not known yet (rules O4, O5).

use super::script::{State, check, check_in, request};
use crate::eval::{Context, Evaluated, fill, fill_changes};
use crate::placeholder::pending;

#[test]
fn a_later_write_rests_on_the_one_in_flight() {
    check("| put a 1", "put a 2 prev", "write [a=2 c?1 v2 over ?1]: put own prev a=1[c?1 m?1 v1] (rests on 1)");
    check("put a 1 | put a 2; put a 3", "put a 4", "write [a=4 c2 v4 over ?2]: put own (rests on 2)");
    check("put a 1 | del a", "put a 2", "write [a=2 cown v1]: put own (rests on 1)");
    check("put a 1 | del a", "del a", "read: del before 0 (rests on 1)");
    check("| put a 1; put b 1; #1 @9", "del ..", "write [-a over 9, -b over ?2]: del own 2 (rests on 2)");
    check("put a 1 | put b 1", "put a 2", "write [a=2 c2 v2 over 2]: put own");
}

#[test]
fn failures_and_reads_rest_on_what_they_saw() {
    check("put a 1 | del a", "put a ignore_value", "fail 3: etcdserver: key not found (rests on 1)");
    check("put a 1 | put a 2", "txn { if val(a)=1 then put b 1 }", "read: txn before else {} (rests on 1)");
    check(
        "put a 1 | put b 2; put c 3",
        "get .. limit=1",
        "read: txn before then {get before a=1[c2 m2 v1] of 3 more} (rests on 2)",
    );
    check("put a 1 | put b 2; put c 3", "get a..b", "read: txn before then {get before a=1[c2 m2 v1] of 1}");
    check("put a 1 | del a; put c 3", "get .. count", "read: txn before then {get before of 1} (rests on 2)");
    check(
        "put a 1 | del a",
        "txn { if ver(..)=0 then get a count }",
        "read: txn before then {get before of 0} (rests on 1)",
    );
}

#[test]
fn a_compare_is_decided_where_the_floor_decides() {
    // Pushed when @2 was the newest revision heard of: its number is greater than 2.
    let in_flight = "put a 1 | put a 2";
    for (compare, taken) in [
        ("mod(a)=2", "else"),
        ("mod(a)!=2", "then"),
        ("mod(a)>2", "then"),
        ("mod(a)<2", "else"),
        ("mod(a)>-5", "then"),
        ("mod(a)=9223372036854775807", "else"),
        ("mod(a)<9007199254740991", "then"),
        ("create(a)=2", "then"),
        ("ver(a)=2", "then"),
    ] {
        check(in_flight, &format!("txn {{ if {compare} }}"), &format!("read: txn before {taken} {{}} (rests on 1)"));
    }
    for compare in ["mod(a)=3", "mod(a)!=3", "mod(a)>3", "mod(a)<500"] {
        check(in_flight, &format!("txn {{ if {compare} }}"), "wait for number 1");
    }
    check("put a 1 | put a 2; #1 @7", "txn { if mod(a)<500 }", "read: txn before then {} (rests on 1)");
    check("| put a 1; put a 2; put b 1", "txn { if create(a)>9 }", "wait for number 1");
}

#[test]
fn what_was_heard_later_does_not_raise_the_floor() {
    // Its number may have been given out before 100 was heard of: 3 or 99, for all one knows.
    let state = State::parse("put a 1 | put a 2");
    let context = Context { heard: 100, heard_is_fresh: true, ..Context::default() };
    check_in(&state, "txn { if mod(a)>50 }", &context, "wait for number 1");
    check_in(&state, "get a minmod=50", &context, "wait for number 1");
    check_in(&state, "get a minmod=2", &context, "read: txn before then {get before a=2[c2 m?1 v2] of 1} (rests on 1)");
}

#[test]
fn a_definite_no_decides_and_otherwise_the_latest_number_is_awaited() {
    let state = "put x 1 | put a 1; put b 1; put x 2";
    check(state, "txn { if mod(a)=9 val(x)=1 }", "read: txn before else {} (rests on 3)");
    check(state, "txn { if mod(b)=9 mod(a)=9 ver(x)=2 }", "wait for number 2");
    check(state, "txn { if mod(a..c)>9 }", "wait for number 2");
    check(state, "txn { if mod(a..c)>1 }", "read: txn before then {} (rests on 2)");
}

#[test]
fn filters_wait_where_the_number_decides() {
    let state = "put a 1; put b 1 | put b 2";
    check(state, "get .. minmod=3", "read: txn before then {get before b=2[c3 m?1 v2] of 2} (rests on 1)");
    check(state, "get .. maxmod=3", "read: txn before then {get before a=1[c2 m2 v1] of 2} (rests on 1)");
    check(state, "get .. maxmod=4", "wait for number 1");
    check(
        state,
        "get .. maxcreate=3",
        "read: txn before then {get before a=1[c2 m2 v1] b=2[c3 m?1 v2] of 2} (rests on 1)",
    );
    check(
        state,
        "get .. maxmod=9223372036854775807 limit=1",
        "read: txn before then {get before a=1[c2 m2 v1] of 2 more} (rests on 1)",
    );
    check(state, "get .. minmod=9223372036854775807", "read: txn before then {get before of 2} (rests on 1)");
    // A definite no of another filter decides first.
    check("put a 1 | put a 2", "get a maxcreate=1 maxmod=1", "read: txn before then {get before of 1} (rests on 1)");
}

#[test]
fn orders_by_revision_wait_only_against_what_was_heard_later() {
    check(
        "put a 1; put b 1 | put c 1; put a 2",
        "get .. sort=mod:asc",
        "read: txn before then {get before b=1[c3 m3 v1] c=1[c?1 m?1 v1] a=2[c2 m?2 v2] of 3} (rests on 2)",
    );
    check(
        "put a 1; put b 1 | put c 1; put a 2",
        "get .. sort=create:desc limit=1",
        "read: txn before then {get before c=1[c?1 m?1 v1] of 3 more} (rests on 2)",
    );
    // 9 was heard of after the second was pushed: is its number 8 or 10?
    check("put a 1 | put b 1; put c 1; #1 @9", "get .. sort=mod:asc", "wait for number 2");
    check(
        "put a 1 | put b 1; put c 1; #1 @9",
        "get .. sort=mod:asc keys limit=5 maxmod=1",
        "read: txn before then {get before of 3} (rests on 2)",
    );
    check(
        "put a 1 | put b 1; put c 1; #1 @9",
        "get .. sort=val:desc limit=1",
        "read: txn before then {get before a=1[c2 m2 v1] of 3 more} (rests on 2)",
    );
}

#[test]
fn own_numbers_cannot_be_waited_for() {
    let state = State::parse("put a 1");
    let stale = Context { heard: 2, ..Context::default() };
    let fresh = Context { heard_is_fresh: true, heard: 40, ..stale };
    let text = "txn { then put a 2 ; get a minmod=41 }";
    check_in(&state, text, &stale, "wait for a bound");
    check_in(&state, text, &fresh, "fail 11: etcdserver: mvcc: required revision is a future revision");
    check_in(
        &state,
        "txn { then put a 2 ; get a minmod=40 }",
        &fresh,
        "write [a=2 c2 v2 over 2]: txn own then {put own; get own a=2[c2 mown v2] of 1}",
    );
}

#[test]
fn explicit_revisions_wait_for_what_may_lie_below() {
    let heard = Context { heard: 100, heard_is_fresh: true, ..Context::default() };
    let state = State::parse("put a 1 | put a 2; put b 1; put c 1; #1 @50; #2 @60");
    check_in(&state, "get a rev=49", &heard, "read: txn before then {get before a=1[c2 m2 v1] of 1}");
    check_in(&state, "get a rev=50", &heard, "wait until 1 is applied");
    check_in(&state, "get a..c rev=70", &heard, "wait until 2 is applied");
    check_in(&state, "get a..c rev=55", &heard, "wait until 1 is applied");
    check_in(&state, "get .. rev=2", &heard, "wait until 3 is applied");
    check_in(&state, "get d.. rev=100", &heard, "read: txn before then {get before of 0}");
}

#[test]
fn filling_replaces_every_placeholder() {
    let state = State::parse("put a 1 | put a 2; put b 1");
    let text = "txn { then get .. ; del b prev ; put a 3 prev ; put n 1 ; txn { then get n.. } ; get x }";
    let outcome = state.evaluate(&request(text), &Context { heard: 2, ..Context::default() });
    let Evaluated::Write { mut changes, mut response, rests_on } = outcome else { panic!("{outcome:?}") };
    let lookup = |seq| 10 * seq as i64;
    fill(&mut response, &lookup, Some(31), 30);
    fill_changes(&mut changes, &lookup, 31);
    let filled = Evaluated::Write { changes, response, rests_on };
    assert_eq!(
        super::script::shown(&filled),
        "write [-b over 20, a=3 c2 v3 over 10, n=1 c31 v1]: txn 31 then {\
         get 30 a=2[c2 m10 v2] b=1[c20 m20 v1] of 2; del 31 1 b=1[c20 m20 v1]; put 31 prev a=2[c2 m10 v2]; put 31; \
         txn 0 then {get 31 n=1[c31 m31 v1] of 1}; get 31 of 0} (rests on 2)"
    );
    assert_eq!(pending(1), i64::MAX / 2 + 2);
}

#[test]
#[should_panic(expected = "without a number wrote a record")]
fn a_bound_never_fills_an_own_number() {
    let state = State::parse("");
    let Evaluated::Write { mut response, .. } = state.evaluate(&request("put a 1"), &Context::default()) else {
        panic!("a put writes")
    };
    fill(&mut response, &|_| 0, None, 5);
}
