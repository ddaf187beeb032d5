//! What changed in a region after a revision: from memory if it is recent, else from the events on disk.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_store_core::view::Damaged;
use bytes::Bytes;
use rocksdb::ReadOptions;

use super::key::{self, EVENTS};
use super::snapshot::Snapshot;
use super::unreadable;

/// What a change did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    /// The key was absent and is live now.
    Created = 0,
    /// The key was live and has a new record.
    Updated = 1,
    /// The key was live and is absent now.
    Deleted = 2,
}

impl ChangeKind {
    /// How many more keys are live after it.
    pub fn delta(self) -> i64 {
        match self {
            Self::Created => 1,
            Self::Updated => 0,
            Self::Deleted => -1,
        }
    }

    fn decode(byte: u8) -> Option<Self> {
        [Self::Created, Self::Updated, Self::Deleted].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One applied change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Revision of the transaction.
    pub revision: i64,
    /// Its place among the transaction's changes.
    pub sub: u32,
    /// What it did.
    pub kind: ChangeKind,
    /// Internal key.
    pub key: &'a [u8],
}

impl<'a> Change<'a> {
    /// Replaces `out` by the value of the change's event row.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(self.kind as u8);
        out.extend_from_slice(self.key);
    }

    /// The change behind an event row.
    pub(super) fn decode(row: &[u8], value: &'a [u8]) -> Result<Self, Damaged> {
        let damaged = || Damaged(format!("event {row:02x?} cannot be read: its value is {value:02x?}"));
        let (_, revision, sub) = key::split_event_key(row).ok_or_else(damaged)?;
        let (kind, key) = value.split_first().ok_or_else(damaged)?;
        Ok(Self { revision, sub, kind: ChangeKind::decode(*kind).ok_or_else(damaged)?, key })
    }
}

/// Whether a walk over changes showed all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// All of them, or up to where the visitor stopped.
    Complete,
    /// Some of them are not recorded, or not any more; what was visited does not count. Records above this revision would
    /// be complete.
    CompleteAbove(i64),
}

impl Snapshot {
    /// Visits what this region applied above revision `after`, also to keys that a split has taken away from it since.
    /// Within a revision in order of sub; revisions in order, but for transactions over several regions, which may be
    /// applied late.
    ///
    /// # Errors
    /// The events cannot be read.
    pub fn changes_after(
        &self,
        after: i64,
        visit: &mut dyn FnMut(Change<'_>) -> ControlFlow<()>,
    ) -> Result<Completeness, Damaged> {
        let published = self.published();
        let mark = published.events_mark.max(self.boundary() - 1);
        if after < mark {
            return Ok(Completeness::CompleteAbove(mark));
        }
        if published.applied <= after {
            return Ok(Completeness::Complete);
        }
        if published.recent.complete_above() <= after {
            _ = published.recent.visit_after(after, visit);
            return Ok(Completeness::Complete);
        }
        self.events_after(after, visit)?;
        // The filter has no regard for readers: what it may have dropped meanwhile must not be missed silently (rule C2).
        let boundary = self.boundary();
        if after < boundary - 1 { Ok(Completeness::CompleteAbove(boundary - 1)) } else { Ok(Completeness::Complete) }
    }

    fn events_after(&self, after: i64, visit: &mut dyn FnMut(Change<'_>) -> ControlFlow<()>) -> Result<(), Damaged> {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        key::event_key(&mut start, self.region(), after.max(0) + 1, 0);
        // Behind every event of the region: revisions never use their highest bit.
        key::event_key(&mut end, self.region(), -1, 0);
        let reader = self.reader();
        let mut options: ReadOptions = reader.options();
        options.set_iterate_upper_bound(end);
        let mut rows = reader.db.raw_iterator_cf_opt(reader.family(EVENTS), options);
        rows.seek(start);
        while let Some((row, value)) = rows.item() {
            if visit(Change::decode(row, value)?).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(EVENTS, &error))
    }

    /// The keys of `range` that changed above `after`; `None` if these are more than `most`, or not recorded.
    pub(super) fn changed_keys(
        &self,
        range: &KeyRange,
        after: i64,
        most: usize,
    ) -> Result<Option<BTreeSet<Bytes>>, Damaged> {
        let mut keys = BTreeSet::new();
        let mut budget = visits(most);
        let complete = self.changes_after(after, &mut |change| {
            budget -= 1;
            if range.contains(change.key) && !keys.contains(change.key) {
                keys.insert(Bytes::copy_from_slice(change.key));
            }
            if keys.len() > most || budget == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let all = complete == Completeness::Complete && keys.len() <= most && budget > 0;
        Ok(all.then_some(keys))
    }

    /// How many more keys of `range` are live now than were at `after`; `None` if more than `most` changes lie between,
    /// or not all are recorded.
    pub(super) fn growth(&self, range: &KeyRange, after: i64, most: usize) -> Result<Option<i64>, Damaged> {
        let mut growth = 0;
        let mut budget = most.saturating_add(1);
        let complete = self.changes_after(after, &mut |change| {
            budget -= 1;
            if range.contains(change.key) {
                growth += change.kind.delta();
            }
            if budget == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok((complete == Completeness::Complete && budget > 0).then_some(growth))
    }
}

/// Changes to look at for `most` different keys of interest: hot keys and keys outside the range make more changes than
/// keys. Beyond it, walking both column families is cheaper.
fn visits(most: usize) -> usize {
    most.saturating_mul(4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_went() {
        for kind in [ChangeKind::Created, ChangeKind::Updated, ChangeKind::Deleted] {
            let change = Change { revision: 300, sub: 7, kind, key: b" k" };
            let (mut row, mut value) = (Vec::new(), Vec::new());
            key::event_key(&mut row, braid_proto::id::RegionId(4), change.revision, change.sub);
            change.encode(&mut value);
            assert_eq!(Change::decode(&row, &value), Ok(change));
            assert!(Change::decode(&row, &[]).is_err());
            assert!(Change::decode(&row, &[3, b'k']).is_err());
            assert!(Change::decode(&row[1..], &value).is_err());
        }
    }
}
