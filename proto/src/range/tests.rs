use super::*;

/// key, version, create revision, mod revision, value
type Row = (&'static str, i64, i64, i64, &'static str);

const ROWS: [Row; 6] = [
    ("a", 3, 2, 9, "pear"),
    ("b", 1, 8, 8, "fig"),
    ("c", 2, 3, 7, "plum"),
    ("d", 1, 6, 6, "fig"),
    ("e", 1, 5, 5, "apple"),
    ("f", 4, 4, 12, ""),
];

fn kv((key, version, create_revision, mod_revision, value): Row) -> KeyValue {
    KeyValue { key: key.into(), version, create_revision, mod_revision, value: value.into(), lease: 7 }
}

fn request(order: SortOrder, target: SortTarget, limit: i64) -> RangeRequest {
    RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        sort_order: order as i32,
        sort_target: target as i32,
        limit,
        ..Default::default()
    }
}

/// What a region that holds `rows` answers.
fn region(request: &RangeRequest, rows: &[Row]) -> RangeResponse {
    let kvs: Vec<KeyValue> = rows.iter().copied().map(kv).collect();
    let fetched = match fetch(request) {
        Fetch::Nothing => Vec::new(),
        Fetch::First(first) => kvs.into_iter().take(first).collect(),
        Fetch::All => kvs,
    };
    finish(request, fetched, rows.len() as i64)
}

fn keys(answer: &RangeResponse) -> String {
    answer.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).expect("test keys are text")).collect()
}

/// `expect` is the keys in order, and `more`; `count` is always all six.
fn check(request: RangeRequest, expect: (&str, bool)) {
    let answer = region(&request, &ROWS);
    assert_eq!((keys(&answer).as_str(), answer.more, answer.count), (expect.0, expect.1, 6), "{request:?}");
}

use SortOrder::{Ascend, Descend, None as Unsorted};
use SortTarget::{Create, Key, Mod, Value, Version};

#[test]
fn limit_cuts_and_says_so() {
    check(request(Unsorted, Key, 0), ("abcdef", false));
    check(request(Unsorted, Key, -1), ("abcdef", false));
    check(request(Unsorted, Key, 1), ("a", true));
    check(request(Unsorted, Key, 5), ("abcde", true));
    check(request(Unsorted, Key, 6), ("abcdef", false));
    check(request(Unsorted, Key, 7), ("abcdef", false));
    check(request(Unsorted, Key, i64::MAX), ("abcdef", false));
}

#[test]
fn sorts_by_every_target() {
    check(request(Ascend, Key, 0), ("abcdef", false));
    check(request(Descend, Key, 0), ("fedcba", false));
    check(request(Ascend, Version, 0), ("bdecaf", false));
    check(request(Descend, Version, 0), ("facbde", false));
    check(request(Ascend, Create, 0), ("acfedb", false));
    check(request(Descend, Create, 0), ("bdefca", false));
    check(request(Ascend, Mod, 0), ("edcbaf", false));
    check(request(Descend, Mod, 0), ("fabcde", false));
    check(request(Ascend, Value, 0), ("febdac", false));
    check(request(Descend, Value, 0), ("cabdef", false));
}

#[test]
fn sorts_before_it_cuts_if_an_order_is_named() {
    check(request(Descend, Key, 2), ("fe", true));
    check(request(Ascend, Key, 2), ("ab", true));
    check(request(Ascend, Create, 3), ("acf", true));
    check(request(Descend, Create, 1), ("b", true));
    check(request(Ascend, Value, 1), ("f", true));
}

#[test]
fn an_unnamed_order_sorts_ascending_by_another_target() {
    check(request(Unsorted, Mod, 0), ("edcbaf", false));
    check(request(Unsorted, Version, 0), ("bdecaf", false));
}

#[test]
fn an_unnamed_order_with_a_limit_sorts_only_the_first_keys() {
    // a, b, c are read; by create revision that is a, c, b; then two are kept.
    check(request(Unsorted, Create, 2), ("ac", true));
    check(request(Unsorted, Mod, 1), ("b", true));
    check(request(Unsorted, Value, 2), ("ba", true));
}

#[test]
fn a_filter_makes_the_whole_range_read_and_sorted() {
    let filtered = RangeRequest { min_mod_revision: 1, ..request(Unsorted, Mod, 1) };
    assert_eq!(fetch(&filtered), Fetch::All);
    check(filtered, ("e", true));
}

#[test]
fn filters_are_inclusive_and_leave_the_count_alone() {
    let all = request(Unsorted, Key, 0);
    check(RangeRequest { min_mod_revision: 8, ..all.clone() }, ("abf", false));
    check(RangeRequest { max_mod_revision: 8, ..all.clone() }, ("bcde", false));
    check(RangeRequest { min_create_revision: 5, ..all.clone() }, ("bde", false));
    check(RangeRequest { max_create_revision: 4, ..all.clone() }, ("acf", false));
    check(RangeRequest { min_mod_revision: 6, max_mod_revision: 8, ..all.clone() }, ("bcd", false));
    check(RangeRequest { min_mod_revision: 6, max_create_revision: 3, ..all.clone() }, ("ac", false));
    check(RangeRequest { max_mod_revision: -1, ..all.clone() }, ("", false));
    check(RangeRequest { min_mod_revision: -1, ..all }, ("abcdef", false));
}

#[test]
fn filters_come_before_the_limit() {
    check(RangeRequest { max_mod_revision: 8, ..request(Unsorted, Key, 2) }, ("bc", true));
    check(RangeRequest { max_mod_revision: 8, ..request(Unsorted, Key, 4) }, ("bcde", false));
    check(RangeRequest { max_mod_revision: 8, ..request(Descend, Key, 2) }, ("ed", true));
}

#[test]
fn keys_only_keeps_everything_but_the_value() {
    let answer = region(&RangeRequest { keys_only: true, ..request(Unsorted, Key, 1) }, &ROWS);
    assert_eq!(answer.kvs, [KeyValue { value: "".into(), ..kv(ROWS[0]) }]);
    let sorted = RangeRequest { keys_only: true, ..request(Ascend, Value, 2) };
    assert!(needs_values(&sorted));
    check(sorted, ("fe", true));
    assert!(!needs_values(&RangeRequest { keys_only: true, ..request(Ascend, Mod, 2) }));
}

#[test]
fn count_only_has_no_keys_and_never_more() {
    for limit in [0, 1, 9] {
        let request = RangeRequest { count_only: true, max_mod_revision: 6, ..request(Descend, Value, limit) };
        assert_eq!(region(&request, &ROWS), RangeResponse { count: 6, ..Default::default() });
        assert_eq!(fetch(&request), Fetch::Nothing);
        assert!(!needs_values(&request));
    }
}

/// Every way to cut six keys into up to three regions, every order, target, limit and a few filters: many regions
/// answer what one would.
#[test]
fn many_regions_answer_what_one_would() {
    let mut requests = Vec::new();
    for order in [Unsorted, Ascend, Descend] {
        for target in [Key, Version, Create, Mod, Value] {
            for limit in [0, 1, 2, 3, 5, 6, 7, i64::MAX] {
                let plain = request(order, target, limit);
                requests.push(RangeRequest { keys_only: true, ..plain.clone() });
                requests.push(RangeRequest { count_only: true, ..plain.clone() });
                requests.push(RangeRequest { min_mod_revision: 7, ..plain.clone() });
                requests.push(RangeRequest { max_mod_revision: 8, keys_only: true, ..plain.clone() });
                requests.push(RangeRequest { max_create_revision: 1, ..plain.clone() });
                requests.push(plain);
            }
        }
    }
    for request in requests {
        let part = for_each_region(&request);
        assert_eq!(for_each_region(&part), part, "asking for a part of a part changes nothing");
        let expect = region(&request, &ROWS);
        for first in 0..=ROWS.len() {
            for second in first..=ROWS.len() {
                let parts = [&ROWS[..first], &ROWS[first..second], &ROWS[second..]];
                let answers = parts.map(|rows| region(&part, rows));
                assert_eq!(merge(&request, answers), expect, "{request:?} cut at {first}, {second}");
                let [left, middle, right] = parts.map(|rows| region(&part, rows));
                let nested = merge(&part, [middle, right]);
                assert_eq!(merge(&request, [left, nested]), expect, "{request:?} nested at {first}, {second}");
            }
        }
    }
}
