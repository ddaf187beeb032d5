//! Ends, renewals and what is taken back, on the table alone.

use super::*;

const SECOND: u64 = 1_000;
const NOBODY: [i64; 0] = [];

fn row(ttl: i64) -> StoredLease {
    StoredLease { ttl, ..StoredLease::default() }
}

/// A table with lease `id` of `ttl` seconds, granted and applied at `now` by item 1.
fn granted(id: i64, ttl: i64, now: u64) -> LeaseTable {
    let mut table = LeaseTable::default();
    table.set(1, id, Some(row(ttl)), Became::Granted);
    assert_eq!(table.applied(1, now), [(id, Became::Granted)]);
    table
}

#[test]
fn a_lease_ends_when_its_time_is_over_and_no_moment_earlier() {
    let mut table = granted(7, 5, 1_000);
    assert_eq!(table.take_due(1_000 + 5 * SECOND - 1), NOBODY);
    assert_eq!(table.take_due(1_000 + 5 * SECOND), [7]);
    assert_eq!(table.take_due(1_000 + 5 * SECOND), NOBODY, "taken up once");
    assert_eq!(table.keep(7, 1_000 + 5 * SECOND), Keep::Wait);
}

#[test]
fn a_keep_alive_begins_its_time_anew() {
    let mut table = granted(7, 5, 0);
    assert_eq!(table.keep(7, 4 * SECOND), Keep::Alive(5));
    assert_eq!(table.take_due(9 * SECOND - 1), NOBODY);
    assert_eq!(table.keep(7, 9 * SECOND), Keep::Wait, "too late, although nobody has taken it up yet");
    assert_eq!(table.take_due(9 * SECOND), [7]);
}

#[test]
fn a_grant_that_is_not_applied_promises_nothing_and_never_ends() {
    let mut table = LeaseTable::default();
    table.set(1, 7, Some(row(2)), Became::Granted);
    assert_eq!(table.keep(7, 0), Keep::Gone);
    assert_eq!(table.take_due(u64::MAX), NOBODY);
    table.truncate(1);
    assert!(table.is_empty());
}

#[test]
fn an_end_that_is_taken_back_comes_again() {
    let mut table = granted(7, 5, 0);
    assert_eq!(table.take_due(5 * SECOND), [7]);
    table.set(2, 7, None, Became::Gone(None));
    assert_eq!(table.keep(7, 5 * SECOND), Keep::Wait, "nobody knows yet");
    assert_eq!(table.truncate(2), [7]);
    assert_eq!(table.take_due(5 * SECOND), [7]);
    table.set(3, 7, None, Became::Gone(None));
    assert_eq!(table.applied(3, 6 * SECOND), [(7, Became::Gone(None))]);
    assert_eq!(table.keep(7, 6 * SECOND), Keep::Gone);
}

#[test]
fn a_revocation_that_is_taken_back_leaves_the_lease_its_time() {
    let mut table = granted(7, 60, 0);
    table.set(2, 7, None, Became::Gone(None));
    assert_eq!(table.truncate(2), [7]);
    assert_eq!(table.take_due(60 * SECOND - 1), NOBODY);
    assert_eq!(table.keep(7, 59 * SECOND), Keep::Alive(60));
}

#[test]
fn no_more_ends_are_under_way_at_once_than_allowed() {
    let mut table = LeaseTable::default();
    let many = EXPIRING_MAX as i64 + 10;
    for id in 1..=many {
        table.set(id as u64, id, Some(row(2)), Became::Granted);
    }
    table.applied(many as u64, 0);
    let first = table.take_due(2 * SECOND);
    assert_eq!(first.len(), EXPIRING_MAX);
    assert!(table.has_due(2 * SECOND));
    assert_eq!(table.take_due(2 * SECOND), NOBODY);
    let mut seq = many as u64;
    for id in &first {
        seq += 1;
        table.set(seq, *id, None, Became::Gone(None));
    }
    assert_eq!(table.take_due(2 * SECOND), NOBODY, "evaluated is not applied");
    table.applied(seq, 2 * SECOND);
    assert_eq!(table.take_due(2 * SECOND).len(), 10);
}

#[test]
fn a_new_leader_gives_the_whole_time_or_the_rest_and_an_election_more() {
    let rest = StoredLease { remaining: 10, ..row(100) };
    let mut table = LeaseTable::load(vec![(1, row(100)), (2, rest)], 5_000);
    assert_eq!(table.take_due(15_000 + EXTENSION_MS - 1), NOBODY);
    assert_eq!(table.take_due(15_000 + EXTENSION_MS), [2]);
    assert_eq!(table.take_due(105_000 + EXTENSION_MS - 1), NOBODY);
    assert_eq!(table.take_due(105_000 + EXTENSION_MS), [1]);
}

#[test]
fn a_revocation_under_way_is_not_taken_up_again() {
    let mut table = LeaseTable::load(vec![(1, StoredLease { revoking: true, ..row(2) })], 0);
    assert_eq!(table.take_due(u64::MAX), NOBODY);
    assert_eq!(table.keep(1, 0), Keep::Wait);
}

#[test]
fn the_rest_of_a_long_lease_is_written_down_and_cleared_before_it_is_renewed() {
    let hour = 3_600;
    let mut table = granted(7, hour, 0);
    assert!(table.checkpoints(CHECKPOINT_MS - 1).is_empty());
    let rest = hour - (CHECKPOINT_MS / 1_000) as i64;
    let now = 2 * CHECKPOINT_MS;
    assert_eq!(table.checkpoints(now), [(7, rest - (CHECKPOINT_MS / 1_000) as i64)]);
    table.set(2, 7, Some(StoredLease { remaining: rest, ..row(hour) }), Became::Changed);
    table.applied(2, now);
    assert_eq!(table.keep(7, now), Keep::Clear);
    table.set(3, 7, Some(row(hour)), Became::Changed);
    table.applied(3, now);
    assert_eq!(table.keep(7, now), Keep::Alive(hour));
}

#[test]
fn ranges_are_joined_and_cut() {
    let range = |start: &'static str, end: &'static str| KeyRange { start: start.into(), end: end.into() };
    let mut ranges = Vec::new();
    for (start, end) in [("m", "p"), ("a", "c"), ("x", "")] {
        add_range(&mut ranges, &range(start, end));
    }
    let seen = |ranges: &[LeaseRange]| key_ranges(ranges).collect::<Vec<_>>();
    assert_eq!(seen(&ranges), [range("a", "c"), range("m", "p"), range("x", "")]);
    add_range(&mut ranges, &range("c", "n"));
    assert_eq!(seen(&ranges), [range("a", "p"), range("x", "")]);
    let held = StoredLease { ranges: ranges.clone(), ..row(2) };
    assert!(covers(&held, &range("b", "p")) && covers(&held, &range("y", "")) && !covers(&held, &range("o", "y")));
    assert_eq!(seen(&outside(&ranges, &range("b", "c"))), [range("a", "b"), range("c", "p"), range("x", "")]);
    assert!(outside(&ranges, &range("", "")).is_empty());
    assert_eq!(seen(&outside(&ranges, &range("q", "y"))), [range("a", "p"), range("y", "")]);
    add_range(&mut ranges, &range("", ""));
    assert_eq!(seen(&ranges), [range("", "")]);
}
