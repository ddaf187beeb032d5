//! Hashes what reads at a range of revisions show of a range of keys.
//!
//! 1. Walk live records and history of one snapshot side by side, in key order, newest version first.
//! 2. Skip what no read in the window shows ([`Window`]): rows that are dropped on one replica and still there on another
//!    are among those, so they do not matter.
//! 3. Afterwards compare with the boundary in use: beyond the window's, what was needed may have been dropped meanwhile.
//!
//! Memory is that of one row. Nothing that is read takes room in the block cache.

use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_store_core::hash::{RangeHash, Window};
use braid_store_core::record::Head;
use braid_store_core::view::Damaged;
use thiserror::Error;

use super::key::{self, HISTORY, LATEST};
use super::scan::{decode_live, superseded_by};
use super::snapshot::Snapshot;
use super::unreadable;

/// Rows between two questions whether to go on.
const ROWS_BETWEEN_LOOKS: usize = 1_024;

/// Why there is no hash.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unhashed {
    /// History that it covers may be dropped: the store's boundary has passed the caller's.
    #[error("the revision has been compacted")]
    Compacted,
    /// Whoever wanted it does not wait any more.
    #[error("nobody waits for the hash any more")]
    GivenUp,
    /// The data cannot be read.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl Snapshot {
    /// The hash of what reads at the revisions from `boundary` to `revision` show of `range`. Everything up to `revision`
    /// is applied. Asks `go_on` from time to time.
    ///
    /// # Errors
    /// See [`Unhashed`].
    pub fn hash(
        &self,
        range: &KeyRange,
        boundary: i64,
        revision: i64,
        go_on: &dyn Fn() -> bool,
    ) -> Result<RangeHash, Unhashed> {
        let window = Window::new(boundary, revision).ok_or(Unhashed::Compacted)?;
        let mut hash = RangeHash::default();
        let mut newest_key = Vec::new();
        let mut rows = 0;
        let stopped = self.walk_all(range, &mut |version| {
            rows += 1;
            if rows % ROWS_BETWEEN_LOOKS == 0 && !go_on() {
                return Ok(ControlFlow::Break(()));
            }
            let Version { key, made, superseded, record, .. } = version;
            let Some(end) = window.end_of(made.0, superseded.0) else { return Ok(ControlFlow::Continue(())) };
            let (head, value) = Head::decode(record)?;
            if hash.keys == 0 || newest_key != key {
                hash.keys += 1;
                newest_key.clear();
                newest_key.extend_from_slice(key);
            }
            hash.add(key, &head, value, end);
            Ok(ControlFlow::Continue(()))
        })?;
        if stopped.is_break() {
            return Err(Unhashed::GivenUp);
        }
        if self.boundary() > boundary { Err(Unhashed::Compacted) } else { Ok(hash) }
    }

    /// Visits every row of `range`, by key and newest first.
    pub(super) fn walk_all(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(Version<'_>) -> Result<ControlFlow<()>, Damaged>,
    ) -> Result<ControlFlow<()>, Damaged> {
        let reader = self.reader();
        let mut live = reader.rows_of_latest(range, false);
        let mut old = reader.rows_of_history(range, false);
        let mut old_key = Vec::new();
        loop {
            let old_row = match old.item() {
                Some((row, value)) => {
                    let made = key::split_history_key(row, &mut old_key)?;
                    Some((made, value))
                }
                None => None,
            };
            // The live record of a key is newer than all of its history.
            let live_row = live.item().filter(|(key, _)| old_row.is_none() || *key <= &old_key[..]);
            let stop = match (live_row, old_row) {
                (Some((key, value)), _) => {
                    let found = decode_live(key, value)?;
                    let made = (found.head.mod_revision, found.sub);
                    let stop = visit(Version { key, made, superseded: (0, 0), record: found.record })?;
                    live.next();
                    stop
                }
                (None, Some((made, mut record))) => {
                    let superseded = superseded_by(&mut record).filter(|(revision, _)| *revision > 0);
                    let superseded = superseded.ok_or_else(|| {
                        Damaged(format!("the version of {old_key:02x?} at @{} does not say when it ended", made.0))
                    })?;
                    let stop = visit(Version { key: &old_key, made, superseded, record })?;
                    old.next();
                    stop
                }
                (None, None) => break,
            };
            if stop.is_break() {
                return Ok(stop);
            }
        }
        live.status().map_err(|error| unreadable(LATEST, &error))?;
        old.status().map_err(|error| unreadable(HISTORY, &error))?;
        Ok(ControlFlow::Continue(()))
    }
}

/// One row.
pub(super) struct Version<'a> {
    pub(super) key: &'a [u8],
    /// Revision and sub of the put that made it.
    pub(super) made: (i64, u32),
    /// Revision and sub of the change that superseded it; revision 0: it is live.
    pub(super) superseded: (i64, u32),
    pub(super) record: &'a [u8],
}
