//! Records of leases, each at its internal key. They take no revision and have no history: what is stored is the newest.

use std::sync::Arc;

use braid_proto::key::{KeyRange, lease_key};
use braid_proto::pb::{LeaseRow, StoredLease};
use braid_store_core::view::Damaged;
use prost::Message;
use rocksdb::{DB, ReadOptions, WriteBatch};

use super::key::{LEASES, StoredKey};
use super::region::RegionData;
use super::scan::Reader;
use super::unreadable;

impl RegionData {
    /// All leases whose records lie in the region's present range, as applied, in the order of their keys.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn leases(&self) -> Result<Vec<(i64, StoredLease)>, Damaged> {
        let published = Arc::clone(&self.inner.read().published);
        self.leases_in(&published.range)
    }

    /// Those whose records lie in `range`, a part of the region's.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn leases_in(&self, range: &KeyRange) -> Result<Vec<(i64, StoredLease)>, Damaged> {
        self.sound()?;
        let mut options = ReadOptions::default();
        if !range.end.is_empty() {
            options.set_iterate_upper_bound(&range.end[..]);
        }
        let mut rows = self.db.raw_iterator_cf_opt(Reader::now(&self.db).family(LEASES), options);
        rows.seek(&range.start);
        let mut found = Vec::new();
        while let Some((row, value)) = rows.item() {
            let StoredKey::Lease { id } = StoredKey::decode(LEASES, row)? else {
                return Err(Damaged(format!("{row:02x?} is no key of {LEASES}")));
            };
            let lease = StoredLease::decode(value)
                .map_err(|error| Damaged(format!("the record of lease {id} cannot be read: {error}")))?;
            found.push((id, lease));
            rows.next();
        }
        rows.status().map_err(|error| unreadable(LEASES, &error))?;
        Ok(found)
    }
}

/// Adds the rows of an entry to `batch`.
pub(super) fn write(db: &DB, rows: &[LeaseRow], batch: &mut WriteBatch) {
    if rows.is_empty() {
        return;
    }
    let family = Reader::now(db).family(LEASES);
    for row in rows {
        match &row.lease {
            Some(lease) => batch.put_cf(family, lease_key(row.id), lease.encode_to_vec()),
            None => batch.delete_cf(family, lease_key(row.id)),
        }
    }
}
