//! Two regions become one: what a merge writes beside the host's rows, and what is true of the data afterwards.
//!
//! ```text
//!              events of the target ────┐                   ┌──── events of the merged region, under the target's id
//!                                       ├── M: both marks ──┤
//!              events of the source ────┘  (dropped)        └──── below M: by the keys of the range and their versions
//! ```
//!
//! `M` is the newest revision that either side has applied. Events are found by the region that wrote them, so below `M` those
//! of the target would show half of what the merged range has seen: the mark says so, in the batch that merges. Live
//! records, history, records of leases and the index of attached keys lie at their keys, and are the target's with the range.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::id::Revision;
use braid_proto::pb::Region;
use braid_store_core::view::Damaged;
use rocksdb::{DB, WriteBatch};

use super::boundary::Boundary;
use super::key::{EVENTS, StoredKey};
use super::locks::Locks;
use super::options::data_ranges;
use super::recent::Recent;
use super::region::{RegionData, events_of};
use super::scan::Reader;

/// Adds to `batch` what a merge of `source` into `target` makes of the engine's rows. Both are as they were before it, and
/// nothing of either is applied meanwhile.
///
/// # Errors
/// The rows cannot be read, or keys are locked: the merge must not happen.
pub fn merge(
    db: &DB,
    boundary: &Boundary,
    target: &Region,
    source: &Region,
    batch: &mut WriteBatch,
) -> Result<(), Damaged> {
    let mut newest = Revision::INITIAL.0;
    for region in [target, source] {
        if !Locks::read(db, region)?.is_empty() {
            return Err(Damaged(format!("{} has locks or records of transactions in a merge", region.region_id())));
        }
        // Both are open, so marks speak of whatever data there is.
        let events = events_of(db, region, boundary, &mut || None)?;
        newest = newest.max(events.newest).max(events.mark);
    }
    let events = Reader::now(db).family(EVENTS);
    for range in data_ranges(source).into_iter().filter(|range| range.cf == EVENTS) {
        match range.end.is_empty() {
            true => return Err(Damaged(format!("{} has the last of all ids", source.region_id()))),
            false => batch.delete_range_cf(events, range.start, range.end),
        }
    }
    let region = target.region_id();
    for mark in [StoredKey::EventsMark { region }, StoredKey::AppliedMark { region }] {
        batch.put_cf(events, mark.encode(), newest.to_be_bytes());
    }
    Ok(())
}

impl RegionData {
    /// The region has become `merged`, and the batch of [`merge`] is written. `source`: the data of the one that it has taken
    /// in, if that was open. Nothing of either is applied meanwhile.
    ///
    /// # Errors
    /// The marks cannot be read.
    pub fn absorb(&self, merged: &Region, source: Option<&Self>) -> Result<(), Damaged> {
        self.sound()?;
        let events = events_of(&self.db, merged, &self.boundary, &mut || None)?;
        let newest = events.newest.max(events.mark);
        // Of keys that were here before a split, and have been elsewhere since, something may be remembered that is not true.
        self.newest.forget();
        // What readers look at afterwards rises before they can find the source's records through this region.
        self.ceiling.fetch_max(newest, Ordering::SeqCst);
        if let Some(source) = source {
            let theirs = source.written.lock().clone();
            self.written.lock().absorb(&theirs);
        }
        let mut inner = self.inner.write();
        inner.deltas = None;
        let published = Arc::make_mut(&mut inner.published);
        published.range = merged.range();
        published.applied = published.applied.max(newest);
        published.events_mark = published.events_mark.max(newest);
        published.recent = Recent::new(newest);
        published.counts = None;
        Ok(())
    }
}
