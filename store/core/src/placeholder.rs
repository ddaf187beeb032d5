//! Revisions that are not known yet (rule O5).
//!
//! A write is evaluated before it has its number, and later evaluations read what it wrote. Until the number arrives
//! its place is taken by one of three reserved values, all far outside the revisions that can ever exist:
//!
//! | value           | stands for                                                | found in                          |
//! |-----------------|-----------------------------------------------------------|-----------------------------------|
//! | `PENDING + seq` | the number of the in-flight write `seq`                   | overlay, changes, results         |
//! | `OWN`           | the number of the item being evaluated                    | its own changes and result        |
//! | `BEFORE`        | the counter just before the item being evaluated          | headers of its result             |
//!
//! `PENDING` and `OWN` sort as numbers the way the revisions they stand for will: known < in flight, by seq < own.
//! That order holds against revisions of this region only; see [`Unknown`] for constants that clients wrote.

use std::cmp::Ordering;

/// Base of the placeholders of in-flight writes: `PENDING + seq`. Far above [`UNREACHABLE`].
pub const PENDING: i64 = 1 << 62;
/// No revision ever gets here: a million a second would take 142 years. What clients write for "infinity", 2^53 - 1 or
/// `i64::MAX`, lies above.
pub const UNREACHABLE: i64 = 1 << 52;
/// The number of the item being evaluated.
pub const OWN: i64 = i64::MAX;
/// The revision counter just before the item being evaluated.
pub const BEFORE: i64 = i64::MIN;

/// Whose number a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The in-flight write with this seq.
    InFlight(u64),
    /// The item being evaluated.
    Own,
}

/// The placeholder of the in-flight write `seq`.
pub fn pending(seq: u64) -> i64 {
    PENDING + seq as i64
}

/// Whose number `revision` stands for; `None`: it is a revision.
pub fn unknown(revision: i64) -> Option<Unknown> {
    match revision {
        OWN => Some(Unknown::Own),
        PENDING.. => Some(Unknown::InFlight((revision - PENDING) as u64)),
        _ => None,
    }
}

/// `revision` with the placeholders replaced: `lookup` knows the numbers of in-flight writes, `own` is the item's own.
///
/// # Panics
/// On [`OWN`] if the item has no number: only what mutates writes records.
pub fn filled(revision: i64, lookup: &dyn Fn(u64) -> i64, own: Option<i64>) -> i64 {
    match unknown(revision) {
        None => revision,
        Some(Unknown::InFlight(seq)) => lookup(seq),
        Some(Unknown::Own) => own.expect("an item without a number wrote a record"),
    }
}

/// Compares the revision behind a placeholder with `constant`, a number that a client wrote. It is greater than `floor`,
/// the newest revision heard of before its number was asked for. `None`: only the number itself decides.
pub fn compare_unknown(floor: i64, constant: i64) -> Option<Ordering> {
    if constant <= floor {
        Some(Ordering::Greater)
    } else if constant >= UNREACHABLE {
        Some(Ordering::Less)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_sort_behind_revisions_by_seq_and_own_last() {
        let mut revisions = [OWN, pending(7), 1_000_000_000_000, pending(3), 1];
        revisions.sort_unstable();
        assert_eq!(revisions, [1, 1_000_000_000_000, pending(3), pending(7), OWN]);
    }

    #[test]
    fn constants_up_to_the_floor_and_impossible_ones_are_decided() {
        assert_eq!(compare_unknown(100, 100), Some(Ordering::Greater));
        assert_eq!(compare_unknown(100, 101), None);
        assert_eq!(compare_unknown(100, i64::MAX), Some(Ordering::Less));
        assert_eq!(compare_unknown(100, (1 << 53) - 1), Some(Ordering::Less));
        assert_eq!(compare_unknown(100, -1), Some(Ordering::Greater));
    }

    #[test]
    fn filling_replaces_placeholders_only() {
        let lookup = |seq| 500 + seq as i64;
        assert_eq!(filled(42, &lookup, None), 42);
        assert_eq!(filled(0, &lookup, None), 0);
        assert_eq!(filled(pending(3), &lookup, None), 503);
        assert_eq!(filled(OWN, &lookup, Some(9)), 9);
    }
}
