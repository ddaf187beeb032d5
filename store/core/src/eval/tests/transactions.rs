//! Transactions (2.2, 2.7): which path, what it sees, what its headers say.

use super::script::check;

const AB: &str = "put a 1; put b 2";

#[test]
fn the_taken_branch_runs_and_the_other_is_not_looked_at() {
    check(
        AB,
        "txn { if mod(a)=2 then put a 9 else put a 8 lease=5 }",
        "write [a=9 c2 v2 over 2]: txn own then {put own}",
    );
    check(
        AB,
        "txn { if mod(a)=3 then put a 9 lease=5 else get a }",
        "read: txn before else {get before a=1[c2 m2 v1] of 1}",
    );
    check(AB, "txn { if mod(a)=3 then put a 9 }", "read: txn before else {}");
    check(AB, "txn { }", "read: txn before then {}");
}

#[test]
fn operations_see_what_earlier_ones_wrote() {
    check(
        AB,
        "txn { then put c 3 ; get .. ; del b ; get .. ; put a 7 prev ; get .. limit=1 }",
        "write [c=3 cown v1, -b over 3, a=7 c2 v2 over 2]: txn own then {put own; \
         get own a=1[c2 m2 v1] b=2[c3 m3 v1] c=3[cown mown v1] of 3; del own 1; \
         get own a=1[c2 m2 v1] c=3[cown mown v1] of 2; put own prev a=1[c2 m2 v1]; \
         get own a=7[c2 mown v2] of 2 more}",
    );
}

#[test]
fn an_explicit_revision_sees_nothing_of_the_transaction() {
    check(
        AB,
        "txn { then put a 7 ; del b ; get .. rev=3 ; get .. count }",
        "write [a=7 c2 v2 over 2, -b over 3]: txn own then {put own; del own 1; \
         get own a=1[c2 m2 v1] b=2[c3 m3 v1] of 2; get own of 1}",
    );
}

#[test]
fn headers_change_with_the_first_change() {
    check(
        AB,
        "txn { then get x ; del x ; del a ; del x ; get x }",
        "write [-a over 2]: txn own then {get before of 0; del before 0; del own 1; del own 0; get own of 0}",
    );
}

#[test]
fn compares_see_the_state_before_at_every_depth() {
    check(
        AB,
        "txn { then put a 5 ; txn { if val(a)=1 then put x 1 else put y 1 } ; txn { if val(a)=5 then put z 1 } }",
        "write [a=5 c2 v2 over 2, x=1 cown v1]: txn own then {put own; txn 0 then {put own}; txn 0 else {}}",
    );
    check(
        AB,
        "txn { if ver(q)=0 then put q 1 ; txn { if ver(q)=0 then txn { if ver(q)=0 then get q else del a } } else put w 1 }",
        "write [q=1 cown v1]: txn own then {put own; txn 0 then {txn 0 then {get own q=1[cown mown v1] of 1}}}",
    );
}

#[test]
fn every_operation_of_the_path_is_checked_on_the_state_before() {
    // The key is made earlier in the same transaction, and still missing in the state before.
    check(AB, "txn { then put n 1 ; put n ignore_value }", "fail 3: etcdserver: key not found");
    check(AB, "txn { then put x 1 ; txn { then put y ignore_value } }", "fail 3: etcdserver: key not found");
    check(AB, "txn { then put x 1 ; put y 1 lease=3 }", "fail 5: etcdserver: requested lease not found");
    // Puts come before ranges, wherever they stand.
    check(
        AB,
        "txn { then get a rev=99 ; txn { then put y 1 lease=3 } }",
        "fail 5: etcdserver: requested lease not found",
    );
    check(
        AB,
        "txn { then put x 1 ; txn { if ver(a)=0 then put y ignore_value } }",
        "write [x=1 cown v1]: txn own then {put own; txn 0 else {}}",
    );
}

#[test]
fn blind_spots_of_the_duplicate_rule_run_in_order() {
    check(
        AB,
        "txn { then txn { then put a 5 } ; txn { then del a prev } }",
        "write [a=5 c2 v2 over 2, -a over own]: txn own then {txn 0 then {put own}; txn 0 then {del own 1 a=5[c2 mown v2]}}",
    );
    check(
        AB,
        "txn { then del a.. ; put a 5 ; get .. }",
        "write [-a over 2, -b over 3, a=5 cown v1]: txn own then {del own 2; put own; get own a=5[cown mown v1] of 1}",
    );
    check(
        AB,
        "txn { then put n 1 ; del n.. ; get n ; put n 2 prev }",
        "write [n=1 cown v1, -n over own, n=2 cown v1]: txn own then {put own; del own 1; get own of 0; put own}",
    );
    check(
        AB,
        "txn { then put a 5 ; put a 6 prev }",
        "write [a=5 c2 v2 over 2, a=6 c2 v3 over own]: txn own then {put own; put own prev a=5[c2 mown v2]}",
    );
    // etcd panics here: the key was there when it was checked, and is gone when the put runs.
    check(AB, "txn { then del a.. ; put a ignore_value }", "fail 3: etcdserver: key not found");
}

#[test]
fn own_writes_sort_last_and_pass_filters_by_what_is_known() {
    check(
        AB,
        "txn { then put c 3 ; put a 4 ; get .. sort=mod:desc ; get .. sort=create:asc limit=2 ; get .. minmod=3 ; get .. maxmod=3 }",
        "write [c=3 cown v1, a=4 c2 v2 over 2]: txn own then {put own; put own; \
         get own a=4[c2 mown v2] c=3[cown mown v1] b=2[c3 m3 v1] of 3; \
         get own a=4[c2 mown v2] b=2[c3 m3 v1] of 3 more; \
         get own a=4[c2 mown v2] b=2[c3 m3 v1] c=3[cown mown v1] of 3; get own b=2[c3 m3 v1] of 3}",
    );
}
