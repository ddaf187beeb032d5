//! Which revisions must be read afterwards, so that it is certain what happened at those that no answer claims.
//!
//! 1. A run is a longest row of revisions that nobody claims. Most are of one revision: one unknown request.
//! 2. The state is needed at the run's last revision, at each revision in it that an answer saw, and at each that a record
//!    names as its mod_revision.
//! 3. Where two neighbours among these differ and are not adjacent, the one in the middle is needed too, and so on: in the
//!    end each change is between adjacent revisions.
//! 4. Where two neighbours are equal, nothing that any answer could show happened between them: whatever did happen was
//!    gone before anybody looked, and a request of unknown outcome may as well never have happened.

use std::collections::BTreeSet;

use anyhow::ensure;

use super::history::{History, Outcome, Place};

/// More revisions than this are not asked for: somebody else is writing.
const REVISIONS_MAX: usize = 100_000;

/// Revisions of which the whole key space must be read next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// The revisions, growing.
    pub revisions: Vec<i64>,
}

impl Missing {
    /// Whether everything is known.
    pub fn is_empty(&self) -> bool {
        self.revisions.is_empty()
    }
}

/// What is still missing. Read that, put it into the history's snapshots, and ask again.
pub fn missing(history: &History) -> anyhow::Result<Missing> {
    let taken = history.ops.iter().filter_map(|op| match op.place() {
        Some(Place::Took(revision)) => Some(revision),
        _ => None,
    });
    let taken: BTreeSet<i64> = taken.collect();
    let points = points(history, &taken);
    let last = points.last().max(taken.last()).copied().unwrap_or(history.base);
    let mut missing = BTreeSet::new();
    let ends = taken.range(history.base + 1..).copied().chain([last + 1]);
    let mut before = history.base;
    for end in ends {
        if end > before + 1 {
            run(history, before, end - 1, &points, &mut missing);
            ensure!(missing.len() <= REVISIONS_MAX, "more than {REVISIONS_MAX} revisions belong to nobody");
        }
        before = end;
    }
    Ok(Missing { revisions: missing.into_iter().collect() })
}

/// Revisions nobody claims, at which the state matters.
fn points(history: &History, taken: &BTreeSet<i64>) -> BTreeSet<i64> {
    let mut points: BTreeSet<i64> = history.snapshots.keys().copied().collect();
    let mut highest = history.base;
    for op in &history.ops {
        let Outcome::Answered { revision, response } = &op.outcome else { continue };
        // An answer that shows what is above its header is wrong; nobody can read there.
        highest = highest.max(*revision);
        if let Some(Place::Saw(seen)) = op.place() {
            points.insert(seen.min(*revision));
        }
        points.extend(response.records().iter().map(|record| record.mod_revision));
    }
    points.retain(|&point| point > history.base && point <= highest && !taken.contains(&point));
    points
}

/// Adds what is missing of the run after `before` up to `last`.
fn run(history: &History, before: i64, last: i64, points: &BTreeSet<i64>, missing: &mut BTreeSet<i64>) {
    let mut wanted: Vec<i64> = points.range(before + 1..=last).copied().collect();
    if wanted.last() != Some(&last) {
        wanted.push(last);
    }
    // What was before the run is known from the replay, but then it would have to be replayed here.
    if wanted[0] > before + 1 && before > history.base {
        wanted.insert(0, before);
    }
    let unread: Vec<i64> = wanted.iter().copied().filter(|at| !history.snapshots.contains_key(at)).collect();
    if !unread.is_empty() {
        missing.extend(unread);
        return;
    }
    let nothing = Vec::new();
    let mut left = (before, if before == history.base { &nothing } else { &history.snapshots[&wanted[0]] });
    for at in wanted {
        let right = (at, &history.snapshots[&at]);
        if left.1 != right.1 && right.0 > left.0 + 1 {
            missing.insert(left.0 + (right.0 - left.0) / 2);
        }
        left = right;
    }
}
