//! Rows of locks of transactions over several regions. A region's rows are few and live in memory beside the data, so that
//! any replica knows them: its frontier stays below them, and a new leader begins with them.

use std::sync::Arc;

use braid_proto::pb::{LockRow, LockToken, Region, StoredLock};
use braid_store_core::view::Damaged;
use bytes::Bytes;
use prost::Message;
use rocksdb::{DB, WriteBatch};

use super::key::{self, LOCKS, StoredKey};
use super::region::{Inner, RegionData};
use super::scan::Reader;
use super::unreadable;

/// The rows of one region.
#[derive(Clone, Debug, Default)]
pub struct Locks(Vec<(Bytes, StoredLock)>);

impl Locks {
    /// The rows of `region` as they are stored.
    pub fn read(db: &DB, region: &Region) -> Result<Self, Damaged> {
        let (start, end) = key::history_range(&region.range());
        let mut options = rocksdb::ReadOptions::default();
        if !end.is_empty() {
            options.set_iterate_upper_bound(end);
        }
        let mut rows = db.raw_iterator_cf_opt(Reader::now(db).family(LOCKS), options);
        rows.seek(start);
        let mut found = Vec::new();
        while let Some((row, value)) = rows.item() {
            let StoredKey::Lock { key, .. } = StoredKey::decode(LOCKS, row)? else {
                return Err(Damaged(format!("{row:02x?} is no key of {LOCKS}")));
            };
            let lock = StoredLock::decode(value)
                .map_err(|error| Damaged(format!("the lock at {key:?} cannot be read: {error}")))?;
            found.push((key, lock));
            rows.next();
        }
        rows.status().map_err(|error| unreadable(LOCKS, &error))?;
        Ok(Self(found))
    }

    fn apply(&mut self, rows: &[LockRow]) {
        for row in rows {
            let at = self.0.iter().position(|(_, lock)| lock.token == row.token);
            match (at, &row.lock) {
                (Some(at), Some(lock)) => self.0[at].1.clone_from(lock),
                (Some(at), None) => _ = self.0.swap_remove(at),
                (None, Some(lock)) => self.0.push((row.key.clone(), lock.clone())),
                (None, None) => {}
            }
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest revision that no change to come can be at or below: `applied`, unless a transaction holds something
    /// here that it may write (rule M7).
    fn frontier(&self, applied: i64) -> i64 {
        let writes = |lock: &&StoredLock| lock.ranges.iter().any(|range| range.exclusive);
        let floor = |lock: &StoredLock| if lock.revision > 0 { lock.revision - 1 } else { lock.floor };
        self.0.iter().map(|(_, lock)| lock).filter(writes).map(floor).fold(applied, i64::min)
    }
}

impl RegionData {
    /// All rows of locks, as applied.
    pub fn locks(&self) -> Vec<StoredLock> {
        self.inner.read().locks.0.iter().map(|(_, lock)| lock.clone()).collect()
    }

    /// The newest revision up to which this replica has every change of the region, by what it has applied.
    pub fn frontier(&self) -> i64 {
        self.inner.read().frontier()
    }
}

impl Inner {
    /// The newest revision that no change to come can be at or below.
    pub(super) fn frontier(&self) -> i64 {
        self.locks.frontier(self.published.applied)
    }

    /// Publishes rows that were written.
    pub(super) fn publish_locks(&mut self, rows: &[LockRow]) {
        self.locks.apply(rows);
    }

    /// Forgets rows outside the region's range, which was split.
    pub(super) fn cut_locks(&mut self) {
        let range = Arc::clone(&self.published).range.clone();
        self.locks.0.retain(|(key, _)| range.contains(key));
    }
}

/// Adds the rows of an entry to `batch`.
pub(super) fn write(db: &DB, rows: &[LockRow], batch: &mut WriteBatch) {
    if rows.is_empty() {
        return;
    }
    let family = Reader::now(db).family(LOCKS);
    for row in rows {
        let LockToken { region_id, term, seq } = row.token.unwrap_or_default();
        let key = StoredKey::Lock { key: row.key.clone(), region: region_id, term, seq }.encode();
        match &row.lock {
            Some(lock) => batch.put_cf(family, key, lock.encode_to_vec()),
            None => batch.delete_cf(family, key),
        }
    }
}
