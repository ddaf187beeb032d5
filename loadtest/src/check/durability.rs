//! Every acknowledged write is there: a key holds its last acknowledged write, or one of unknown outcome that came after
//! it in the server's order.
//!
//! An unknown write may take effect at any time after it was sent, also after later writes of the same writer were
//! acknowledged; its mod_revision must then be the higher one.

use std::collections::BTreeMap;

use super::Violation;
use crate::final_state::FinalState;
use crate::history::{Found, History, Outcome, Write};

/// What one key went through.
#[derive(Default)]
struct Key<'a> {
    /// The acknowledged write with the highest revision.
    last_acked: Option<(i64, &'a Write)>,
    unknown: Vec<u32>,
}

/// Checks it.
pub fn check(history: &History, state: &FinalState) -> Vec<Violation> {
    let mut keys = BTreeMap::<u32, Key<'_>>::new();
    for write in &history.writes {
        let key = keys.entry(write.key).or_default();
        match write.outcome {
            Outcome::Acked(revision) => {
                if key.last_acked.is_none_or(|(highest, _)| highest < revision) {
                    key.last_acked = Some((revision, write));
                }
            }
            Outcome::Unknown => key.unknown.push(write.number),
            Outcome::Refused => {}
        }
    }
    let strangers = state.strangers.iter().cloned();
    let never_written = state.keys.keys().filter(|key| !keys.contains_key(key));
    let never_written = never_written.map(|key| format!("key {key} is there, which was never written"));
    let wrong = keys.iter().filter_map(|(number, key)| key.judge(*number, state.keys.get(number)));
    let texts = strangers.chain(never_written).chain(wrong);
    texts.map(|text| Violation { property: "durability", text }).collect()
}

impl Key<'_> {
    /// What is wrong with the key as it was found.
    fn judge(&self, key: u32, found: Option<&Found>) -> Option<String> {
        let acked = self.last_acked.map(|(revision, write)| (revision, write.number));
        let Some(found) = found else {
            return acked
                .map(|(revision, number)| format!("key {key} is gone: write {number} was acked at {revision}"));
        };
        let Found { number, mod_revision, .. } = *found;
        let Some(number) = number else {
            return Some(format!("key {key} holds a value that nobody wrote, of revision {mod_revision}"));
        };
        let is_acked = acked == Some((mod_revision, number));
        let is_later = self.unknown.contains(&number) && acked.is_none_or(|(revision, _)| revision < mod_revision);
        if is_acked || is_later {
            return None;
        }
        let want = acked.map_or("nothing was acked".to_owned(), |(revision, number)| {
            format!("write {number} was acked at {revision}")
        });
        Some(format!("key {key} holds write {number} of revision {mod_revision}, but {want}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// Two acknowledged writes of key 1 with one of unknown outcome between them.
    fn past() -> History {
        history([acked(1, 1, (0, 1), 10), unknown(1, 2, (2, 3)), acked(1, 3, (4, 5), 12)], [])
    }

    fn judge(found: impl IntoIterator<Item = (u32, Found)>) -> Vec<String> {
        check(&past(), &state(100, found)).into_iter().map(|violation| violation.text).collect()
    }

    #[test]
    fn the_last_acknowledged_write_is_right() {
        assert_eq!(judge([(1, found(3, 12, 2))]), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_write_that_came_later_is_right() {
        assert_eq!(judge([(1, found(2, 13, 3))]), Vec::<String>::new());
    }

    #[test]
    fn a_lost_key_is_found() {
        assert!(judge([])[0].contains("gone"));
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(judge([(1, found(1, 10, 1))])[0].contains("write 3 was acked at 12"));
    }

    #[test]
    fn an_unknown_write_that_came_before_does_not_excuse_a_lost_one() {
        assert_eq!(judge([(1, found(2, 11, 2))]).len(), 1);
    }

    #[test]
    fn a_write_at_another_revision_than_acknowledged_is_found() {
        assert_eq!(judge([(1, found(3, 13, 2))]).len(), 1);
    }

    #[test]
    fn a_damaged_value_and_foreign_keys_are_found() {
        let damaged = Found { number: None, mod_revision: 12, version: 2 };
        assert!(judge([(1, damaged)])[0].contains("nobody wrote"));
        assert!(judge([(1, found(3, 12, 2)), (2, found(1, 5, 1))])[0].contains("never written"));
        let mut with_stranger = state(100, [(1, found(3, 12, 2))]);
        with_stranger.strangers.push("a/odd".into());
        assert_eq!(check(&past(), &with_stranger).len(), 1);
    }

    #[test]
    fn a_refused_write_must_not_be_there() {
        let refused = history([write(1, 1, (0, 1), Outcome::Refused)], []);
        assert_eq!(check(&refused, &state(9, [])), []);
        assert_eq!(check(&refused, &state(9, [(1, found(1, 5, 1))])).len(), 1);
    }
}
