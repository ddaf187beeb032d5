//! The overlay lies over the base: where both know a key, the overlay is right.

use std::ops::ControlFlow;

use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::Change;

use super::model::Model;
use super::*;
use crate::placeholder::{OWN, pending};

fn put(key: &str, supersedes: i64, value: &str) -> Change {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Change { key: user_key(key.as_bytes()), supersedes, create_revision: OWN, version: 1, value, ..Change::default() }
}

fn applied(key: &str, revision: i64, value: &str) -> Change {
    Change { create_revision: revision, ..put(key, 0, value) }
}

fn delete(key: &str, supersedes: i64) -> Change {
    Change { key: user_key(key.as_bytes()), supersedes, delete: true, ..Change::default() }
}

/// Base a b c d e; in flight: b deleted, c rewritten, bb and f created, x deleted (which the base never had).
fn with_view(check: impl FnOnce(&View<'_>)) {
    let mut base = Model::default();
    for (revision, key) in (2..).zip(["a", "b", "c", "d", "e"]) {
        base.apply(revision, &[applied(key, revision, "old")]);
    }
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[delete("b", 3), put("c", 4, "new")]);
    overlay.push(2, 10, &[put("bb", 0, "new"), put("f", 0, "new"), delete("x", 9)]);
    check(&View { overlay: &overlay, base: &base });
}

fn scanned(view: &View<'_>, range: &KeyRange, most: usize) -> String {
    let mut seen = Vec::new();
    view.scan(range, &mut |key, record| {
        seen.push(format!("{}={}", String::from_utf8_lossy(&key[1..]), String::from_utf8_lossy(&record.value)));
        if seen.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .unwrap();
    seen.join(" ")
}

#[test]
fn scans_merge_both_in_key_order_and_stop_when_told() {
    with_view(|view| {
        let all = KeyRange::user(b"\0", b"\0");
        let whole = ["a=old", "bb=new", "c=new", "d=old", "e=old", "f=new"];
        for most in 1..=whole.len() + 1 {
            assert_eq!(scanned(view, &all, most), whole[..most.min(whole.len())].join(" "));
        }
        assert_eq!(scanned(view, &KeyRange::user(b"b", b"c"), 9), "bb=new");
        assert_eq!(scanned(view, &KeyRange::user(b"f", b"\0"), 9), "f=new");
        assert_eq!(scanned(view, &KeyRange::user(b"c", b"b"), 9), "");
    });
}

#[test]
fn counts_and_gets_see_the_overlay() {
    with_view(|view| {
        let count = |key: &[u8], end: &[u8]| view.count(&KeyRange::user(key, end)).unwrap();
        assert_eq!(count(b"\0", b"\0"), 6);
        assert_eq!(count(b"b", b"c"), 1);
        assert_eq!(count(b"b", b""), 0);
        assert_eq!(count(b"c", b""), 1);
        assert_eq!(count(b"g", b"\0"), 0);
        assert_eq!(count(b"d", b"f"), 2);
        let modified = |key: &[u8]| view.find(&user_key(key)).unwrap().map(|found| found.record.mod_revision);
        assert_eq!([modified(b"b"), modified(b"c"), modified(b"d")], [None, Some(pending(1)), Some(5)]);
    });
}

#[test]
fn applied_and_not_yet_pruned_is_counted_once() {
    let mut base = Model::default();
    let mut overlay = Overlay::default();
    overlay.push(1, 1, &[put("a", 0, "v"), put("b", 0, "v")]);
    base.apply(2, &[applied("a", 2, "v"), applied("b", 2, "v")]);
    let view = View { overlay: &overlay, base: &base };
    assert_eq!(view.count(&KeyRange::user(b"a", b"c")), Ok(2));
    assert_eq!(scanned(&view, &KeyRange::user(b"a", b"c"), 9), "a=v b=v");
}
