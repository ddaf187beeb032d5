//! No revision was given to two writes, whether acknowledged or seen on a key afterwards.

use std::collections::HashMap;

use super::Violation;
use crate::final_state::FinalState;
use crate::history::History;

/// Checks it.
pub fn check(history: &History, state: &FinalState) -> Vec<Violation> {
    let acked = history.acked().map(|(write, revision)| (revision, (write.key, Some(write.number))));
    let seen = history.reads.iter().filter_map(|read| Some((read.key, read.found?)));
    let seen = seen.chain(state.keys.iter().map(|(key, found)| (*key, *found)));
    let seen = seen.map(|(key, found)| (found.mod_revision, (key, found.number)));
    let mut owners = HashMap::new();
    let mut violations = Vec::new();
    for (revision, owner) in acked.chain(seen) {
        let first = *owners.entry(revision).or_insert(owner);
        if first != owner {
            let name = |(key, number): (u32, Option<u32>)| match number {
                Some(number) => format!("write {number} of key {key}"),
                None => format!("a value of key {key} that nobody wrote"),
            };
            let text = format!("revision {revision} belongs to {} and to {}", name(first), name(owner));
            violations.push(Violation { property: "unique revisions", text });
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn every_write_has_its_own() {
        let past =
            history([acked(1, 1, (0, 1), 10), acked(2, 1, (0, 1), 11)], [read(1, (2, 3), 11, Some(found(1, 10, 1)))]);
        assert_eq!(check(&past, &state(11, [(1, found(1, 10, 1)), (2, found(1, 11, 1))])), []);
    }

    #[test]
    fn two_acknowledged_writes_with_one_revision_are_found() {
        let past = history([acked(1, 1, (0, 1), 10), acked(2, 1, (5, 6), 10)], []);
        assert_eq!(check(&past, &state(10, [])).len(), 1);
    }

    #[test]
    fn an_unknown_write_seen_with_an_acknowledged_ones_revision_is_found() {
        let past = history([acked(1, 1, (0, 1), 10), unknown(2, 1, (5, 6))], []);
        assert_eq!(check(&past, &state(10, [(2, found(1, 10, 1))])).len(), 1);
        let read =
            history([acked(1, 1, (0, 1), 10), unknown(2, 1, (5, 6))], [read(2, (7, 8), 10, Some(found(1, 10, 1)))]);
        assert_eq!(check(&read, &state(10, [])).len(), 1);
    }
}
