//! Names differences between an answer and the replayed state by what they mean.
//!
//! | Property | What was seen |
//! |---|---|
//! | stale read | a change is missing from an answer, though another answer showed it |
//! | lost write | a change is missing, and no answer ever showed it; or a key has counted too few puts |
//! | split transaction | an answer shows one part of a request's changes and lacks another |
//! | repeated write | a write is seen at a revision that it did not take; or a key has counted too many puts |
//! | snapshot | an answer shows a change above the revision it claims to have seen |
//! | phantom value | a value that nobody put, or that was put by a branch that was not taken |
//! | refused write | a value of a request that was refused |
//! | wrong answer | anything else |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use super::differ::Difference;
use super::history::{History, Index, Op, Outcome, Place};
use super::state::{Effect, covers};
use super::words::{op_text, record_text};
use crate::check::Violation;

/// Said of a key whose version is too low.
const MISCOUNTED: &str = "the key has counted too few puts";

/// Property of answers that show what came after the revision they name.
const SNAPSHOT: &str = "snapshot";

/// Who saw something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Witness {
    /// An answer.
    Op(usize),
    /// The whole key space at a revision, read afterwards.
    Snapshot(i64),
}

/// Collects differences until all is replayed: only then is known whether anybody saw what one answer lacks.
pub(super) struct Blame<'a> {
    history: &'a History,
    index: &'a Index<'a>,
    /// Revisions at which a key changed, growing; whether it was there afterwards.
    changes: HashMap<Bytes, Vec<(i64, bool)>>,
    /// Keys that changed at a revision, and the request that did it.
    writes: HashMap<i64, (Vec<Bytes>, Option<usize>)>,
    /// Changes that answers lack, with those answers.
    lacking: BTreeMap<(Bytes, i64), Vec<Witness>>,
    /// Keys of which later records prove nothing: their versions are too low, or the replay was corrected.
    miscounted: BTreeSet<Bytes>,
    violations: Vec<Violation>,
}

impl<'a> Blame<'a> {
    pub fn new(history: &'a History, index: &'a Index<'a>) -> Self {
        let (changes, writes) = (HashMap::new(), HashMap::new());
        let (lacking, miscounted) = (BTreeMap::new(), BTreeSet::new());
        Self { history, index, changes, writes, lacking, miscounted, violations: Vec::new() }
    }

    /// Notes what changed at a revision.
    pub fn changed(&mut self, revision: i64, effect: &Effect, writer: Option<usize>) {
        for (key, after) in effect {
            self.changes.entry(key.clone()).or_default().push((revision, after.is_some()));
        }
        let (keys, by) = self.writes.entry(revision).or_default();
        keys.extend(effect.keys().cloned());
        *by = by.or(writer);
    }

    /// Notes that the replay goes on with what the server showed of a key.
    pub fn corrected(&mut self, key: Bytes) {
        self.miscounted.insert(key);
    }

    /// Takes all differences of one answer from the state at `view`.
    pub fn all(&mut self, witness: Witness, view: i64, found: Vec<Difference>) {
        let mut lacking = BTreeMap::<i64, BTreeSet<Bytes>>::new();
        let keys = found.iter().filter_map(|difference| match difference {
            Difference::Key { key, .. } => Some(key.clone()),
            Difference::Other(_) => None,
        });
        let differing: BTreeSet<Bytes> = keys.collect();
        let mut too_new = false;
        for difference in found {
            match difference {
                Difference::Other(what) => {
                    let text = format!("{what}\n  in: {}", self.witness_text(witness));
                    self.violations.push(Violation { property: "wrong answer", text });
                }
                Difference::Key { key, right, shown } => {
                    match self.key(witness, view, &key, right.as_ref(), shown.as_ref()) {
                        Meaning::Lacks(revision) => {
                            lacking.entry(revision).or_default().insert(key);
                        }
                        Meaning::Wrong { property, why, other } => {
                            too_new |= property == SNAPSHOT;
                            if why == MISCOUNTED {
                                self.miscounted.insert(key.clone());
                            }
                            let text = format!(
                                "{why}: {} holds {} at @{view}, shown was {}\n  in:    {}{}",
                                key.escape_ascii(),
                                record_text(right.as_ref()),
                                record_text(shown.as_ref()),
                                self.witness_text(witness),
                                self.writer_text(other),
                            );
                            self.violations.push(Violation { property, text });
                        }
                    }
                }
            }
        }
        // An answer from a later state lacks what was deleted until then: that is no fault of its own.
        for (revision, keys) in lacking.into_iter().filter(|_| !too_new) {
            match self.other_part(witness, view, revision, &differing) {
                Some(part) => {
                    let text = format!(
                        "of what happened at @{revision}, {} is shown and {} is not\n  in:    {}{}",
                        part.escape_ascii(),
                        keys.iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>().join(", "),
                        self.witness_text(witness),
                        self.writer_text(self.writer_at(revision)),
                    );
                    self.violations.push(Violation { property: "split transaction", text });
                }
                None => {
                    keys.into_iter().for_each(|key| self.lacking.entry((key, revision)).or_default().push(witness));
                }
            }
        }
    }

    /// Everything that was found.
    pub fn finish(self) -> Vec<Violation> {
        let seen = if self.lacking.is_empty() { HashMap::new() } else { self.seen() };
        let mut violations = Vec::new();
        for ((key, revision), witnesses) in &self.lacking {
            let itself = seen.get(&(key.clone(), *revision)).map(|seen| seen.by);
            let gone = || self.seen_gone(key, *revision);
            let confirmed = itself.or_else(gone).or_else(|| self.seen_later(key, *revision, &seen));
            let (property, seen) = match confirmed {
                Some(by) => ("stale read", format!("\n  seen:  {}", self.witness_text(by))),
                None => ("lost write", String::new()),
            };
            let more = match witnesses.len() {
                1 => String::new(),
                count => format!(" and from {} more", count - 1),
            };
            let text = format!(
                "what happened to {} at @{revision} is missing from an answer{more}\n  in:    {}{}{seen}",
                key.escape_ascii(),
                self.witness_text(witnesses[0]),
                self.writer_text(self.writer_at(*revision)),
            );
            violations.push(Violation { property, text });
        }
        violations.extend(self.violations);
        violations
    }

    /// What a difference of one key means.
    fn key(
        &self,
        witness: Witness,
        view: i64,
        key: &Bytes,
        right: Option<&KeyValue>,
        shown: Option<&KeyValue>,
    ) -> Meaning {
        let writer = shown.and_then(|shown| self.index.writer(shown));
        let wrong = |property, why| Meaning::Wrong { property, why, other: writer };
        if let Some(shown) = shown {
            let Some(writer) = writer else { return wrong("phantom value", "nobody put this") };
            let op = &self.history.ops[writer];
            match (op.place(), &op.outcome) {
                (_, Outcome::Refused(_)) => return wrong("refused write", "a refused request took effect"),
                (Some(Place::Saw(_)), _) => return wrong("phantom value", "its request changed nothing"),
                (Some(Place::Took(took)), _) if took != shown.mod_revision => {
                    return wrong("repeated write", "its request took another revision");
                }
                _ => {}
            }
            // A transaction sees what it wrote itself.
            let own = match witness {
                Witness::Op(at) => {
                    matches!(self.history.ops[at].place(), Some(Place::Took(own)) if own == shown.mod_revision)
                }
                Witness::Snapshot(_) => false,
            };
            if shown.mod_revision > view && !own {
                return wrong(SNAPSHOT, "this was written later");
            }
        }
        if let (Some(right), Some(shown)) = (right, shown)
            && (&right.value, right.mod_revision) == (&shown.value, shown.mod_revision)
        {
            return match shown.version.cmp(&right.version) {
                std::cmp::Ordering::Less => wrong("lost write", MISCOUNTED),
                std::cmp::Ordering::Greater if shown.create_revision < right.create_revision => {
                    wrong("lost write", "the key was deleted before it was put again")
                }
                std::cmp::Ordering::Greater => wrong("repeated write", "the key has counted too many puts"),
                std::cmp::Ordering::Equal => wrong("wrong answer", "the record is not right"),
            };
        }
        let last = self.last_change(key, view);
        match last {
            Some((revision, _)) if shown.is_none_or(|shown| shown.mod_revision < revision) => Meaning::Lacks(revision),
            _ => wrong("wrong answer", "the record is not right"),
        }
    }

    /// The last change of a key up to a revision.
    fn last_change(&self, key: &Bytes, view: i64) -> Option<(i64, bool)> {
        let changes = self.changes.get(key)?;
        let after = changes.partition_point(|&(revision, _)| revision <= view);
        changes[..after].last().copied()
    }

    /// A key whose change at a revision the witness rightly shows, though it lacks that of other keys.
    fn other_part(&self, witness: Witness, view: i64, revision: i64, differing: &BTreeSet<Bytes>) -> Option<Bytes> {
        let (keys, _) = self.writes.get(&revision)?;
        let shown = |key: &&Bytes| {
            let current = self.last_change(key, view).is_some_and(|(last, _)| last == revision);
            current && !differing.contains(*key) && self.shows(witness, key)
        };
        keys.iter().find(shown).cloned()
    }

    /// Whether a witness tells what a key held.
    fn shows(&self, witness: Witness, key: &Bytes) -> bool {
        let Witness::Op(at) = witness else { return true };
        let op = &self.history.ops[at];
        let Outcome::Answered { response, .. } = &op.outcome else { return false };
        response.records().iter().any(|record| record.key == *key) || shows_absence(op, key)
    }

    /// Who has seen a record that could not be as it is without this change: a later one of the same life of the key,
    /// whose version counts the put, or the first one of the next life, which follows the delete.
    fn seen_later(&self, key: &Bytes, revision: i64, seen: &HashMap<(Bytes, i64), Seen>) -> Option<Witness> {
        let changes = self.changes.get(key)?;
        let at = changes.iter().position(|&(at, _)| at == revision)?;
        let put = changes[at].1;
        // Only this life of the key, or the one that follows at once: later ones say nothing.
        let life = changes[at + 1..].iter().take_while(|&&(_, there)| there);
        let seen = life.filter_map(|&(later, _)| seen.get(&(key.clone(), later)));
        let mut follows = seen.filter(|seen| {
            let born = if put { seen.create_revision <= revision } else { seen.create_revision > revision };
            born && !self.miscounted.contains(key)
        });
        follows.next().map(|seen| seen.by)
    }

    /// Who has seen each record.
    fn seen(&self) -> HashMap<(Bytes, i64), Seen> {
        let mut seen = HashMap::new();
        let mut add = |record: &KeyValue, by| {
            let create_revision = record.create_revision;
            seen.insert((record.key.clone(), record.mod_revision), Seen { create_revision, by });
        };
        for (revision, records) in &self.history.snapshots {
            records.iter().for_each(|record| add(record, Witness::Snapshot(*revision)));
        }
        for (at, op) in self.history.ops.iter().enumerate() {
            let Outcome::Answered { response, .. } = &op.outcome else { continue };
            response.records().into_iter().for_each(|record| add(record, Witness::Op(at)));
        }
        seen
    }

    /// Who has seen that a key was deleted at a revision.
    fn seen_gone(&self, key: &Bytes, revision: i64) -> Option<Witness> {
        let changes = self.changes.get(key)?;
        let at = changes.iter().position(|&change| change == (revision, false))?;
        let next = changes.get(at + 1).map_or(i64::MAX, |&(next, _)| next);
        let during = |view: i64| (revision..next).contains(&view);
        let snapshot = self
            .history
            .snapshots
            .iter()
            .find(|(view, records)| during(**view) && records.iter().all(|record| record.key != *key));
        let op = || {
            let absent =
                |op: &Op| matches!(op.place(), Some(Place::Saw(view)) if during(view)) && shows_absence(op, key);
            self.history.ops.iter().position(absent).map(Witness::Op)
        };
        snapshot.map(|(view, _)| Witness::Snapshot(*view)).or_else(op)
    }

    fn writer_at(&self, revision: i64) -> Option<usize> {
        self.writes.get(&revision)?.1
    }

    fn witness_text(&self, witness: Witness) -> String {
        match witness {
            Witness::Op(at) => op_text(&self.history.ops[at]),
            Witness::Snapshot(revision) => format!("the whole key space at @{revision}, read afterwards"),
        }
    }

    fn writer_text(&self, writer: Option<usize>) -> String {
        writer.map_or_else(String::new, |at| format!("\n  write: {}", op_text(&self.history.ops[at])))
    }
}

/// A record as somebody saw it.
struct Seen {
    create_revision: i64,
    by: Witness,
}

enum Meaning {
    /// The change at this revision is missing.
    Lacks(i64),
    /// Something that can be told at once; `other` wrote what was shown.
    Wrong { property: &'static str, why: &'static str, other: Option<usize> },
}

/// Whether an answer's ranges cover a key and do not show it.
fn shows_absence(op: &Op, key: &Bytes) -> bool {
    op.ranges().iter().any(|(request, response)| {
        let whole = !request.count_only && !response.more;
        let asked = covers(&request.key, &request.range_end, key);
        whole && asked && response.kvs.iter().all(|record| record.key != *key)
    })
}
