//! Ranges inside a transaction (2.5, 2.7). Order, limit and filters have their own tests where they are made.

use super::script::{State, check, check_in};
use crate::eval::Context;

/// a @2 @5, b @3, c @4, d deleted @7.
const STATE: &str = "put a 1; put b 2; put c 3; put a 4; put d 5; del d";

#[test]
fn ranges_show_what_is_live_and_count_it_all() {
    check(STATE, "get b", "read: txn before then {get before b=2[c3 m3 v1] of 1}");
    check(STATE, "get d", "read: txn before then {get before of 0}");
    check(STATE, "get .. limit=2", "read: txn before then {get before a=4[c2 m5 v2] b=2[c3 m3 v1] of 3 more}");
    check(
        STATE,
        "get .. limit=3 keys",
        "read: txn before then {get before a=[c2 m5 v2] b=[c3 m3 v1] c=[c4 m4 v1] of 3}",
    );
    check(STATE, "get .. count", "read: txn before then {get before of 3}");
    check(STATE, "get b count", "read: txn before then {get before of 1}");
    check(STATE, "get c..b", "read: txn before then {get before of 0}");
    check(STATE, "get .. sort=mod:desc limit=1", "read: txn before then {get before a=4[c2 m5 v2] of 3 more}");
    check(STATE, "get .. maxmod=4 mincreate=3", "read: txn before then {get before b=2[c3 m3 v1] c=3[c4 m4 v1] of 3}");
    check(STATE, "get a maxmod=4", "read: txn before then {get before of 1}");
}

#[test]
fn an_explicit_revision_shows_that_moment() {
    check(STATE, "get .. rev=4", "read: txn before then {get before a=1[c2 m2 v1] b=2[c3 m3 v1] c=3[c4 m4 v1] of 3}");
    check(STATE, "get .. rev=6 limit=1", "read: txn before then {get before a=4[c2 m5 v2] of 4 more}");
    check(STATE, "get .. rev=6 count", "read: txn before then {get before of 4}");
    check(STATE, "get d rev=6", "read: txn before then {get before d=5[c6 m6 v1] of 1}");
    check(STATE, "get a rev=1", "read: txn before then {get before of 0}");
}

#[test]
fn revisions_above_the_counter_are_the_future_once_it_was_asked_for() {
    let state = State::parse(STATE);
    let stale = Context { heard: 7, ..Context::default() };
    let fresh = Context { heard_is_fresh: true, ..stale };
    check_in(&state, "get a rev=7", &stale, "wait for a bound");
    check_in(&state, "get a rev=7", &fresh, "read: txn before then {get before a=4[c2 m5 v2] of 1}");
    check_in(&state, "get a rev=8", &stale, "wait for a bound");
    check_in(&state, "get a rev=8", &fresh, "fail 11: etcdserver: mvcc: required revision is a future revision");
    check_in(
        &state,
        "txn { then put x 1 ; get a rev=8 }",
        &fresh,
        "fail 11: etcdserver: mvcc: required revision is a future revision",
    );
    check_in(
        &state,
        "txn { then put x 1 ; get a else get a rev=8 }",
        &fresh,
        "write [x=1 cown v1]: txn own then {put own; get own a=4[c2 m5 v2] of 1}",
    );
}

#[test]
fn revisions_below_the_boundary_are_compacted_negative_ones_too() {
    let state = State::parse(STATE);
    let context = |compacted| Context { heard: 7, heard_is_fresh: true, compacted, ..Context::default() };
    let compacted = "fail 11: etcdserver: mvcc: required revision has been compacted";
    check_in(&state, "get a rev=4", &context(5), compacted);
    check_in(&state, "get a rev=5", &context(5), "read: txn before then {get before a=4[c2 m5 v2] of 1}");
    check_in(&state, "get a rev=-1", &context(5), compacted);
    check_in(&state, "txn { then put x 1 ; get a rev=4 }", &context(5), compacted);
    // Nothing compacted yet: the boundary is -1.
    check_in(&state, "get a rev=-1", &context(0), "read: txn before then {get before a=4[c2 m5 v2] of 1}");
    check_in(&state, "get a rev=-2", &context(0), compacted);
    // What is compacted stays so; whether more is takes a bound to say.
    let stale = Context { heard_is_fresh: false, ..context(5) };
    check_in(&state, "get a rev=4", &stale, compacted);
    check_in(&state, "get a rev=5", &stale, "wait for a bound");
    check_in(&state, "get a rev=1", &context(0), "read: txn before then {get before of 0}");
}
