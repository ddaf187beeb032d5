//! Does everything that happened once more, in the order of revisions, and compares every answer with the state it claims
//! to have seen.
//!
//! Where a violation is found, the replay goes on with what the server seems to have done, so that one fault is not
//! reported for everything after it.

use std::collections::{BTreeMap, BTreeSet};

use super::blame::{Blame, Witness};
use super::differ::{Difference, differences, snapshots};
use super::history::{History, Index, Outcome, Place, Request, Response};
use super::order::Floor;
use super::state::{Effect, State};
use super::unknown::Unknowns;
use super::words::op_text;
use crate::check::Violation;

/// What the replay showed.
pub(super) struct Replayed {
    pub violations: Vec<Violation>,
    pub unknown_done: usize,
    pub holes: usize,
}

/// Replays a history whose evidence is complete.
pub(super) fn replay(history: &History, index: &Index<'_>, floors: &[Floor]) -> Replayed {
    let mut views = BTreeMap::<i64, Vec<usize>>::new();
    for (at, op) in history.ops.iter().enumerate() {
        if let Some(Place::Saw(revision)) = op.place() {
            views.entry(revision.max(history.base)).or_default().push(at);
        }
    }
    let mut revisions: BTreeSet<i64> = index.taken.keys().chain(history.snapshots.keys()).copied().collect();
    revisions.extend(views.keys());
    let last = revisions.last().copied().unwrap_or(history.base);
    let mut replay = Replay {
        history,
        index,
        state: State::default(),
        unknowns: Unknowns::new(history, index, floors),
        blame: Blame::new(history, index),
        violations: Vec::new(),
        unclaimed: 0,
    };
    for revision in revisions {
        replay.step(revision, views.get(&revision).map_or(&[], Vec::as_slice));
    }
    let (unknown_done, repeated) = replay.unknowns.settle();
    let mut violations = replay.violations;
    violations.extend(repeated);
    violations.extend(replay.blame.finish());
    let claimed = index.taken.keys().filter(|&&revision| revision > history.base).count();
    let all = usize::try_from(last - history.base).unwrap_or(0);
    Replayed { violations, unknown_done, holes: all.saturating_sub(claimed + replay.unclaimed) }
}

struct Replay<'a> {
    history: &'a History,
    index: &'a Index<'a>,
    state: State,
    unknowns: Unknowns<'a>,
    blame: Blame<'a>,
    violations: Vec<Violation>,
    /// Revisions that nobody claims and at which something happened.
    unclaimed: usize,
}

impl Replay<'_> {
    fn step(&mut self, revision: i64, views: &[usize]) {
        match self.index.taken.get(&revision) {
            Some(ops) => {
                if let [first, second, ..] = ops[..] {
                    let [first, second] = [first, second].map(|op| op_text(&self.history.ops[op]));
                    let text = format!("@{revision} was taken {} times\n  by: {first}\n  by: {second}", ops.len());
                    self.violations.push(Violation { property: "repeated revision", text });
                }
                ops.iter().for_each(|&op| self.mutate(op, revision));
            }
            None => self.unclaimed(revision),
        }
        for &op in views {
            self.view(op, revision);
        }
        if let Some(records) = self.history.snapshots.get(&revision) {
            let found = snapshots(self.state.records(), records);
            self.blame.all(Witness::Snapshot(revision), revision, found);
        }
    }

    /// A request that took this revision.
    fn mutate(&mut self, at: usize, revision: i64) {
        let op = &self.history.ops[at];
        let Outcome::Answered { response, .. } = &op.outcome else { return };
        let (right, changes) = self.state.apply(&op.request, revision, None);
        let found = differences(&right, response);
        let other_branch = match (&right, response) {
            (Response::Txn(right), Response::Txn(shown)) => {
                (right.succeeded != shown.succeeded).then_some(shown.succeeded)
            }
            _ => None,
        };
        let effect = if other_branch.is_some() {
            self.state.undo(changes);
            let (_, changes) = self.state.apply(&op.request, revision, other_branch);
            self.state.effect(&changes)
        } else {
            self.state.effect(&changes)
        };
        self.blame.changed(revision, &effect, Some(at));
        self.blame.all(Witness::Op(at), revision - 1, found);
    }

    /// A request that saw the state after this revision.
    fn view(&mut self, at: usize, revision: i64) {
        let op = &self.history.ops[at];
        let Outcome::Answered { revision: shown, response } = &op.outcome else { return };
        // Reported by `order`: there is no state that it could have seen.
        if matches!(op.request, Request::Range(_)) && revision > *shown {
            return;
        }
        let (right, changes) = self.state.apply(&op.request, revision + 1, None);
        self.state.undo(changes);
        self.blame.all(Witness::Op(at), revision, differences(&right, response));
    }

    /// A revision that no answer claims. If nobody read there, nothing that matters happened (see `evidence`).
    fn unclaimed(&mut self, revision: i64) {
        let Some(records) = self.history.snapshots.get(&revision) else { return };
        let after = State::of(records);
        let difference = self.state.difference(&after);
        let (effect, odd): (Effect, Effect) = difference
            .into_iter()
            .partition(|(_, record)| record.as_ref().is_none_or(|record| record.mod_revision == revision));
        let odd = odd.into_iter().map(|(key, shown)| {
            self.blame.corrected(key.clone());
            let right = self.state.get(&key).cloned();
            Difference::Key { key, right, shown }
        });
        let odd: Vec<_> = odd.collect();
        self.blame.all(Witness::Snapshot(revision), revision, odd);
        if !effect.is_empty() {
            self.unclaimed += 1;
            let writer = self.unknowns.happened(&mut self.state, revision, &effect);
            let writer = writer.map_err(|violation| self.violations.push(violation)).ok();
            self.blame.changed(revision, &effect, writer);
        }
        self.state = after;
    }
}
