//! Scripts on one overlay. A line is a call; what follows `=>` is what the overlay holds or answers after it.

use braid_proto::key::user_key;

use super::*;

fn put(key: &str, create_revision: i64) -> Change {
    Change { key: user_key(key.as_bytes()), create_revision, version: 1, ..Change::default() }
}

fn delete(key: &str) -> Change {
    Change { key: user_key(key.as_bytes()), delete: true, ..Change::default() }
}

fn range(text: &str) -> KeyRange {
    match text.split_once("..") {
        Some((start, end)) => KeyRange::user(start.as_bytes(), end.as_bytes()),
        None => KeyRange::user(text.as_bytes(), b""),
    }
}

/// `key:seq@revision,created` of the newest versions, with `?seq` for a placeholder and `-` for a deleted key.
fn shown(overlay: &Overlay) -> String {
    let number = |revision: i64| match revision {
        PENDING.. => format!("?{}", revision - PENDING),
        known => known.to_string(),
    };
    let all = KeyRange::user(b"\0", b"\0");
    let versions = overlay.range(&all).map(|(key, version)| {
        let created = version.record.as_ref().map_or("-".to_owned(), |record| {
            assert_eq!(record.mod_revision, version.revision);
            number(record.create_revision)
        });
        let key = String::from_utf8_lossy(&key[1..]);
        format!("{key}:{}@{},{created}", version.seq, number(version.revision))
    });
    versions.collect::<Vec<_>>().join(" ")
}

#[test]
fn numbers_reach_every_version_of_the_life_they_began() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN), put("b", 7)]);
    overlay.push(2, 10, &[put("a", pending(1))]);
    overlay.push(4, 10, &[put("a", pending(1)), put("b", 7)]);
    assert_eq!(shown(&overlay), "a:4@?4,?1 b:4@?4,7");
    overlay.resolve(1, 11);
    assert_eq!(shown(&overlay), "a:4@?4,11 b:4@?4,7");
    overlay.prune(1);
    overlay.resolve(2, 15);
    overlay.resolve(4, 16);
    assert_eq!(shown(&overlay), "a:4@16,11 b:4@16,7");
    overlay.prune(4);
    assert_eq!(shown(&overlay), "");
    assert!(overlay.is_empty());
}

#[test]
fn a_life_that_ends_in_flight_keeps_its_number_to_itself() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN)]);
    overlay.push(2, 10, &[delete("a")]);
    overlay.push(3, 10, &[put("a", OWN)]);
    overlay.push(4, 10, &[put("a", pending(3))]);
    overlay.resolve(1, 11);
    overlay.resolve(2, 12);
    assert_eq!(shown(&overlay), "a:4@?4,?3");
    overlay.resolve(3, 13);
    assert_eq!(shown(&overlay), "a:4@?4,13");
}

#[test]
fn two_changes_of_one_write_leave_the_last() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", 3), delete("a"), put("b", OWN), delete("b"), put("b", OWN)]);
    assert_eq!(shown(&overlay), "a:1@?1,- b:1@?1,?1");
    overlay.resolve(1, 20);
    assert_eq!(shown(&overlay), "a:1@20,- b:1@20,20");
    overlay.prune(1);
    assert_eq!(shown(&overlay), "");
}

#[test]
fn truncation_brings_back_what_was_before() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN)]);
    overlay.push(2, 10, &[put("a", pending(1)), put("b", OWN)]);
    overlay.push(3, 10, &[delete("a")]);
    overlay.truncate(2);
    assert_eq!(shown(&overlay), "a:1@?1,?1");
    overlay.push(5, 10, &[delete("a")]);
    assert_eq!(shown(&overlay), "a:5@?5,-");
    overlay.truncate(0);
    assert!(overlay.is_empty() && overlay.newest(&user_key(b"a")).is_none());
}

#[test]
fn ranges_are_touched_by_the_newest_write_in_them() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN), put("c", OWN)]);
    overlay.push(2, 10, &[delete("b")]);
    overlay.push(3, 10, &[put("d", OWN)]);
    for (text, seq) in [
        ("a", Some(1)),
        ("b", Some(2)),
        ("aa", None),
        ("a..d", Some(2)),
        ("c..d", Some(1)),
        ("a..\0", Some(3)),
        ("d..a", None),
    ] {
        assert_eq!(overlay.touches(&range(text)), seq, "{text}");
    }
}

#[test]
fn a_read_at_a_revision_waits_for_what_may_lie_at_or_below_it() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN)]);
    overlay.push(2, 10, &[put("a", pending(1)), put("b", OWN)]);
    overlay.push(3, 10, &[put("a", pending(1))]);
    assert_eq!(overlay.touches_at(&range("a..c"), 1), Some(3), "unknown numbers may be anything");
    overlay.resolve(1, 11);
    overlay.resolve(2, 15);
    overlay.resolve(3, 18);
    for (revision, seq) in
        [(10, None), (11, Some(1)), (14, Some(1)), (15, Some(2)), (17, Some(2)), (18, Some(3)), (99, Some(3))]
    {
        assert_eq!(overlay.touches_at(&range("a..c"), revision), seq, "at {revision}");
    }
    assert_eq!(overlay.touches_at(&range("b"), 14), None);
    overlay.push(4, 20, &[put("c", OWN)]);
    assert_eq!(overlay.touches_at(&range("a..c"), 15), Some(2), "c is not in the range");
    assert_eq!(overlay.touches_at(&range("a..d"), 15), Some(4));
}

#[test]
fn the_floor_is_what_was_heard_when_the_write_was_pushed() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN)]);
    overlay.push(5, 30, &[put("b", OWN)]);
    assert_eq!((overlay.floor(1), overlay.floor(5)), (10, 30));
}

#[test]
fn a_hot_key_costs_no_more_than_its_versions() {
    let mut overlay = Overlay::default();
    for seq in 1..=20_000 {
        overlay.push(seq, 1, &[put("a", pending(1))]);
    }
    for seq in 1..=20_000 {
        overlay.resolve(seq, 1 + seq as i64);
    }
    overlay.prune(10_000);
    assert_eq!(shown(&overlay), "a:20000@20001,2");
    overlay.truncate(15_000);
    assert_eq!(overlay.newest(&user_key(b"a")).unwrap().seq, 14_999);
    overlay.prune(20_000);
    assert!(overlay.is_empty());
}

#[test]
#[should_panic(expected = "applied without a number")]
fn nothing_is_applied_without_a_number() {
    let mut overlay = Overlay::default();
    overlay.push(1, 10, &[put("a", OWN)]);
    overlay.prune(1);
}

#[test]
#[should_panic(expected = "comes after")]
fn writes_come_in_order() {
    let mut overlay = Overlay::default();
    overlay.push(2, 10, &[put("a", OWN)]);
    overlay.push(2, 10, &[put("b", OWN)]);
}
