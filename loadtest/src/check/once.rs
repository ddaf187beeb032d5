//! No write was done twice: a key's version counts its puts, which are the acknowledged ones and some of the unknown.
//!
//! A proxy that repeats a put after an answer got lost shows here, even when the value looks right.

use std::collections::BTreeMap;

use super::Violation;
use crate::final_state::FinalState;
use crate::history::{History, Outcome};

/// Checks it.
pub fn check(history: &History, state: &FinalState) -> Vec<Violation> {
    let mut puts = BTreeMap::<u32, (i64, i64)>::new();
    for write in &history.writes {
        let (acked, unknown) = puts.entry(write.key).or_default();
        match write.outcome {
            Outcome::Acked(_) => *acked += 1,
            Outcome::Unknown => *unknown += 1,
            Outcome::Refused => {}
        }
    }
    let mut violations = Vec::new();
    for (key, found) in &state.keys {
        let (acked, unknown) = puts.get(key).copied().unwrap_or_default();
        let version = found.version;
        if !(acked..=acked + unknown).contains(&version) {
            let text = format!("key {key} has version {version} after {acked} acked and {unknown} unknown puts");
            violations.push(Violation { property: "once", text });
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn violations(version: i64) -> usize {
        let past = [acked(1, 1, (0, 1), 10), unknown(1, 2, (2, 3)), acked(1, 3, (4, 5), 12)];
        check(&history(past, []), &state(100, [(1, found(3, 12, version))])).len()
    }

    #[test]
    fn an_unknown_put_may_count_or_not() {
        assert_eq!((violations(2), violations(3)), (0, 0));
    }

    #[test]
    fn a_put_done_twice_or_not_at_all_is_found() {
        assert_eq!((violations(1), violations(4)), (1, 1));
    }
}
