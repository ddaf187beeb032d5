//! Revisions follow real time: what ended before a put was sent has a lower revision than the put; what ended before a
//! get was sent does not have a higher one than the get's header.

use super::{Observation, Violation, against_the_past};
use crate::final_state::FinalState;
use crate::history::History;

/// Who showed a revision.
enum Who {
    Put { key: u32, number: u32 },
    Get { key: u32 },
}

/// Checks it.
pub fn check(history: &History, state: &FinalState) -> Vec<Violation> {
    let mut observations = Vec::with_capacity(history.writes.len() + history.reads.len());
    observations.extend(history.acked().map(|(write, shown)| {
        let what = Who::Put { key: write.key, number: write.number };
        Observation { sent: write.sent, ended: write.ended, shown, what }
    }));
    observations.extend(history.reads.iter().map(|read| {
        let what = Who::Get { key: read.key };
        Observation { sent: read.sent, ended: read.ended, shown: read.revision, what }
    }));
    let mut texts = Vec::new();
    against_the_past(&observations, |observation, past| {
        let (Some(past), shown) = (past, observation.shown) else { return };
        match observation.what {
            Who::Put { key, number } if shown <= past => {
                texts.push(format!("write {number} of key {key} got revision {shown} after {past} had been shown"));
            }
            Who::Get { key } if shown < past => {
                texts.push(format!("a get of key {key} showed revision {shown} after {past} had been shown"));
            }
            Who::Put { .. } | Who::Get { .. } => {}
        }
    });
    let highest = observations.iter().map(|observation| observation.shown).max();
    if let Some(highest) = highest.filter(|&highest| highest > state.revision) {
        texts.push(format!("the final revision is {}, but {highest} had been shown", state.revision));
    }
    for (key, found) in state.keys.iter().filter(|(_, found)| found.mod_revision > state.revision) {
        texts.push(format!("key {key} has revision {}, the final one is {}", found.mod_revision, state.revision));
    }
    texts.into_iter().map(|text| Violation { property: "order of revisions", text }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::history::{Read, Write};

    fn violations(writes: impl Into<Vec<Write>>, reads: impl Into<Vec<Read>>) -> usize {
        check(&history(writes, reads), &state(100, [])).len()
    }

    #[test]
    fn one_after_the_other_must_grow() {
        assert_eq!(violations([acked(1, 1, (0, 1), 10), acked(2, 1, (2, 3), 11)], []), 0);
        assert_eq!(violations([acked(1, 1, (0, 1), 11), acked(2, 1, (2, 3), 10)], []), 1);
        assert_eq!(violations([acked(1, 1, (0, 1), 11), acked(2, 1, (2, 3), 11)], []), 1);
    }

    #[test]
    fn at_the_same_time_may_be_either_way() {
        assert_eq!(violations([acked(1, 1, (0, 5), 11), acked(2, 1, (2, 3), 10)], []), 0);
        assert_eq!(violations([acked(1, 1, (0, 2), 11), acked(2, 1, (2, 3), 10)], []), 0);
    }

    #[test]
    fn the_highest_of_the_past_counts_not_the_latest() {
        let writes = [acked(1, 1, (0, 3), 20), acked(2, 1, (0, 4), 5), acked(3, 1, (5, 6), 10)];
        assert_eq!(violations(writes, []), 1);
    }

    #[test]
    fn a_get_may_repeat_a_revision_but_not_go_back() {
        assert_eq!(violations([acked(1, 1, (0, 1), 10)], [read(1, (2, 3), 10, None)]), 0);
        assert_eq!(violations([acked(1, 1, (0, 1), 10)], [read(1, (2, 3), 9, None)]), 1);
        assert_eq!(violations([], [read(1, (0, 1), 10, None), read(2, (2, 3), 9, None)]), 1);
    }

    #[test]
    fn a_put_must_pass_what_a_get_has_shown() {
        assert_eq!(violations([acked(1, 1, (2, 3), 10)], [read(2, (0, 1), 10, None)]), 1);
    }

    #[test]
    fn a_final_revision_that_went_back_is_found() {
        assert_eq!(violations([acked(1, 1, (0, 1), 101)], []), 1);
        assert_eq!(check(&history([], []), &state(10, [(1, found(1, 11, 1))])).len(), 1);
    }
}
