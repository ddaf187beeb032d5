//! One moment of a region: a RocksDB snapshot and what was published with it.

use std::sync::Arc;

use braid_proto::id::RegionId;
use braid_proto::key::KeyRange;
use braid_store_core::record::Record;
use braid_store_core::view::{BaseView, Damaged, Visit};
use rocksdb::DB;

use super::boundary::Boundary;
use super::region::Published;
use super::scan::Reader;
use owned::OwnedSnapshot;

/// Keys changed since the revision asked for up to which a scan of the live records is corrected key by key. Beyond it,
/// live records and history are walked side by side.
const PATCH_KEYS_MAX: usize = 256;
/// Changes that are always looked at before a count at an older revision walks the range.
const GROWTH_CHANGES_MIN: u64 = 4_096;

/// One moment of a region. Keeps RocksDB from dropping what is live in it: short-lived, except for a scan that runs long.
/// History below the compaction boundary goes all the same.
pub struct Snapshot {
    db: OwnedSnapshot,
    published: Arc<Published>,
    region: RegionId,
    boundary: Arc<Boundary>,
}

impl Snapshot {
    /// The moment at which `published` is true of `db`: the caller holds the lock that every change of either takes.
    pub(super) fn new(db: &Arc<DB>, published: &Arc<Published>, region: RegionId, boundary: &Arc<Boundary>) -> Self {
        let (published, boundary) = (Arc::clone(published), Arc::clone(boundary));
        Self { db: OwnedSnapshot::new(db), published, region, boundary }
    }

    /// The store's compaction boundary now, not at the snapshot's moment: see [`super::RegionData::boundary`].
    pub fn boundary(&self) -> i64 {
        self.boundary.get()
    }

    /// Whether a read at `revision` that has just ended may have missed history that is dropped.
    pub fn is_compacted(&self, revision: i64) -> bool {
        self.published.applied.max(self.published.events_mark) > revision && revision < self.boundary()
    }

    /// Newest revision applied. Inclusive; 1 if nothing ever was.
    pub fn max_applied(&self) -> i64 {
        self.published.applied
    }

    /// The region it shows.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The region's range.
    pub fn range(&self) -> &KeyRange {
        &self.published.range
    }

    pub(super) fn published(&self) -> &Published {
        &self.published
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::at(self.db.db(), self.db.snapshot())
    }

    /// The record of `key` at `revision`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<Record>, Damaged> {
        match self.reader().latest(key)? {
            Some(record) if record.mod_revision <= revision => Ok(Some(record)),
            None if self.published.applied <= revision => Ok(None),
            _ => self.reader().version_at(key, revision),
        }
    }
}

impl BaseView for Snapshot {
    fn boundary(&self) -> i64 {
        self.boundary.get()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        self.reader().latest(key)
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.reader().scan_latest(range, visit)
    }

    fn attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.reader().scan_attached(lease, range, visit)
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        let reader = self.reader();
        let mut walk = |part: &KeyRange| reader.count_latest(part);
        let mut keys = match &self.published.counts {
            Some(counts) => counts.count(range, &mut walk)?,
            None => walk(range)?,
        };
        for key in except {
            keys -= u64::from(reader.is_live(key)?);
        }
        Ok(keys)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        if self.published.applied <= revision {
            return self.scan(range, visit);
        }
        match self.changed_keys(range, revision, PATCH_KEYS_MAX)? {
            Some(changed) if changed.is_empty() => self.scan(range, visit),
            Some(changed) => self.reader().scan_patched(range, revision, &changed, visit),
            None => self.reader().scan_versions(range, revision, visit),
        }
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        if self.published.applied <= revision {
            return self.count(range, &[]);
        }
        let walk = || self.reader().count_versions(range, revision);
        let Some(counts) = &self.published.counts else { return walk() };
        // Looking at a change costs less than walking a key, so this at most doubles the cost of the walk it may save.
        let most = counts.total().max(GROWTH_CHANGES_MIN);
        match self.growth(range, revision, usize::try_from(most).unwrap_or(usize::MAX))? {
            Some(growth) => {
                let now = self.count(range, &[])?;
                now.checked_add_signed(-growth).ok_or_else(|| {
                    Damaged(format!(
                        "{now} keys are live of which {growth} were made since @{revision}: counts are wrong"
                    ))
                })
            }
            None => walk(),
        }
    }
}

/// A RocksDB snapshot that owns a share of its database.
#[allow(unsafe_code, reason = "rocksdb's snapshot borrows the database; here it owns a share of it")]
mod owned {
    use std::sync::Arc;

    use rocksdb::DB;

    pub struct OwnedSnapshot {
        /// Declared before `db`: fields are dropped in order, so the snapshot goes first.
        snapshot: rocksdb::Snapshot<'static>,
        db: Arc<DB>,
    }

    impl OwnedSnapshot {
        pub fn new(db: &Arc<DB>) -> Self {
            let db = Arc::clone(db);
            // SAFETY: the database lies on the heap behind `db` and moves as little as the Arc's allocation does. It is
            // borrowed shared, as everybody borrows it. It lives until the last Arc goes; ours goes after the snapshot
            // (see the field), which is the only thing this reference ends up in. The long lifetime does not get out:
            // `snapshot()` shortens it to that of `self`.
            let borrowed: &'static DB = unsafe { &*Arc::as_ptr(&db) };
            Self { snapshot: borrowed.snapshot(), db }
        }

        pub fn db(&self) -> &DB {
            &self.db
        }

        pub fn snapshot<'a>(&'a self) -> &'a rocksdb::Snapshot<'a> {
            &self.snapshot
        }
    }
}
