//! Puts (2.3, 2.7).

use super::script::check;
use crate::eval::tests::script::request;

#[test]
fn a_put_creates_or_updates_one_life_of_a_key() {
    check("", "put a 1", "write [a=1 cown v1]: put own");
    check("put a 1", "put a 2", "write [a=2 c2 v2 over 2]: put own");
    check("put a 1; put a 2; put b 1", "put a 3", "write [a=3 c2 v3 over 3]: put own");
    check("put a 1; del a", "put a 2", "write [a=2 cown v1]: put own");
    check("put a 1", "put a 1", "write [a=1 c2 v2 over 2]: put own");
    check("", "put a", "write [a= cown v1]: put own");
}

#[test]
fn prev_kv_is_what_was_there() {
    check("", "put a 1 prev", "write [a=1 cown v1]: put own");
    check("put a 1", "put a 2 prev", "write [a=2 c2 v2 over 2]: put own prev a=1[c2 m2 v1]");
    check("put a 1; del a", "put a 2 prev", "write [a=2 cown v1]: put own");
    check("put a 1 lease=7", "put a 2 prev", "write [a=2 c2 v2 over 2]: put own prev a=1[c2 m2 v1 l7]");
}

#[test]
fn ignore_value_and_ignore_lease_keep_theirs_and_need_the_key() {
    check("put a 1 lease=7", "put a ignore_value", "write [a=1 c2 v2 over 2]: put own");
    check("put a 1 lease=7", "put a 2 ignore_lease", "write [a=2 c2 v2 lease 7 over 2]: put own");
    check("put a 1 lease=7", "put a ignore_value ignore_lease", "write [a=1 c2 v2 lease 7 over 2]: put own");
    check("", "put a ignore_value", "fail 3: etcdserver: key not found");
    check("put a 1; del a", "put a 2 ignore_lease", "fail 3: etcdserver: key not found");
}

#[test]
fn a_lease_that_does_not_exist_is_refused_before_the_key_is_looked_at() {
    check("put a 1", "put a 2 lease=5", "fail 5: etcdserver: requested lease not found");
    check("", "put a ignore_value lease=5", "fail 5: etcdserver: requested lease not found");
    check("put a 1 lease=7", "put a 2", "write [a=2 c2 v2 over 2]: put own");
}

#[test]
fn a_lease_that_is_attached_is_put_and_one_of_which_nothing_is_known_is_waited_for() {
    check("put a 1", "put a 2 lease=1", "write [a=2 c2 v2 lease 1 over 2]: put own");
    check("put a 1", "put a 2 lease=7", "wait for lease 7");
    check("", "txn { then put a 1 lease=1 ; put b 1 lease=7 }", "wait for lease 7");
    check("", "txn { if ver(a)=1 then put a 1 lease=7 else get a }", "read: txn before else {get before of 0}");
}

#[test]
fn puts_are_found_in_any_branch() {
    for (text, puts) in [
        ("put a 1", true),
        ("del a", false),
        ("txn { then get a ; del b else get c }", false),
        ("txn { then get a else put c 1 }", true),
        ("txn { then txn { then txn { else put a 1 } } }", true),
    ] {
        assert_eq!(request(text).puts(), puts, "{text}");
    }
}
