//! Histories of a few lines, for the checkers' tests.

use crate::final_state::FinalState;
use crate::history::{Found, History, Moment, Outcome, Read, Write};

/// A put acknowledged at a revision.
pub fn acked(key: u32, number: u32, span: (u64, u64), revision: i64) -> Write {
    write(key, number, span, Outcome::Acked(revision))
}

/// A put nobody knows about.
pub fn unknown(key: u32, number: u32, span: (u64, u64)) -> Write {
    write(key, number, span, Outcome::Unknown)
}

/// A put.
pub fn write(key: u32, number: u32, (sent, ended): (u64, u64), outcome: Outcome) -> Write {
    Write { key, number, sent: Moment(sent), ended: Moment(ended), outcome }
}

/// A get.
pub fn read(key: u32, (sent, ended): (u64, u64), revision: i64, found: Option<Found>) -> Read {
    Read { key, sent: Moment(sent), ended: Moment(ended), revision, found }
}

/// A key as it was found.
pub fn found(number: u32, mod_revision: i64, version: i64) -> Found {
    Found { number: Some(number), mod_revision, version }
}

/// A history.
pub fn history(writes: impl Into<Vec<Write>>, reads: impl Into<Vec<Read>>) -> History {
    History { writes: writes.into(), reads: reads.into() }
}

/// A final state at a revision.
pub fn state(revision: i64, keys: impl IntoIterator<Item = (u32, Found)>) -> FinalState {
    FinalState { revision, keys: keys.into_iter().collect(), strangers: Vec::new() }
}
