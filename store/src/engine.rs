//! etcd's multi-version data in RocksDB: the regions of a store share one database.
//!
//! ```text
//!  put k @9 (k was @5)                       latest    k           ─► @9            what is live now
//!    1. read latest[k] ────── superseded     history   k, @5       ─► until @9,     what was live once, newest first
//!                                                                     value at @5
//!    2. one write batch ─────────────────►   events    region, @9  ─► k, updated    what happened, in revision order
//! ```
//!
//! - The newest version of each live key has a column family to itself: reading or listing now never meets an old version,
//!   however many there are. A version moves to `history` when it is superseded; only a superseding write reads before it
//!   writes.
//! - A read at R looks at `latest` first: a record that is not newer than R is the answer. Only what has changed since R
//!   is looked up in `history`. The few changes between a bound and its read come from a memory ring (`recent`).
//! - The records that were written last are in memory too (`newest`).
//! - Counts come from buckets in memory ([`braid_store_core::buckets`]), corrected by the changes after R.
//! - Data and apply state are one write batch; what readers need to know beside the data is published under the same lock,
//!   so a snapshot of one is a snapshot of both (`region`).
//! - A row of history says from when to when it was true, so each can be dropped by what it says itself, when RocksDB
//!   compacts (`boundary`). A delete leaves no row that hides older ones. Readers compare with the boundary afterwards.
//! - Records of leases lie beside the data, and so does an index of the live records that have one (`leases`, `attached`).
//!
//! Deliberately absent: numbers, leadership, what is in flight; retries of failed reads (damage is reported, not hidden).

mod apply;
mod attached;
mod boundary;
mod changes;
mod counts;
mod events;
mod hash;
mod key;
mod leases;
mod locks;
mod merge;
mod newest;
mod options;
mod point;
mod pressure;
mod recent;
mod region;
mod scan;
mod size;
mod snapshot;
#[cfg(test)]
mod tests;

pub use apply::Superseded;
pub use attached::{collect, forget};
pub use boundary::Boundary;
pub use changes::{Change, ChangeKind, Completeness};
pub use events::{Cursor, Page, PastEvent, known, shown};
pub use hash::Unhashed;
pub use key::{ATTACHED, EVENTS, HISTORY, LATEST, LEASES, LOCKS, StoredKey};
pub use merge::merge;
pub use newest::NewestRecords;
pub use options::{EngineOptions, column_families, data_ranges};
pub use point::Unread;
pub use pressure::{Debt, LEVEL0_FULL, LEVEL0_SLOW, Pressure};
pub use region::RegionData;
pub use size::NoHalf;
pub use snapshot::Snapshot;

use braid_store_core::view::Damaged;
use rocksdb::DB;

/// Bytes of the newest writes, which lie in memory and not yet in files: a quota counts them too.
pub fn memtable_bytes(db: &DB) -> u64 {
    let families = [LATEST, HISTORY, EVENTS, ATTACHED].into_iter().filter_map(|family| db.cf_handle(family));
    families
        .filter_map(|family| db.property_int_value_cf(family, "rocksdb.cur-size-all-mem-tables").ok().flatten())
        .sum()
}

/// A failed read of RocksDB.
fn unreadable(what: &str, error: &rocksdb::Error) -> Damaged {
    Damaged(format!("{what} cannot be read: {error}"))
}
