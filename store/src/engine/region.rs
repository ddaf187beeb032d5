//! What one region replica knows in memory over the shared database, and how readers get a consistent view of both.
//!
//! ```text
//!   apply ──► ceiling ──► [ write lock:  RocksDB batch,  published ]        one thread, in log order
//!                                             │              │
//!   snapshot ──────────► [ read lock:   RocksDB snapshot, published ]       any thread
//!   get_at ────────────►   get, then ceiling                                any thread, no lock
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use braid_proto::id::{RegionId, Revision};
use braid_proto::key::KeyRange;
use braid_proto::pb::Region;
use braid_store_core::buckets::Buckets;
use braid_store_core::view::Damaged;
use parking_lot::{Mutex, RwLock};
use rocksdb::DB;

use super::boundary::Boundary;
use super::changes::ChangeKind;
use super::key::{self, EVENTS, HISTORY, LATEST, StoredKey};
use super::locks::Locks;
use super::newest::{NewestRecords, OwnNewest};
use super::recent::Recent;
use super::scan::Reader;
use super::size::Written;
use super::snapshot::Snapshot;
use super::unreadable;

/// Memory for the newest records of a region that shares it with no other.
const OWN_NEWEST_BYTES: usize = 1 << 20;

/// What is true of the data at one moment, beside the data. Shared with snapshots, so a change copies it if one is held;
/// its large parts are shared in turn.
#[derive(Clone)]
pub struct Published {
    /// The region's keys.
    pub range: KeyRange,
    /// Newest revision applied. Inclusive; at least the first of all. The applied mark on disk says so at start.
    pub applied: i64,
    /// Exclusive: no event above it is missing on disk.
    pub events_mark: i64,
    /// The newest changes. Right after a split the child's reach further back than its events on disk.
    pub recent: Recent,
    /// How many keys are live where; `None` until somebody counts.
    pub counts: Option<Buckets>,
}

/// Keys that have come or gone, in order.
pub type Deltas = Vec<(ChangeKind, Box<[u8]>)>;

/// State behind the lock that writing takes.
pub struct Inner {
    pub published: Arc<Published>,
    /// What has come and gone since the walk began that builds the counts; `None` while there is no such walk.
    pub deltas: Option<Deltas>,
    /// Locks and records of transactions over several regions.
    pub locks: Locks,
}

/// The data of one region replica. Reads come from any thread; [`Self::apply`] and [`Self::on_region`] from one at a time.
pub struct RegionData {
    pub(super) db: Arc<DB>,
    pub(super) region: RegionId,
    pub(super) boundary: Arc<Boundary>,
    pub(super) inner: RwLock<Inner>,
    /// Newest revision that may be visible in the database. Raised before it is written, so a reader that looks here after
    /// it has read knows what it cannot have missed. `published.applied <= ceiling`.
    pub(super) ceiling: AtomicI64,
    /// The newest records, as far as they are in memory.
    pub(super) newest: OwnNewest,
    /// Held by whoever builds the counts.
    pub(super) counting: Mutex<()>,
    /// What was written here, of which some may still lie in memtables.
    pub(super) written: Mutex<Written>,
    /// Whether this is the child of a split that happened just now.
    pub(super) newborn: bool,
    /// Why the data cannot be used at all; every read says so.
    damage: Option<Damaged>,
}

impl RegionData {
    /// The data of `region` in `db`, whose compaction boundary is `boundary`. Cheap: no walk over the data. If what it
    /// needs cannot be read, every use of it fails with the reason.
    pub fn open(db: Arc<DB>, region: &Region, boundary: Arc<Boundary>) -> Self {
        Self::open_child(db, region, boundary, &Arc::new(NewestRecords::new(OWN_NEWEST_BYTES)), &mut || None)
    }

    /// The same for one of several regions, which share `newest`, and for what may be the child of a split that happened just
    /// now: then, and only then, `parent` is asked for the
    /// newest revision that the parent has applied.
    pub fn open_child(
        db: Arc<DB>,
        region: &Region,
        boundary: Arc<Boundary>,
        newest: &Arc<NewestRecords>,
        parent: &mut dyn FnMut() -> Option<i64>,
    ) -> Self {
        let found =
            events_of(&db, region, &boundary, parent).and_then(|events| Ok((events, Locks::read(&db, region)?)));
        let (events, locks, damage) = match found {
            Ok((events, locks)) => (events, locks, None),
            Err(damage) => (Events { newest: 0, mark: 0, newborn: false }, Locks::default(), Some(damage)),
        };
        let applied = events.newest.max(Revision::INITIAL.0);
        let published = Published {
            range: region.range(),
            applied,
            events_mark: events.mark,
            recent: Recent::new(applied.max(events.mark)),
            counts: None,
        };
        Self {
            db,
            region: region.region_id(),
            boundary,
            inner: RwLock::new(Inner { published: Arc::new(published), deltas: None, locks }),
            ceiling: AtomicI64::new(applied.max(events.mark)),
            newest: newest.open(),
            counting: Mutex::new(()),
            written: Mutex::default(),
            newborn: events.newborn,
            damage,
        }
    }

    /// The region's id.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Newest revision applied here. Inclusive; 1 if nothing ever was.
    pub fn max_applied(&self) -> i64 {
        self.inner.read().published.applied
    }

    /// This moment, for reads that must agree with each other.
    ///
    /// # Errors
    /// The data could not be opened.
    pub fn snapshot(&self) -> Result<Snapshot, Damaged> {
        self.sound()?;
        let inner = self.inner.read();
        Ok(self.snapshot_of(&inner.published))
    }

    /// The snapshot at which `published` is true: the caller holds the lock.
    pub(super) fn snapshot_of(&self, published: &Arc<Published>) -> Snapshot {
        Snapshot::new(&self.db, published, self.region, &self.boundary)
    }

    /// The store's compaction boundary: below it history may be gone. A read at an older revision compares after its last
    /// read, because what it needs may go while it reads (rules C1, C2).
    pub fn boundary(&self) -> i64 {
        self.boundary.get()
    }

    /// Whether what is applied here is known to cover `range`: a merge gives the region more keys, and what is true of them
    /// beside the data, at one moment.
    pub fn covers(&self, range: &KeyRange) -> bool {
        self.inner.read().published.range.contains_range(range)
    }

    /// Releases memory that only a busy region needs: the newest changes will be read from disk.
    pub fn trim(&self) {
        Arc::make_mut(&mut self.inner.write().published).recent.clear();
    }

    pub(super) fn sound(&self) -> Result<(), Damaged> {
        self.damage.clone().map_or(Ok(()), Err)
    }
}

/// What the events of a region say at start.
pub(super) struct Events {
    /// Newest revision applied, or a bound above it.
    pub newest: i64,
    pub mark: i64,
    /// No mark spoke of the data before.
    newborn: bool,
}

pub(super) fn events_of(
    db: &DB,
    region: &Region,
    boundary: &Boundary,
    parent: &mut dyn FnMut() -> Option<i64>,
) -> Result<Events, Damaged> {
    let id = region.region_id();
    match (mark_of(db, StoredKey::EventsMark { region: id })?, mark_of(db, StoredKey::AppliedMark { region: id })?) {
        (Some(mark), newest) => Ok(Events { newest: newest.unwrap_or(mark).max(mark), mark, newborn: false }),
        (None, Some(newest)) => Ok(Events { newest, mark: 0, newborn: false }),
        // Nothing happened in its range, or all of it below the compaction boundary.
        (None, None) if !has_data(db, region)? => {
            let below = (boundary.get() - 1).max(0);
            Ok(Events { newest: below, mark: below, newborn: false })
        }
        // Data of which no mark speaks: the child of a split, opened for the first time. What its range has seen was applied by
        // the parent, and recorded under the parent's id.
        (None, None) => {
            let mark = parent().map_or_else(|| newest_of_store(db), Ok)?;
            let events = Reader::now(db).family(EVENTS);
            let row = StoredKey::EventsMark { region: id }.encode();
            db.put_cf(events, row, mark.to_be_bytes())
                .map_err(|error| Damaged(format!("{EVENTS} cannot be written: {error}")))?;
            Ok(Events { newest: mark, mark, newborn: true })
        }
    }
}

fn mark_of(db: &DB, mark: StoredKey) -> Result<Option<i64>, Damaged> {
    let found = db.get_pinned_cf(Reader::now(db).family(EVENTS), mark.encode());
    let Some(value) = found.map_err(|error| unreadable(EVENTS, &error))? else { return Ok(None) };
    let revision = value[..].try_into().map(i64::from_be_bytes);
    revision.map(Some).map_err(|_| Damaged(format!("{mark:?} is damaged: {:02x?}", &value[..])))
}

/// A bound that no revision which this store has applied lies above: the newest of each region's marks. Three lookups a
/// region; only for children of splits whose parent is not at hand.
fn newest_of_store(db: &DB) -> Result<i64, Damaged> {
    let mut newest = Revision::INITIAL.0;
    let mut before = None;
    while let Some(region) = last_region_before(db, before)? {
        for mark in [StoredKey::EventsMark { region }, StoredKey::AppliedMark { region }] {
            newest = newest.max(mark_of(db, mark)?.unwrap_or(0));
        }
        before = Some(region);
    }
    Ok(newest)
}

/// The last region below `before` that has anything in `events`.
fn last_region_before(db: &DB, before: Option<RegionId>) -> Result<Option<RegionId>, Damaged> {
    let mut options = rocksdb::ReadOptions::default();
    if let Some(region) = before {
        options.set_iterate_upper_bound(StoredKey::EventsMark { region }.encode());
    }
    let mut rows = db.raw_iterator_cf_opt(Reader::now(db).family(EVENTS), options);
    rows.seek_to_last();
    let Some(row) = rows.key() else {
        rows.status().map_err(|error| unreadable(EVENTS, &error))?;
        return Ok(None);
    };
    match StoredKey::decode(EVENTS, row)? {
        StoredKey::Event { region, .. } | StoredKey::EventsMark { region } | StoredKey::AppliedMark { region } => {
            Ok(Some(region))
        }
        // It sorts before every region.
        _ => Ok(None),
    }
}

/// Whether the region's range holds anything, live or once live.
fn has_data(db: &DB, region: &Region) -> Result<bool, Damaged> {
    let range = region.range();
    let (history_start, history_end) = key::history_range(&range);
    let latest = (LATEST, range.start.to_vec(), range.end.to_vec());
    for (family, start, end) in [latest, (HISTORY, history_start, history_end)] {
        let mut options = rocksdb::ReadOptions::default();
        options.set_total_order_seek(true);
        if !end.is_empty() {
            options.set_iterate_upper_bound(end);
        }
        let mut rows = db.raw_iterator_cf_opt(Reader::now(db).family(family), options);
        rows.seek(start);
        if rows.valid() {
            return Ok(true);
        }
        rows.status().map_err(|error| unreadable(family, &error))?;
    }
    Ok(false)
}
