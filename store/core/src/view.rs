//! What an evaluation sees: the in-flight writes of this leader over the data that is applied.

use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use bytes::Bytes;
use thiserror::Error;

use crate::overlay::Overlay;
use crate::record::Record;

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;

/// Stored data that cannot be read: an I/O error, a bad checksum, bytes that mean nothing. The text says which.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Damaged(pub String);

/// What is known of a live key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its record.
    pub record: Record,
    /// The row that the record was read from, if a file had to be read for it; else empty.
    pub row: Bytes,
}

impl From<Record> for Found {
    fn from(record: Record) -> Self {
        Self { record, row: Bytes::new() }
    }
}

/// Sees the live keys of a range one after the other, in key order, and may stop the walk.
pub type Visit<'a> = &'a mut dyn FnMut(&Bytes, &Record) -> ControlFlow<()>;

/// Applied data of one region. Keys are internal keys.
///
/// Calls may come from different moments, as long as what happened in between was applied from the overlay that lies
/// above: the overlay hides every such key. Each single call sees one consistent state.
pub trait BaseView {
    /// The live record of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged>;

    /// The live record of `key`, and where it comes from.
    fn find(&self, key: &[u8]) -> Result<Option<Found>, Damaged> {
        Ok(self.get(key)?.map(Found::from))
    }

    /// The live records of `range`.
    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged>;

    /// How many keys of `range` are live, those of `except` not counted. `except` is sorted and lies in `range`.
    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged>;

    /// The records of `range` as they were at `revision`, which everything that touches `range` is applied up to.
    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged>;

    /// How many keys of `range` were live at `revision`.
    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged>;

    /// The live records of `range` that have `lease` attached, in key order.
    fn attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.scan(range, &mut |key, record| match record.lease == lease {
            true => visit(key, record),
            false => ControlFlow::Continue(()),
        })
    }

    /// Below this, history may be gone, also while it is read: to be asked after the last read at an older revision
    /// (rule C2). 0: nothing is ever dropped.
    fn boundary(&self) -> i64 {
        0
    }
}

/// The overlay over the base: where both know a key, the overlay is right (rule O6).
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// In-flight writes.
    pub overlay: &'a Overlay,
    /// Applied data.
    pub base: &'a dyn BaseView,
}

impl View<'_> {
    /// The live record of `key`, and where it comes from.
    pub fn find(&self, key: &[u8]) -> Result<Option<Found>, Damaged> {
        match self.overlay.newest(key) {
            Some(version) => Ok(version.record.clone().map(Found::from)),
            None => self.base.find(key),
        }
    }

    /// The live records of `range`, in key order.
    pub fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        if range.is_single() {
            // To begin a walk costs more than to look.
            if let Some(found) = self.find(&range.start)? {
                _ = visit(&range.start, &found.record);
            }
            return Ok(());
        }
        if self.overlay.touches(range).is_none() {
            return self.base.scan(range, visit);
        }
        let upper = self.overlay.range(range).map(|(key, version)| (key, version.record.as_ref()));
        merge(upper, &mut |visit| self.base.scan(range, visit), visit)
    }

    /// The live records of `range` that have `lease` attached, in key order.
    pub fn attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        let has = |record: &&Record| record.lease == lease;
        let upper = self.overlay.range(range).map(|(key, version)| (key, version.record.as_ref().filter(has)));
        merge(upper, &mut |visit| self.base.attached(lease, range, visit), visit)
    }

    /// What a wipe of `range` deletes: all live records, or, where `lease` is not 0, those that have it attached.
    pub fn wiped(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        if lease == 0 { self.scan(range, visit) } else { self.attached(lease, range, visit) }
    }

    /// How many keys of `range` are live.
    pub fn count(&self, range: &KeyRange) -> Result<u64, Damaged> {
        let mut hidden: Vec<&[u8]> = Vec::new();
        let mut live = 0;
        for (key, version) in self.overlay.range(range) {
            hidden.push(key);
            live += u64::from(version.record.is_some());
        }
        Ok(self.base.count(range, &hidden)? + live)
    }
}

/// A walk over the keys below, handed to whoever visits them.
pub(crate) type Walk<'a> = &'a mut dyn FnMut(Visit<'_>) -> Result<(), Damaged>;

/// Walks `lower` with `upper` laid over it. Both in key order; `None` in `upper` hides the key.
pub(crate) fn merge<'u>(
    upper: impl Iterator<Item = (&'u Bytes, Option<&'u Record>)>,
    lower: Walk<'_>,
    visit: Visit<'_>,
) -> Result<(), Damaged> {
    let mut upper = upper.peekable();
    let mut stopped = false;
    lower(&mut |key, record| {
        while let Some((above, over)) = upper.next_if(|(above, _)| *above <= key) {
            let flow = over.map_or(ControlFlow::Continue(()), |over| visit(above, over));
            if flow.is_break() {
                stopped = true;
                return flow;
            }
            if above == key {
                return ControlFlow::Continue(());
            }
        }
        let flow = visit(key, record);
        stopped = flow.is_break();
        flow
    })?;
    if !stopped {
        for (key, over) in upper {
            if over.is_some_and(|over| visit(key, over).is_break()) {
                break;
            }
        }
    }
    Ok(())
}
