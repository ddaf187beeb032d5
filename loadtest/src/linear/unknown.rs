//! Which request of unknown outcome did what happened at a revision that no answer claims.
//!
//! It must be one that would have changed exactly this there, and was sent before anybody could have seen the revision.
//! Several may fit (two deletes of the same key); each can have happened once, so a matching of revisions and requests
//! decides.

use std::collections::{BTreeSet, HashMap};

use super::history::{History, Index, Outcome, Place};
use super::order::Floor;
use super::state::{Effect, State};
use super::words::{op_text, record_text};
use crate::check::Violation;

/// Changes at revisions nobody claims, with the requests that could have made them.
pub(super) struct Unknowns<'a> {
    history: &'a History,
    index: &'a Index<'a>,
    floors: &'a [Floor],
    unknown: Vec<usize>,
    found: Vec<(i64, Vec<usize>)>,
}

impl<'a> Unknowns<'a> {
    pub fn new(history: &'a History, index: &'a Index<'a>, floors: &'a [Floor]) -> Self {
        let ops = history.ops.iter().enumerate();
        let unknown = ops.filter(|(_, op)| op.outcome == Outcome::Unknown).map(|(at, _)| at).collect();
        Self { history, index, floors, unknown, found: Vec::new() }
    }

    /// Notes what changed from `state` at a revision. Gives a request that may have done it, or what is wrong.
    pub fn happened(&mut self, state: &mut State, revision: i64, effect: &Effect) -> Result<usize, Violation> {
        let writers = self.writers(effect);
        let possible: Vec<usize> = match writers.iter().next() {
            Some(&Some(writer)) if writers.len() == 1 => vec![writer],
            Some(_) => Vec::new(),
            None => self.unknown.clone(),
        };
        let fits = |&op: &usize| {
            let unknown = self.history.ops[op].outcome == Outcome::Unknown && self.floors[op].revision < revision;
            unknown && state.effect_of(&self.history.ops[op].request, revision) == *effect
        };
        let candidates: Vec<usize> = possible.into_iter().filter(fits).collect();
        let Some(&first) = candidates.first() else { return Err(self.explain(state, revision, effect, &writers)) };
        self.found.push((revision, candidates));
        Ok(first)
    }

    /// Gives every revision a request of its own; the number of requests, and the revisions that are left without.
    pub fn settle(&self) -> (usize, Vec<Violation>) {
        let mut taken = HashMap::new();
        let mut violations = Vec::new();
        for (at, (revision, candidates)) in self.found.iter().enumerate() {
            if self.assign(at, &mut taken, &mut BTreeSet::new()) {
                continue;
            }
            let other = taken.get(&candidates[0]).map_or(*revision, |&other: &usize| self.found[other].0);
            let text = format!(
                "what happened at @{revision} and at @{other} was one request\n  request: {}",
                op_text(&self.history.ops[candidates[0]])
            );
            violations.push(Violation { property: "repeated write", text });
        }
        (taken.len(), violations)
    }

    /// One step of bipartite matching: moves others out of the way where they have a choice.
    fn assign(&self, at: usize, taken: &mut HashMap<usize, usize>, tried: &mut BTreeSet<usize>) -> bool {
        for &op in &self.found[at].1 {
            if !tried.insert(op) {
                continue;
            }
            let holder = taken.get(&op).copied();
            if holder.is_none_or(|holder| self.assign(holder, taken, tried)) {
                taken.insert(op, at);
                return true;
            }
        }
        false
    }

    /// Who put the values that appeared; none for values nobody put.
    fn writers(&self, effect: &Effect) -> BTreeSet<Option<usize>> {
        effect.values().flatten().map(|record| self.index.writer(record)).collect()
    }

    /// What is wrong with a change that no request explains.
    fn explain(
        &self,
        state: &mut State,
        revision: i64,
        effect: &Effect,
        writers: &BTreeSet<Option<usize>>,
    ) -> Violation {
        let ops = &self.history.ops;
        let changes: Vec<_> = effect
            .iter()
            .map(|(key, after)| {
                let before = record_text(state.get(key));
                format!("\n  {}: {before} became {}", key.escape_ascii(), record_text(after.as_ref()))
            })
            .collect();
        let changes = format!("at @{revision}, which no answer claims:{}", changes.concat());
        let names = |op: usize| format!("\n  request: {}", op_text(&ops[op]));
        let told = |property, why: &str, who: &[usize]| {
            let who: String = who.iter().map(|&op| names(op)).collect();
            Violation { property, text: format!("{why} {changes}{who}") }
        };
        let partial = |op: usize, state: &mut State| {
            let whole = state.effect_of(&ops[op].request, revision);
            whole.len() > effect.len() && effect.iter().all(|(key, after)| whole.get(key) == Some(after))
        };
        let known: Vec<usize> = writers.iter().flatten().copied().collect();
        if writers.contains(&None) {
            return told("phantom value", "a value that nobody put appeared", &known);
        }
        let &[writer] = &known[..] else {
            if !known.is_empty() {
                return told("repeated revision", "several requests took effect", &known);
            }
            let half = self.unknown.iter().copied().find(|&op| partial(op, state));
            return match half {
                Some(op) => told("split transaction", "half of a request took effect", &[op]),
                None => told("lost write", "keys vanished without a request that deleted them,", &[]),
            };
        };
        match (&ops[writer].outcome, ops[writer].place()) {
            (Outcome::Refused(_), _) => told("refused write", "a refused request took effect", &known),
            (_, Some(Place::Took(_))) => told("repeated write", "a request took effect again", &known),
            (_, Some(Place::Saw(_))) => told("phantom value", "a request that changed nothing took effect", &known),
            _ if self.floors[writer].revision >= revision => {
                told("real time", "a request took effect before it was sent,", &known)
            }
            _ if partial(writer, state) => told("split transaction", "half of a request took effect", &known),
            _ => told("wrong answer", "a request had another effect than it should have,", &known),
        }
    }
}
