//! Finds what a cluster did wrong. Each property is a pure function over a recorded history and the state read after it,
//! in its own file; none of them talks to a server.
//!
//! | Property | File |
//! |---|---|
//! | every acknowledged write is there | `durability` |
//! | no write was done twice | `once` |
//! | no revision was given twice | `unique` |
//! | revisions follow real time | `order` |
//! | linearizable reads see everything acknowledged before | `reads` |

use std::fmt;

use crate::final_state::FinalState;
use crate::history::{History, Moment};

pub mod durability;
pub mod once;
pub mod order;
pub mod reads;
pub mod unique;

/// One thing that must not have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The broken property.
    pub property: &'static str,
    /// What happened.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.text)
    }
}

/// Checks every property.
pub fn all(history: &History, state: &FinalState) -> Vec<Violation> {
    [
        durability::check(history, state),
        once::check(history, state),
        unique::check(history, state),
        order::check(history, state),
        reads::check(history),
    ]
    .concat()
}

/// Something that happened within a span of time and showed a number that only grows.
struct Observation<T> {
    sent: Moment,
    ended: Moment,
    shown: i64,
    what: T,
}

/// Calls `judge` for each observation with the highest number that was shown by those that had ended before it was sent
/// (none if there is no such one).
fn against_the_past<T>(observations: &[Observation<T>], mut judge: impl FnMut(&Observation<T>, Option<i64>)) {
    let mut by_sent: Vec<_> = observations.iter().collect();
    let mut by_ended = by_sent.clone();
    by_sent.sort_unstable_by_key(|observation| observation.sent);
    by_ended.sort_unstable_by_key(|observation| observation.ended);
    let mut past = by_ended.into_iter().peekable();
    let mut highest = None;
    for observation in by_sent {
        // Ended at the very moment the other was sent: nobody can tell which came first.
        while let Some(before) = past.next_if(|before| before.ended < observation.sent) {
            highest = highest.max(Some(before.shown));
        }
        judge(observation, highest);
    }
}

#[cfg(test)]
mod testing;
