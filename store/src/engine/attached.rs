//! Which keys a lease is attached to: an index over the live records of all regions of a store.
//!
//! ```text
//!  attached   lease 7, k1   ─┐                           ┌─► its lease is 7: visited
//!             lease 7, k2   ─┴─► live record of the key ─┴─► absent, or another lease: passed over
//! ```
//!
//! Apply writes and deletes a row in the batch that changes the record, so there is a row for every live record that has a
//! lease. Whoever reads looks at the record all the same: a row too many does no harm, a row missing would.
//!
//! The rows of one region do not lie together, so a split moves none, and raft snapshots carry none: they are deleted
//! before the records they belong to ([`forget`]), and made from the records that have come ([`collect`]). Both may be
//! interrupted and repeated, as the steps of an installation are.

use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_proto::pb::Region;
use braid_store_core::view::{Damaged, Visit};
use bytes::Bytes;
use rocksdb::{DB, WriteBatch};

use super::key::{self, ATTACHED};
use super::scan::{Reader, decode_live, decode_record};
use super::unreadable;

/// Bytes of rows that are written at once while a region's rows are made or deleted.
const BATCH_BYTES: usize = 1 << 20;

impl Reader<'_> {
    /// Visits the live records of `range` that have `lease` attached, in key order. What is visited is of one moment only if
    /// the reader is.
    pub fn scan_attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        if range.is_empty() {
            return Ok(());
        }
        if lease == 0 {
            // Of records without a lease there are no rows.
            return self.scan_latest(range, &mut |key, record| match record.lease {
                0 => visit(key, record),
                _ => ControlFlow::Continue(()),
            });
        }
        let (start, end) = key::attached_range(lease, range);
        let mut options = self.options();
        // Lets the bloom filter answer for a lease without keys.
        options.set_prefix_same_as_start(true);
        if !end.is_empty() {
            // Inside the lease's rows or right behind them: tombstones of other leases are not stepped over.
            options.set_iterate_upper_bound(end);
        }
        let mut rows = self.db.raw_iterator_cf_opt(self.family(ATTACHED), options);
        rows.seek(start);
        while let Some(row) = rows.key() {
            let (found, key) = key::split_attached_key(row).ok_or_else(|| no_row(row))?;
            debug_assert_eq!(found, lease, "{row:02x?} lies in the range of another lease");
            if let Some(value) = self.live(key)? {
                let live = decode_live(key, &value)?;
                if live.head.lease == lease {
                    let record = decode_record(key, live.record)?;
                    if visit(&Bytes::copy_from_slice(key), &record).is_break() {
                        return Ok(());
                    }
                }
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(ATTACHED, &error))
    }
}

fn no_row(row: &[u8]) -> Damaged {
    Damaged(format!("{row:02x?} is no key of {ATTACHED}"))
}

/// Deletes the rows of `region`'s live records, which are about to be deleted themselves. May be repeated. Nothing of the
/// region is applied or read meanwhile.
///
/// # Errors
/// The records cannot be read, or the rows not be written.
pub fn forget(db: &DB, region: &Region) -> Result<(), Damaged> {
    for_each_row(db, region, &mut |batch, row| {
        batch.delete_cf(Reader::now(db).family(ATTACHED), row);
    })
}

/// Makes the rows of `region`'s live records, which came without them. May be repeated. Nothing of the region is applied
/// or read meanwhile.
///
/// # Errors
/// The records cannot be read, or the rows not be written.
pub fn collect(db: &DB, region: &Region) -> Result<(), Damaged> {
    for_each_row(db, region, &mut |batch, row| {
        batch.put_cf(Reader::now(db).family(ATTACHED), row, b"");
    })
}

/// Walks the live records of `region`, and writes what `add` makes of the row of each that has a lease.
fn for_each_row(db: &DB, region: &Region, add: &mut dyn FnMut(&mut WriteBatch, &[u8])) -> Result<(), Damaged> {
    let write = |batch| db.write(batch).map_err(|error| Damaged(format!("{ATTACHED} cannot be written: {error}")));
    let mut rows = Reader::now(db).rows_of_latest(&region.range(), false);
    let mut batch = WriteBatch::default();
    let mut row = Vec::new();
    while let Some((key, value)) = rows.item() {
        let lease = decode_live(key, value)?.head.lease;
        if lease != 0 {
            row.clear();
            key::attached_key(&mut row, lease, key);
            add(&mut batch, &row);
            if batch.size_in_bytes() >= BATCH_BYTES {
                write(std::mem::take(&mut batch))?;
            }
        }
        rows.next();
    }
    rows.status().map_err(|error| unreadable(super::key::LATEST, &error))?;
    write(batch)
}
