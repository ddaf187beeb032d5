use braid_proto::etcd::etcdserverpb::ResponseHeader;

use super::*;

const KEYS: usize = 10;
const PAGE: i64 = 4;
const REVISION: i64 = 50;

fn expected() -> Expected {
    Expected::new(Dataset::new(9), KEYS as u64, 1)
}

/// The pages of a server that does everything right.
fn pages(expected: &Expected) -> Vec<RangeResponse> {
    let kv = |place| KeyValue {
        key: Bytes::copy_from_slice(expected.key_at(place)),
        value: expected.value_at(place),
        create_revision: 2 + place as i64,
        mod_revision: 2 + place as i64,
        version: 1,
        lease: 0,
    };
    let header = |revision| Some(ResponseHeader { revision, ..ResponseHeader::default() });
    let page = |from: usize| {
        let to = (from + PAGE as usize).min(KEYS);
        RangeResponse {
            // Others write meanwhile: later headers are higher.
            header: header(REVISION + from as i64),
            kvs: (from..to).map(kv).collect(),
            more: to < KEYS,
            count: (KEYS - from) as i64,
        }
    };
    (0..KEYS).step_by(PAGE as usize).map(page).collect()
}

/// Runs the comparison on pages that `damage` has changed; gives the problems.
fn check(damage: impl FnOnce(&mut Vec<RangeResponse>)) -> Vec<String> {
    let expected = expected();
    let mut pages = pages(&expected);
    damage(&mut pages);
    let mut comparison = Comparison::new(&expected, PAGE);
    pages.iter().for_each(|page| comparison.check_page(page));
    let verified = comparison.finish(KEYS as i64);
    assert_eq!(verified.problems as usize, verified.first_problems.len());
    verified.first_problems
}

/// Asserts that there is exactly one problem, and that it says `want`.
fn check_one(want: &str, damage: impl FnOnce(&mut Vec<RangeResponse>)) {
    let problems = check(damage);
    assert!(problems.len() == 1 && problems[0].contains(want), "wanted one {want:?}, got {problems:#?}");
}

#[test]
fn keys_are_expected_in_key_order() {
    let expected = expected();
    assert!((1..KEYS).all(|place| expected.key_at(place - 1) < expected.key_at(place)));
}

#[test]
fn right_pages_have_no_problem() {
    assert_eq!(check(|_| ()), Vec::<String>::new());
}

#[test]
fn a_changed_value_is_found() {
    check_one("value", |pages| pages[1].kvs[2].value = Bytes::from_static(b"other"));
}

#[test]
fn a_revision_used_twice_is_found() {
    check_one("used twice", |pages| {
        (pages[2].kvs[0].mod_revision, pages[2].kvs[0].create_revision) = (2, 2);
    });
}

#[test]
fn a_missing_key_is_found() {
    let problems = check(|pages| drop(pages[1].kvs.remove(0)));
    assert!(problems.iter().any(|text| text.contains("is missing")), "{problems:#?}");
}

#[test]
fn a_key_that_was_never_loaded_is_found() {
    let problems = check(|pages| pages[0].kvs[1].key = Bytes::from_static(b"/registry/a/b/c"));
    assert!(problems.iter().any(|text| text.contains("never loaded")), "{problems:#?}");
}

#[test]
fn keys_out_of_order_are_found() {
    let problems = check(|pages| pages[0].kvs.swap(1, 2));
    assert!(problems.iter().any(|text| text.contains("comes after")), "{problems:#?}");
}

#[test]
fn a_page_cut_short_is_found() {
    let problems = check(|pages| pages.truncate(2));
    assert_eq!(problems.iter().filter(|text| text.contains("is missing")).count(), 2, "{problems:#?}");
}

#[test]
fn a_wrong_count_is_found() {
    let problems = check(|pages| pages[1].count += 1);
    assert!(problems.iter().any(|text| text.contains("the page before left")), "{problems:#?}");
    let expected = expected();
    let verified = Comparison::new(&Expected::new(Dataset::new(9), 0, 1), PAGE).finish(expected.len() as i64);
    assert_eq!(verified.problems, 1, "the final count is not compared");
}

#[test]
fn a_wrong_more_is_found() {
    check_one("do not agree", |pages| pages[2].more = true);
    check_one("do not agree", |pages| pages[0].more = false);
}

#[test]
fn a_header_that_goes_back_is_found() {
    check_one("header revision", |pages| pages[1].header.as_mut().unwrap().revision = REVISION - 1);
}

#[test]
fn impossible_revisions_of_a_key_are_found() {
    check_one("version 0", |pages| pages[0].kvs[0].version = 0);
    check_one("mod 51", |pages| {
        pages[0].kvs[3].mod_revision = REVISION + 1;
        pages[0].kvs[3].version = 2;
    });
    check_one("lease 7", |pages| pages[2].kvs[1].lease = 7);
}
