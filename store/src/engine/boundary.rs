//! The compaction boundary of a store: below it history may be gone.
//!
//! ```text
//!  raise(C) ──► row in `events`, synced ──► value = C ──► filters of compactions that begin from now on
//!                                             ▲
//!  reader:  read rows at R ... then ──────────┘  R < value? what it read may be incomplete
//! ```
//!
//! - What a filter drops is decided row by row: a version whose successor came below the boundary, an event below it. No
//!   row's fate depends on another, so it does not matter which files a compaction sees, and no deletion leaves a marker
//!   that could go before what it hides (rule C2). Everything from the boundary on stays, so a watch that starts there has
//!   its events and the values beside them.
//! - The boundary is durable before any filter uses it (rule C1). It is one number for the whole cluster, so that raising it
//!   early, as a raft snapshot from another store does, is harmless; it never falls.
//! - Filters ignore RocksDB's snapshots. Readers compare with the boundary after their last read, not before (rule C2).

use std::ffi::CStr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use braid_store_core::view::Damaged;
use parking_lot::Mutex;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{DB, WriteOptions};

use super::key::{self, EVENTS, StoredKey};
use super::scan::superseded_at;
use super::unreadable;

/// The boundary of one store.
#[derive(Default)]
pub struct Boundary {
    /// Inclusive: reads at it succeed. Durable before it is here. Rises only; 0 until something has been compacted.
    value: Arc<AtomicI64>,
    /// See [`Self::dropped`].
    dropped: AtomicI64,
    /// Set once, when the database is open.
    db: OnceLock<Arc<DB>>,
    /// Held while the row is written.
    writing: Mutex<()>,
    /// Rows of live records that the store's regions have written since the start: see `size`. No matter of the boundary, but
    /// this is what all regions of a store share.
    written: AtomicU64,
}

impl Boundary {
    /// Reads what `db` says. Before this the boundary is 0 and nothing is dropped.
    ///
    /// # Errors
    /// The row cannot be read.
    pub fn open(&self, db: &Arc<DB>) -> Result<(), Damaged> {
        let family = super::scan::Reader::now(db).family(EVENTS);
        let found = db.get_cf(family, StoredKey::Boundary.encode()).map_err(|error| unreadable(EVENTS, &error))?;
        if let Some(row) = found {
            let (value, dropped) =
                decode(&row).ok_or_else(|| Damaged(format!("the compaction boundary is damaged: {row:02x?}")))?;
            self.value.fetch_max(value, Ordering::SeqCst);
            self.dropped.fetch_max(dropped, Ordering::SeqCst);
        }
        _ = self.db.set(Arc::clone(db));
        Ok(())
    }

    /// A region writes `rows` of live records; returns the position of the last of them among all that the store's regions
    /// have written.
    pub(super) fn wrote(&self, rows: u64) -> u64 {
        self.written.fetch_add(rows, Ordering::Relaxed) + rows
    }

    /// Rows of live records that the store's regions have written since the start.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The boundary in use. Readers ask after their last read.
    pub fn get(&self) -> i64 {
        self.value.load(Ordering::SeqCst)
    }

    /// Raises it, durably; a lower value changes nothing. Returns whether it rose.
    ///
    /// # Errors
    /// It cannot be written, and is as before then.
    ///
    /// # Panics
    /// If the database is not open yet.
    pub fn raise(&self, to: i64) -> Result<bool, Damaged> {
        let _one_writes = self.writing.lock();
        if to <= self.get() {
            return Ok(false);
        }
        self.write(to, self.dropped(), true)?;
        // CRASH: durable and not in use. Safe: it will be in use after the start.
        self.value.store(to, Ordering::SeqCst);
        Ok(true)
    }

    /// The boundary for which all history has been gone through: what was here then and lay below it is gone.
    pub fn dropped(&self) -> i64 {
        self.dropped.load(Ordering::SeqCst)
    }

    /// All history has been gone through for `below`. Written without haste: lost, it is gone through once more.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_dropped(&self, below: i64) -> Result<(), Damaged> {
        let _one_writes = self.writing.lock();
        self.write(self.get(), below, false)?;
        self.dropped.fetch_max(below, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, value: i64, dropped: i64, sync: bool) -> Result<(), Damaged> {
        let db = self.db.get().expect("the database is opened before the boundary is raised");
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        let row = [value.to_be_bytes(), dropped.to_be_bytes()].concat();
        let family = super::scan::Reader::now(db).family(EVENTS);
        db.put_cf_opt(family, StoredKey::Boundary.encode(), row, &options)
            .map_err(|error| Damaged(format!("the compaction boundary cannot be written: {error}")))
    }

    /// What drops history below it, for the options of a column family.
    pub(super) fn filter(&self, family: &'static str) -> Filters {
        let judge = if family == EVENTS { event_is_gone } else { version_is_gone };
        Filters { value: Arc::clone(&self.value), family, judge }
    }
}

fn decode(row: &[u8]) -> Option<(i64, i64)> {
    let (value, dropped) = row.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*value), i64::from_be_bytes(dropped.try_into().ok()?)))
}

/// Whether a row may go, given its key, its value and the boundary.
type Judge = fn(&[u8], &[u8], i64) -> bool;

/// A version is needed by reads below the revision that superseded it.
fn version_is_gone(_: &[u8], value: &[u8], boundary: i64) -> bool {
    // What cannot be read stays, so that whoever needs it can say so.
    superseded_at(&mut &*value).is_some_and(|revision| revision < boundary)
}

/// Marks are no events and stay.
fn event_is_gone(row: &[u8], _: &[u8], boundary: i64) -> bool {
    key::split_event_key(row).is_some_and(|(_, revision, _)| revision < boundary)
}

/// Makes a filter for each compaction.
pub(super) struct Filters {
    value: Arc<AtomicI64>,
    family: &'static str,
    judge: Judge,
}

impl CompactionFilterFactory for Filters {
    type Filter = Filter;

    fn create(&mut self, _: CompactionFilterContext) -> Filter {
        let boundary = self.value.load(Ordering::SeqCst);
        Filter { boundary, family: self.family, judge: self.judge, dropped: 0 }
    }

    fn name(&self) -> &CStr {
        c"braid.compaction"
    }
}

/// Drops what lies below a boundary, in one compaction.
pub(super) struct Filter {
    boundary: i64,
    family: &'static str,
    judge: Judge,
    dropped: u64,
}

impl CompactionFilter for Filter {
    fn filter(&mut self, _: u32, key: &[u8], value: &[u8]) -> Decision {
        if !(self.judge)(key, value, self.boundary) {
            return Decision::Keep;
        }
        self.dropped += 1;
        Decision::Remove
    }

    fn name(&self) -> &CStr {
        c"braid.compaction"
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if self.dropped > 0 {
            metrics::counter!("braid_history_rows_dropped_total", "family" => self.family).increment(self.dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_read_or_a_watch_from_the_boundary_on_needs_stays() {
        let version = |superseded: u64| {
            let mut value = Vec::new();
            braid_store_core::record::put_varint(&mut value, superseded);
            braid_store_core::record::put_varint(&mut value, 0);
            value.extend_from_slice(b"record");
            value
        };
        assert!(version_is_gone(b"", &version(299), 300));
        assert!(!version_is_gone(b"", &version(300), 300), "the value before the event at the boundary");
        assert!(!version_is_gone(b"", &version(301), 300));
        assert!(!version_is_gone(b"", b"", 300), "a damaged row");
        let region = braid_proto::id::RegionId(7);
        let event = |revision| StoredKey::Event { region, revision, sub: 3 }.encode();
        assert!(event_is_gone(&event(299), b"", 300));
        assert!(!event_is_gone(&event(300), b"", 300));
        for mark in [StoredKey::EventsMark { region }, StoredKey::AppliedMark { region }, StoredKey::Boundary] {
            assert!(!event_is_gone(&mark.encode(), b"", i64::MAX), "{mark:?}");
        }
    }
}
