//! The records that were written last, in memory: what the next write of a key supersedes, and what most reads ask for.
//!
//! Looking a key up in RocksDB costs several microseconds, and a write of a key that exists looks it up once to be evaluated
//! and once on every replica. All regions of a store share one cache, bounded in bytes.
//!
//! What keeps it right:
//! - Only apply puts records in and takes them out: after they are in the database, and before anybody is told that they are
//!   applied. A reader never puts in what it has read, which might be superseded by then.
//! - So what is found here may be older than the database by what is being applied at this moment, as if the reader had come
//!   a moment earlier, and is never newer.
//! - An entry belongs to one opening of one region's data. Whatever changes a region's data without applying entries (a raft
//!   snapshot, a merge) is followed by another opening or another generation, for which nothing is cached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

/// Bytes beyond which a record is not cached: few such would take the place of many.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// What an entry takes beside key and record: two allocations, and its place in the table.
const ENTRY_BYTES: usize = 112;
/// Bytes of a usual entry: what the table is laid out for at first.
const USUAL_ENTRY_BYTES: usize = 512;

/// The newest records of all regions of a store. See the module's text.
pub struct NewestRecords {
    rows: Cache<Row, Arc<[u8]>, Bytes>,
    generations: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    generation: u64,
    key: Box<[u8]>,
}

/// A [`Row`] to look for.
#[derive(Hash)]
struct Wanted<'a> {
    generation: u64,
    key: &'a [u8],
}

impl Equivalent<Row> for Wanted<'_> {
    fn equivalent(&self, row: &Row) -> bool {
        self.generation == row.generation && *self.key == *row.key
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Row, Arc<[u8]>> for Bytes {
    fn weight(&self, row: &Row, value: &Arc<[u8]>) -> u64 {
        (row.key.len() + value.len() + ENTRY_BYTES) as u64
    }
}

impl NewestRecords {
    /// Holds about `bytes` at most; 0: nothing.
    pub fn new(bytes: usize) -> Self {
        Self {
            rows: Cache::with_weighter(bytes / USUAL_ENTRY_BYTES, bytes as u64, Bytes),
            generations: AtomicU64::new(0),
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// The part of one opening of a region's data, empty.
    pub(super) fn open(self: &Arc<Self>) -> OwnNewest {
        OwnNewest { all: Arc::clone(self), generation: AtomicU64::new(self.generation()) }
    }

    fn generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }
}

/// The newest records of one opening of a region's data. Values are those of `latest`.
pub struct OwnNewest {
    all: Arc<NewestRecords>,
    generation: AtomicU64,
}

impl OwnNewest {
    /// The stored value of a live key, if it is cached. `None` says nothing about the key.
    pub fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.all.rows.get(&Wanted { generation: self.generation.load(Ordering::Acquire), key })
    }

    /// A copy of `value` to [`Self::set`]; `None` if it is too large to be kept.
    pub fn kept(value: &[u8]) -> Option<Arc<[u8]>> {
        (value.len() <= RECORD_BYTES_MAX).then(|| value.into())
    }

    /// `key` has this value now, or none that is kept. For apply, once the database says the same.
    pub fn set(&self, key: &[u8], value: Option<Arc<[u8]>>) {
        let generation = self.generation.load(Ordering::Acquire);
        match value {
            Some(value) => self.all.rows.insert(Row { generation, key: key.into() }, value),
            None => _ = self.all.rows.remove(&Wanted { generation, key }),
        }
    }

    /// Nothing is known any more. What was cached is not found again, and goes as others come.
    pub fn forget(&self) {
        self.generation.store(self.all.generation(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(byte: u8, len: usize) -> Option<Arc<[u8]>> {
        Some(vec![byte; len].into())
    }

    #[test]
    fn each_opening_and_generation_has_its_own() {
        let all = Arc::new(NewestRecords::new(1 << 20));
        let (one, other) = (all.open(), all.open());
        one.set(b"k", value(1, 9));
        assert_eq!((one.get(b"k"), other.get(b"k")), (value(1, 9), None));
        other.set(b"k", value(2, 9));
        one.set(b"k", value(3, 9));
        assert_eq!((one.get(b"k"), other.get(b"k")), (value(3, 9), value(2, 9)));
        other.set(b"k", None);
        assert_eq!((one.get(b"k"), other.get(b"k")), (value(3, 9), None));
        one.forget();
        assert_eq!(one.get(b"k"), None);
    }

    #[test]
    fn it_is_bounded_and_a_record_too_large_leaves_no_older_one() {
        let all = Arc::new(NewestRecords::new(1 << 20));
        let own = all.open();
        for key in 0..10_000_u32 {
            own.set(&key.to_be_bytes(), value(1, 1_000));
        }
        assert!(all.bytes() <= 1 << 20, "{}", all.bytes());
        assert!((0..10_000_u32).any(|key| own.get(&key.to_be_bytes()).is_some()));
        for len in [RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 10 << 20] {
            own.set(b"k", value(1, 9));
            own.set(b"k", OwnNewest::kept(&vec![2; len]));
            assert!(own.get(b"k").is_none_or(|found| found[0] == 2), "{len}");
        }
        let none = Arc::new(NewestRecords::new(0)).open();
        none.set(b"k", value(1, 9));
        assert_eq!(none.get(b"k"), None);
    }
}
