//! A linearizable get sees every write of its key that was acknowledged before it was sent, nothing that was not written,
//! and never an older state than an earlier get saw.

use std::collections::{BTreeMap, HashMap};

use super::{Observation, Violation, against_the_past};
use crate::history::{Found, History, Moment, Outcome, Read};

/// Checks it.
pub fn check(history: &History) -> Vec<Violation> {
    let mut keys = BTreeMap::<u32, Vec<Observation<Option<&Read>>>>::new();
    for (write, shown) in history.acked() {
        let observation = Observation { sent: write.sent, ended: write.ended, shown, what: None };
        keys.entry(write.key).or_default().push(observation);
    }
    for read in &history.reads {
        let shown = read.found.map_or(0, |found| found.mod_revision);
        let observation = Observation { sent: read.sent, ended: read.ended, shown, what: Some(read) };
        keys.entry(read.key).or_default().push(observation);
    }
    let written: HashMap<_, _> =
        history.writes.iter().map(|write| ((write.key, write.number), (write.sent, write.outcome))).collect();
    let mut texts = Vec::new();
    for (key, observations) in &keys {
        against_the_past(observations, |observation, past| {
            let Some(read) = observation.what else { return };
            if let Some(past) = past.filter(|&past| past > observation.shown) {
                let state = match read.found {
                    Some(found) => format!("saw revision {}", found.mod_revision),
                    None => "saw nothing".to_owned(),
                };
                texts.push(format!("a get of key {key} {state} after {past} had been shown"));
            }
            texts.extend(read.found.and_then(|found| judge(read, found, &written)));
        });
    }
    texts.into_iter().map(|text| Violation { property: "linearizable reads", text }).collect()
}

/// What is wrong with the value that a get found.
fn judge(read: &Read, found: Found, written: &HashMap<(u32, u32), (Moment, Outcome)>) -> Option<String> {
    let Found { number, mod_revision, .. } = found;
    let key = read.key;
    let Some(number) = number else {
        return Some(format!("a get of key {key} saw a value that nobody wrote, of revision {mod_revision}"));
    };
    if mod_revision > read.revision {
        return Some(format!("a get of key {key} saw revision {mod_revision} at revision {}", read.revision));
    }
    let possible = match written.get(&(key, number)) {
        Some((sent, Outcome::Acked(revision))) => *sent < read.ended && *revision == mod_revision,
        Some((sent, Outcome::Unknown)) => *sent < read.ended,
        Some((_, Outcome::Refused)) | None => false,
    };
    (!possible)
        .then(|| format!("a get of key {key} saw write {number} at revision {mod_revision}, which is not possible"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::history::Write;

    /// Two acknowledged writes of key 1 and one of unknown outcome, then a get.
    fn violations(found: Option<Found>) -> usize {
        let writes = [acked(1, 1, (0, 1), 10), acked(1, 2, (2, 3), 12), unknown(1, 3, (4, 5))];
        check(&history(writes, [read(1, (6, 7), 20, found)])).len()
    }

    #[test]
    fn the_last_acknowledged_or_an_unknown_write_is_right() {
        assert_eq!(violations(Some(found(2, 12, 2))), 0);
        assert_eq!(violations(Some(found(3, 13, 3))), 0);
    }

    #[test]
    fn a_stale_get_is_found() {
        assert_eq!(violations(Some(found(1, 10, 1))), 1);
        assert_eq!(violations(None), 1);
    }

    #[test]
    fn impossible_values_are_found() {
        assert_eq!(violations(Some(Found { number: None, mod_revision: 12, version: 2 })), 1);
        assert_eq!(violations(Some(found(2, 13, 2))), 1, "another revision than acknowledged");
        assert_eq!(violations(Some(found(4, 13, 3))), 1, "a write that was never sent");
        assert_eq!(violations(Some(found(3, 21, 3))), 1, "a revision above the header's");
    }

    #[test]
    fn a_get_that_runs_with_a_write_may_see_it_or_not() {
        let during = |found| {
            let writes: [Write; 2] = [acked(1, 1, (0, 1), 10), acked(1, 2, (2, 9), 12)];
            check(&history(writes, [read(1, (3, 4), 20, Some(found))])).len()
        };
        assert_eq!((during(found(1, 10, 1)), during(found(2, 12, 2))), (0, 0));
    }

    #[test]
    fn a_get_never_goes_back_behind_another_one() {
        let see = |number, span, revision| read(1, span, 20, Some(found(number, revision, 1)));
        let writes = [acked(1, 1, (0, 1), 10), unknown(1, 2, (2, 3))];
        let forth_and_back = [see(2, (4, 5), 12), see(1, (6, 7), 10)];
        assert_eq!(check(&history(writes, forth_and_back)).len(), 1);
    }
}
