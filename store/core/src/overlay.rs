//! The in-flight writes of one leader in one term: evaluated, not applied yet (rules O1, O5, O6).
//!
//! 1. The evaluator pushes what a request changed, under a rising `seq`. Its revision is unknown: a placeholder.
//! 2. Its number arrives: [`Overlay::resolve`] puts it wherever the placeholder stood, also into later versions of the
//!    same life of the key.
//! 3. Its entry is applied: [`Overlay::prune`] drops it. Until then it hides the applied data, which may already be the
//!    same. Only the evaluator prunes, so nothing can disappear between a look here and a look below.
//!
//! ```text
//!  keys:   "a" ─► [seq 4 put] [seq 9 delete]      newest last; the newest is what evaluations see
//!          "b" ─► [seq 9 put]
//!  items:  [seq 4 @17: a] [seq 9 @?: a b]         by seq; what resolve, prune and truncate follow
//! ```
//!
//! Bounded by the pipeline, which bounds what is in flight. One key and one write cost no allocation beyond the maps'.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use braid_proto::key::KeyRange;
use braid_proto::pb::Change;
use bytes::Bytes;
use smallvec::SmallVec;

use crate::placeholder::{OWN, PENDING, pending};
use crate::record::Record;

#[cfg(test)]
mod tests;

/// What one in-flight write made of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The write.
    pub seq: u64,
    /// Its revision, or its placeholder.
    pub revision: i64,
    /// The record; `None`: the key is deleted.
    pub record: Option<Record>,
}

#[derive(Debug)]
struct Item {
    seq: u64,
    /// Newest revision heard of before its number was asked for: its number is greater. Exclusive.
    floor: i64,
    numbered: bool,
    keys: SmallVec<[Bytes; 1]>,
}

/// In-flight writes. See the module's picture.
#[derive(Debug, Default)]
pub struct Overlay {
    keys: BTreeMap<Bytes, SmallVec<[Version; 1]>>,
    items: VecDeque<Item>,
}

impl Overlay {
    /// Adds what the write `seq` changes. `heard`: newest revision heard of by now, before its number is asked for; the
    /// newest one at the time of a later comparison would not do, its number may have been given out before that.
    ///
    /// # Panics
    /// If `seq` is not greater than every seq pushed before.
    pub fn push(&mut self, seq: u64, heard: i64, changes: &[Change]) {
        let newest = self.items.back().map_or(0, |item| item.seq);
        assert!(seq > newest, "write {seq} comes after write {newest}");
        let own = |revision: i64| if revision == OWN { pending(seq) } else { revision };
        let mut keys = SmallVec::with_capacity(changes.len());
        for change in changes {
            let record = (!change.delete).then(|| Record {
                create_revision: own(change.create_revision),
                mod_revision: pending(seq),
                version: change.version,
                lease: change.lease,
                value: change.value.clone(),
            });
            let version = Version { seq, revision: pending(seq), record };
            let versions = self.keys.entry(change.key.clone()).or_default();
            match versions.last_mut().filter(|last| last.seq == seq) {
                Some(last) => *last = version,
                None => {
                    versions.push(version);
                    keys.push(change.key.clone());
                }
            }
        }
        self.items.push_back(Item { seq, floor: heard, numbered: false, keys });
    }

    /// Adds what a transaction that has happened at `revision` changes here; [`Self::push`] says the rest.
    pub fn push_known(&mut self, seq: u64, revision: i64, changes: &[Change]) {
        self.push(seq, revision - 1, changes);
        self.resolve(seq, revision);
    }

    /// The number of the write `seq` is `revision`.
    pub fn resolve(&mut self, seq: u64, revision: i64) {
        let Some(position) = self.position(seq) else { return };
        let item = &mut self.items[position];
        item.numbered = true;
        for key in &item.keys {
            let Some(versions) = self.keys.get_mut(key) else { continue };
            let first = versions.partition_point(|version| version.seq < seq);
            for version in &mut versions[first..] {
                if version.seq == seq {
                    version.revision = revision;
                }
                let Some(record) = &mut version.record else { break };
                if record.mod_revision == pending(seq) {
                    record.mod_revision = revision;
                }
                if record.create_revision != pending(seq) {
                    // An older life that this write only updated; later versions of it say the same.
                    break;
                }
                record.create_revision = revision;
            }
        }
    }

    /// Everything up to `seq`, included, is applied.
    pub fn prune(&mut self, seq: u64) {
        while self.items.front().is_some_and(|item| item.seq <= seq) {
            let Some(item) = self.items.pop_front() else { break };
            assert!(item.numbered, "write {} is applied without a number", item.seq);
            for key in &item.keys {
                self.keep(key, |version| version.seq > seq);
            }
        }
    }

    /// Takes back `first` and everything after it: it certainly never happens.
    pub fn truncate(&mut self, first: u64) {
        while self.items.back().is_some_and(|item| item.seq >= first) {
            let Some(item) = self.items.pop_back() else { break };
            for key in &item.keys {
                self.keep(key, |version| version.seq < first);
            }
        }
    }

    /// The newest version of `key`, if a write to it is in flight.
    pub fn newest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key).and_then(|versions| versions.last())
    }

    /// The newest version of every key of `range` that has one, in key order.
    pub fn range<'a>(&'a self, range: &KeyRange) -> impl Iterator<Item = (&'a Bytes, &'a Version)> + use<'a> {
        self.versions(range).filter_map(|(key, versions)| versions.last().map(|newest| (key, newest)))
    }

    /// The newest in-flight write that changes a key of `range`.
    pub fn touches(&self, range: &KeyRange) -> Option<u64> {
        let newest = self.items.back()?.seq;
        let mut found = None;
        for (_, version) in self.range(range) {
            found = found.max(Some(version.seq));
            if found == Some(newest) {
                break;
            }
        }
        found
    }

    /// The newest in-flight write that changes a key of `range` at or below `revision`, or may: its number is unknown.
    pub fn touches_at(&self, range: &KeyRange, revision: i64) -> Option<u64> {
        let matters = |version: &&Version| version.revision <= revision || version.revision >= PENDING;
        self.versions(range).filter_map(|(_, versions)| Some(versions.iter().rev().find(matters)?.seq)).max()
    }

    /// What the number of the write `seq`, which is not known yet, is greater than.
    ///
    /// # Panics
    /// If `seq` is not in flight: its number was known before it was applied, and its placeholders replaced.
    pub fn floor(&self, seq: u64) -> i64 {
        let position = self.position(seq);
        position.map(|position| self.items[position].floor).unwrap_or_else(|| panic!("write {seq} is not in flight"))
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn position(&self, seq: u64) -> Option<usize> {
        self.items.binary_search_by_key(&seq, |item| item.seq).ok()
    }

    fn versions<'a>(
        &'a self,
        range: &KeyRange,
    ) -> impl Iterator<Item = (&'a Bytes, &'a SmallVec<[Version; 1]>)> + use<'a> {
        let start = Bound::Included(&range.start[..]);
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end[..]) };
        // `BTreeMap::range` panics on a range that ends before it starts.
        (!range.is_empty()).then(|| self.keys.range::<[u8], _>((start, end))).into_iter().flatten()
    }

    /// Keeps the versions of `key` that `wanted` names. A hot key's versions go in one pass, not one by one.
    fn keep(&mut self, key: &Bytes, wanted: impl Fn(&Version) -> bool) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        if versions.first().is_some_and(&wanted) && versions.last().is_some_and(&wanted) {
            return;
        }
        versions.retain(|version| wanted(version));
        if versions.is_empty() {
            self.keys.remove(key);
        }
    }
}
