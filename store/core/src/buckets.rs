//! How many keys of a range are live, without walking the range.
//!
//! The live keys of a region are cut, in key order, into buckets of a few hundred; each has a first key and a count.
//! A count adds up the buckets that lie wholly in the range and walks the two that stick out:
//!
//! ```text
//!             [d ................................ q)        the range asked for
//!  ["": 300)["c": 410)["f": 256)["k": 512)["p": 290)        buckets: first key, count
//!            └─ walk ─┘└──── added up ────┘└─ walk ─┘
//! ```
//!
//! Buckets lie in chunks, and chunks are shared: a clone is a snapshot that costs a pointer for each chunk, and a change
//! after it copies one chunk. The owner tells of every key that appears or disappears, and, since only it can walk, finds
//! the middle of a bucket that has grown too large.
//!
//! Counts are exact. Deliberately absent: keys; the structure holds the first key of each bucket only.

use std::sync::Arc;

use braid_proto::key::KeyRange;
use bytes::Bytes;

#[cfg(test)]
mod tests;

/// Keys above which a bucket is split in the middle. A count walks at most two buckets, a split one: fewer keys make
/// both faster and take more memory (about 100 bytes a bucket).
pub const BUCKET_KEYS_MAX: u64 = 512;
/// Keys that a bucket is filled with when buckets are built; room for half as many more.
const BUCKET_KEYS_BUILT: u64 = 340;
/// A bucket with fewer keys joins a neighbour, if that leaves room for as many more.
const BUCKET_KEYS_MIN: u64 = 64;
/// Buckets above which a chunk is split.
const CHUNK_BUCKETS_MAX: usize = 64;
/// A chunk with fewer buckets joins a neighbour, if both fit.
const CHUNK_BUCKETS_MIN: usize = 8;

const _: () = assert!(BUCKET_KEYS_BUILT < BUCKET_KEYS_MAX && 2 * BUCKET_KEYS_MIN < BUCKET_KEYS_MAX / 2);
const _: () = assert!(2 * CHUNK_BUCKETS_MIN < CHUNK_BUCKETS_MAX / 2);

/// Keys from `start`, included, to the next bucket's start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bucket {
    start: Bytes,
    keys: u64,
}

/// A run of buckets; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    keys: u64,
    buckets: Vec<Bucket>,
}

/// Counts of live keys. The first bucket starts at the empty key, so every key has a bucket.
#[derive(Clone, Debug)]
pub struct Buckets {
    keys: u64,
    chunks: Vec<Arc<Chunk>>,
}

impl Default for Buckets {
    fn default() -> Self {
        Builder::default().finish()
    }
}

/// Makes buckets from keys in key order.
#[derive(Debug)]
pub struct Builder {
    done: Vec<Bucket>,
    open: Bucket,
}

impl Default for Builder {
    fn default() -> Self {
        Self { done: Vec::new(), open: Bucket { start: Bytes::new(), keys: 0 } }
    }
}

impl Builder {
    /// Adds the next key.
    pub fn push(&mut self, key: &[u8]) {
        if self.open.keys == BUCKET_KEYS_BUILT {
            let next = Bucket { start: Bytes::copy_from_slice(key), keys: 0 };
            self.done.push(std::mem::replace(&mut self.open, next));
        }
        self.open.keys += 1;
    }

    /// The buckets.
    pub fn finish(mut self) -> Buckets {
        self.done.push(self.open);
        Buckets::from_buckets(self.done)
    }
}

/// A bucket that should be split: the owner walks it and calls [`Buckets::split`] after every [`Self::piece`] keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overfull {
    /// The keys it covers.
    pub range: KeyRange,
    /// How many of them are live.
    pub keys: u64,
}

impl Overfull {
    /// Keys that each part should get, so that all have about as many.
    pub fn piece(&self) -> u64 {
        self.keys.div_ceil(self.keys.div_ceil(BUCKET_KEYS_BUILT).max(1)).max(1)
    }
}

impl Buckets {
    fn from_buckets(buckets: Vec<Bucket>) -> Self {
        let chunks = buckets.chunks(CHUNK_BUCKETS_MAX / 2).map(|buckets| Arc::new(Chunk::new(buckets.to_vec())));
        let chunks: Vec<_> = chunks.collect();
        Self { keys: chunks.iter().map(|chunk| chunk.keys).sum(), chunks }
    }

    /// All live keys.
    pub fn total(&self) -> u64 {
        self.keys
    }

    /// `key` has become live. True: its bucket has grown too large, see [`Self::overfull`].
    pub fn add(&mut self, key: &[u8]) -> bool {
        let (c, b) = self.find(key);
        let chunk = Arc::make_mut(&mut self.chunks[c]);
        self.keys += 1;
        chunk.keys += 1;
        chunk.buckets[b].keys += 1;
        chunk.buckets[b].keys > BUCKET_KEYS_MAX
    }

    /// The bucket of `key`, if it is too large.
    pub fn overfull(&self, key: &[u8]) -> Option<Overfull> {
        let (c, b) = self.find(key);
        let keys = self.chunks[c].buckets[b].keys;
        (keys > BUCKET_KEYS_MAX).then(|| Overfull { range: self.bucket_range(c, b), keys })
    }

    /// `key` was live and is no more.
    ///
    /// # Panics
    /// If no key is counted where it belongs: a key was removed that had not been added.
    pub fn remove(&mut self, key: &[u8]) {
        let (c, b) = self.find(key);
        let chunk = Arc::make_mut(&mut self.chunks[c]);
        let bucket = &mut chunk.buckets[b];
        assert!(bucket.keys > 0, "a key was removed from a bucket that has none");
        bucket.keys -= 1;
        chunk.keys -= 1;
        self.keys -= 1;
        if bucket.keys < BUCKET_KEYS_MIN {
            chunk.join_bucket(b);
            if chunk.buckets.len() < CHUNK_BUCKETS_MIN {
                self.join_chunk(c);
            }
        }
    }

    /// Splits the bucket that holds `at`: `at` begins the right part, `below` of its keys lie left of it.
    pub fn split(&mut self, at: Bytes, below: u64) {
        let (c, b) = self.find(&at);
        let chunk = Arc::make_mut(&mut self.chunks[c]);
        let left = &mut chunk.buckets[b];
        assert!(below <= left.keys, "{below} of {} keys cannot lie on one side", left.keys);
        if left.start == at {
            return;
        }
        let right = Bucket { start: at, keys: left.keys - below };
        left.keys = below;
        chunk.buckets.insert(b + 1, right);
        if chunk.buckets.len() > CHUNK_BUCKETS_MAX {
            let upper = chunk.buckets.split_off(CHUNK_BUCKETS_MAX / 2);
            *chunk = Chunk::new(std::mem::take(&mut chunk.buckets));
            self.chunks.insert(c + 1, Arc::new(Chunk::new(upper)));
        }
    }

    /// Live keys of `range`. `walk` counts the live keys of a range one by one; it is called at most twice, for ranges
    /// inside one bucket.
    ///
    /// # Errors
    /// Those of `walk`.
    pub fn count<E>(&self, range: &KeyRange, walk: &mut dyn FnMut(&KeyRange) -> Result<u64, E>) -> Result<u64, E> {
        if range.is_empty() {
            return Ok(0);
        }
        let mut keys = 0;
        let (first, _) = self.find(&range.start);
        for (c, chunk) in self.chunks.iter().enumerate().skip(first) {
            if !range.end.is_empty() && *chunk.start() >= range.end {
                break;
            }
            if range.contains_range(&self.chunk_range(c)) {
                keys += chunk.keys;
                continue;
            }
            for (b, bucket) in chunk.buckets.iter().enumerate() {
                let covered = self.bucket_range(c, b);
                let part = covered.intersect(range);
                if bucket.keys == 0 || part.is_empty() {
                    continue;
                }
                keys += if part == covered { bucket.keys } else { walk(&part)? };
            }
        }
        Ok(keys)
    }

    /// Keeps the keys below `key` and returns the others. `walk` is called at most once, for a range inside one bucket.
    ///
    /// # Errors
    /// Those of `walk`; nothing has changed then.
    pub fn split_off<E>(
        &mut self,
        key: &Bytes,
        walk: &mut dyn FnMut(&KeyRange) -> Result<u64, E>,
    ) -> Result<Buckets, E> {
        let (c, b) = self.find(key);
        let covered = self.bucket_range(c, b);
        if covered.start != *key {
            let below = walk(&KeyRange { start: covered.start, end: key.clone() })?;
            self.split(key.clone(), below);
        }
        let (c, b) = self.find(key);
        let all: Vec<Bucket> = self.chunks.iter().flat_map(|chunk| chunk.buckets.iter().cloned()).collect();
        let at = self.chunks[..c].iter().map(|chunk| chunk.buckets.len()).sum::<usize>() + b;
        let mut right = all[at..].to_vec();
        right[0].start = Bytes::new();
        let left = if at == 0 { vec![Bucket { start: Bytes::new(), keys: 0 }] } else { all[..at].to_vec() };
        *self = Self::from_buckets(left);
        Ok(Self::from_buckets(right))
    }

    /// Chunk and bucket of `key`.
    fn find(&self, key: &[u8]) -> (usize, usize) {
        let c = self.chunks.partition_point(|chunk| chunk.start()[..] <= *key) - 1;
        let b = self.chunks[c].buckets.partition_point(|bucket| bucket.start[..] <= *key) - 1;
        (c, b)
    }

    fn chunk_range(&self, c: usize) -> KeyRange {
        let end = self.chunks.get(c + 1).map(|next| next.start().clone()).unwrap_or_default();
        KeyRange { start: self.chunks[c].start().clone(), end }
    }

    fn bucket_range(&self, c: usize, b: usize) -> KeyRange {
        let buckets = &self.chunks[c].buckets;
        let end = buckets.get(b + 1).map_or_else(|| self.chunk_range(c).end, |next| next.start.clone());
        KeyRange { start: buckets[b].start.clone(), end }
    }

    /// Joins a chunk that has few buckets with a neighbour, if both fit into one.
    fn join_chunk(&mut self, c: usize) {
        let left = if c + 1 < self.chunks.len() { c } else { c.saturating_sub(1) };
        let Some(right) = self.chunks.get(left + 1) else { return };
        if self.chunks[left].buckets.len() + right.buckets.len() > CHUNK_BUCKETS_MAX / 2 {
            return;
        }
        let right = self.chunks.remove(left + 1);
        let chunk = Arc::make_mut(&mut self.chunks[left]);
        chunk.keys += right.keys;
        chunk.buckets.extend(right.buckets.iter().cloned());
    }
}

impl Chunk {
    fn new(buckets: Vec<Bucket>) -> Self {
        Self { keys: buckets.iter().map(|bucket| bucket.keys).sum(), buckets }
    }

    fn start(&self) -> &Bytes {
        &self.buckets[0].start
    }

    /// Joins a bucket that has few keys with its smaller neighbour, if that leaves room to grow.
    fn join_bucket(&mut self, b: usize) {
        let fits = |left: usize| self.buckets[left].keys + self.buckets[left + 1].keys <= BUCKET_KEYS_MAX / 2;
        let neighbours = [b.checked_sub(1), (b + 1 < self.buckets.len()).then_some(b)];
        let smallest = |left: &usize| self.buckets[*left].keys + self.buckets[*left + 1].keys;
        let Some(left) = neighbours.into_iter().flatten().filter(|left| fits(*left)).min_by_key(smallest) else {
            return;
        };
        let right = self.buckets.remove(left + 1);
        self.buckets[left].keys += right.keys;
    }
}
