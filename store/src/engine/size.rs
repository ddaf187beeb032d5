//! How large a region is, and where its half lies: estimates for reports and splits.
//!
//! RocksDB knows how much of its files lies between two keys, but says nothing of memtables, which all regions share. What
//! of a region lies there is found by position: the store counts the rows of live records that it writes, RocksDB says how
//! many of them are in memtables, and those are the newest. A region remembers how much it had written at some positions
//! ([`Written`]):
//!
//! ```text
//!   store   ────────────────────────────────┬────── memtables ──────┐ now
//!   region     ▪   ▪▪▪        ▪             │   ▪▪▪▪▪         ▪     │      marks: (position of the store, bytes of the region)
//!                                           └─ the region's bytes ──┘
//! ```
//!
//! History is taken to be flushed as often as live records are.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use braid_proto::key::{KeyRange, TAG_USER};
use braid_store_core::view::Damaged;
use bytes::Bytes;

use super::key::{self, HISTORY, LATEST};
use super::region::RegionData;
use super::scan::Reader;

/// Bytes of a region between two of its marks: what it is known to within.
const MARK_BYTES: u64 = 1 << 20;
/// Marks that a region keeps: they reach back as far as memtables of common sizes do.
const MARKS_MAX: usize = 192;
/// A region with less in files than in memory, or less than this, is walked to find its half.
const WALKED_FILE_BYTES_MAX: u64 = 4 << 20;
/// Keys of a walk that may be its half: every other one is dropped when there are more.
const STEPS_MAX: usize = 2_048;
/// Bytes in which keys differ first that a search between keys looks at.
const SEARCHED_BYTES: usize = 8;
/// A search between keys ends where no more than this part of all is left between two neighbours, or after so many rounds.
const CELL_SHARE: u64 = 16;
const ROUNDS_MAX: usize = 64;

/// What a region has written, by positions of the store.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Position of the store, and what the region had written by then. Both rise.
    marks: VecDeque<(u64, u64)>,
    bytes: u64,
    /// Position of its last write.
    last: u64,
}

impl Written {
    /// The region writes `rows` of live records, the last of them at `position` of the store, which take `bytes` with
    /// everything that goes with them.
    pub fn add(&mut self, bytes: u64, rows: u64, position: u64) {
        if self.marks.back().is_none_or(|(_, before)| self.bytes - before >= MARK_BYTES) {
            self.marks.push_back((position.saturating_sub(rows), self.bytes));
            if self.marks.len() > MARKS_MAX {
                self.marks.pop_front();
            }
        }
        self.bytes += bytes;
        self.last = position;
    }

    /// How much of it was written behind `position`.
    pub fn since(&self, position: u64) -> u64 {
        if self.last <= position {
            return 0;
        }
        // The marks before it say too much, by what came between them and the position: less than two marks are apart.
        let at = self.marks.partition_point(|(mark, _)| *mark < position);
        let before = self.marks.get(at).or_else(|| self.marks.back()).map_or(0, |(_, before)| *before);
        self.bytes - before
    }

    /// Takes in what another region of the store has written, which goes into this one.
    pub fn absorb(&mut self, other: &Self) {
        let upto = |written: &Self, position: u64| {
            let at = written.marks.partition_point(|(mark, _)| *mark <= position);
            at.checked_sub(1).map_or(0, |at| written.marks[at].1)
        };
        let mut positions: Vec<u64> = self.marks.iter().chain(&other.marks).map(|(position, _)| *position).collect();
        positions.sort_unstable();
        positions.dedup();
        let positions = positions.split_off(positions.len().saturating_sub(MARKS_MAX));
        let marks = positions.into_iter().map(|position| (position, upto(self, position) + upto(other, position)));
        self.marks = marks.collect();
        self.bytes += other.bytes;
        self.last = self.last.max(other.last);
    }

    /// Half of it, for each half of a split.
    pub fn halve(&mut self) {
        self.marks.iter_mut().for_each(|(_, bytes)| *bytes /= 2);
        self.bytes /= 2;
    }
}

/// Why no key is found that halves a region.
#[derive(Debug)]
pub enum NoHalf {
    /// It has less than two keys of user data, or all its bytes lie at one of them.
    TooSmall,
    /// It cannot be read.
    Damaged(Damaged),
}

impl From<Damaged> for NoHalf {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

impl RegionData {
    /// Approximate bytes, on disk and in memory, and keys, for reports. An estimate: a region that has been idle for long is
    /// known to within blocks of files, what was written lately to within `MARK_BYTES`.
    pub fn approximate_size(&self) -> (u64, u64) {
        let published = Arc::clone(&self.inner.read().published);
        let latest = self.file_bytes(LATEST, &published.range.start, &published.range.end);
        let (history_start, history_end) = key::history_range(&published.range);
        let history = self.file_bytes(HISTORY, &history_start, &history_end);
        let keys = match &published.counts {
            Some(counts) => counts.total(),
            None => self.estimated_keys(latest),
        };
        (latest + history + self.bytes_in_memory(), keys)
    }

    /// The first key of the right half, if the region is cut into two of about the same size: a key of user data strictly
    /// inside. May take as long as a walk over what lies in memtables.
    ///
    /// # Errors
    /// See [`NoHalf`].
    pub fn half(&self) -> Result<Bytes, NoHalf> {
        self.sound()?;
        let range = self.inner.read().published.range.clone();
        let user = KeyRange { start: Bytes::from_static(&[TAG_USER]), end: Bytes::from_static(&[TAG_USER + 1]) };
        let range = range.intersect(&user);
        if range.is_empty() {
            return Err(NoHalf::TooSmall);
        }
        let files = self.bytes_of_files(&range);
        let found = match files > WALKED_FILE_BYTES_MAX && files > 2 * self.bytes_in_memory() {
            true => self.half_of_files(&range, files)?,
            false => self.half_by_walking(&range)?,
        };
        found.ok_or(NoHalf::TooSmall)
    }

    /// Takes over what the parent of a split wrote: half of it is taken to be this region's.
    pub(super) fn inherit_written(&self, parent: &Self) {
        *self.written.lock() = parent.written.lock().clone();
    }

    /// The store's estimate of live keys, by this region's part of the files.
    fn estimated_keys(&self, latest_bytes: u64) -> u64 {
        let (keys, files) = (self.number_of(LATEST, KEYS), self.number_of(LATEST, FILES));
        let memory = if self.rows_in_memory() == 0 { 0 } else { self.number_of(LATEST, MEMTABLES) };
        let all = u128::from(files + memory).max(1);
        (u128::from(keys) * u128::from(latest_bytes + self.bytes_in_memory()) / all).min(u128::from(keys)) as u64
    }

    /// What of the region lies in memtables.
    fn bytes_in_memory(&self) -> u64 {
        self.written.lock().since(self.boundary.written().saturating_sub(self.rows_in_memory()))
    }

    /// Rows of live records in memtables, of all regions.
    fn rows_in_memory(&self) -> u64 {
        ROWS.into_iter().map(|rows| self.number_of(LATEST, rows)).sum()
    }

    /// Live records and history of a range, in files.
    fn bytes_of_files(&self, range: &KeyRange) -> u64 {
        let (history_start, history_end) = key::history_range(range);
        self.file_bytes(LATEST, &range.start, &range.end) + self.file_bytes(HISTORY, &history_start, &history_end)
    }

    fn file_bytes(&self, family: &str, start: &[u8], end: &[u8]) -> u64 {
        // No key begins with a byte this high: tags of internal keys are small.
        let end = if end.is_empty() { &[0xff; 8] } else { end };
        let family = Reader::now(&self.db).family(family);
        self.db.get_approximate_sizes_cf(family, &[rocksdb::Range::new(start, end)]).into_iter().sum()
    }

    fn number_of(&self, family: &str, property: &str) -> u64 {
        let family = Reader::now(&self.db).family(family);
        self.db.property_int_value_cf(family, property).ok().flatten().unwrap_or(0)
    }

    /// Looks for the half as one does for a number between two others, asking the files' indexes only: first by the bytes in
    /// which the keys differ first, then, if much is left between two neighbouring numbers, by those that follow there. What it
    /// finds is a live key.
    fn half_of_files(&self, range: &KeyRange, files: u64) -> Result<Option<Bytes>, Damaged> {
        let until = |end: &Bytes| self.bytes_of_files(&KeyRange { start: range.start.clone(), end: end.clone() });
        let mut cell = range.clone();
        for _ in 0..ROUNDS_MAX {
            let Some((first, last)) = self.ends(&cell)? else { break };
            let common = first.iter().zip(last.iter()).take_while(|(a, b)| a == b).count();
            let (mut low, mut high) = (number_at(&first, common), number_at(&last, common).saturating_add(1));
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if until(&key_at(&first[..common], middle)) < files / 2 { low = middle } else { high = middle }
            }
            let between = KeyRange { start: key_at(&first[..common], low), end: key_at(&first[..common], high) };
            cell = between.intersect(&cell);
            if self.bytes_of_files(&cell) <= files / CELL_SHARE {
                break;
            }
        }
        let mut found = Vec::new();
        for start in [cell.start, cell.end] {
            found.extend(self.first_key(&KeyRange { start, end: range.end.clone() })?);
        }
        let first = self.first_key(range)?;
        let inside = found.into_iter().filter(|key| *key > range.start && Some(key) != first.as_ref());
        Ok(inside.min_by_key(|key| until(key).abs_diff(files / 2)))
    }

    /// Walks live records and history, adding up what they take.
    fn half_by_walking(&self, range: &KeyRange) -> Result<Option<Bytes>, Damaged> {
        let snapshot = self.snapshot()?;
        let reader = snapshot.reader();
        let mut steps: Steps = Steps::default();
        let mut old = reader.rows_of_history(range, false);
        let mut old_key = Vec::new();
        let mut live = reader.rows_of_latest(range, false);
        while let Some((key, value)) = live.item() {
            // History of this key and those before: it weighs where the key lies.
            let mut weight = (key.len() + value.len()) as u64;
            while let Some((row, old_value)) = old.item() {
                key::split_history_key(row, &mut old_key)?;
                if old_key[..] > *key {
                    break;
                }
                weight += (row.len() + old_value.len()) as u64;
                old.next();
            }
            steps.push(key, weight);
            live.next();
        }
        live.status().map_err(|error| super::unreadable(LATEST, &error))?;
        old.status().map_err(|error| super::unreadable(HISTORY, &error))?;
        Ok(steps.half(&range.start))
    }

    fn first_key(&self, range: &KeyRange) -> Result<Option<Bytes>, Damaged> {
        let mut first = None;
        Reader::now(&self.db).walk_keys(range, &mut |key| {
            first = Some(Bytes::copy_from_slice(key));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// The first and the last live key of a range.
    fn ends(&self, range: &KeyRange) -> Result<Option<(Bytes, Bytes)>, Damaged> {
        let mut rows = Reader::now(&self.db).rows_of_latest(range, false);
        let Some(first) = rows.key().map(Bytes::copy_from_slice) else { return Ok(None) };
        rows.seek_to_last();
        let last = rows.key().map(Bytes::copy_from_slice);
        rows.status().map_err(|error| super::unreadable(LATEST, &error))?;
        Ok(last.filter(|last| *last > first).map(|last| (first, last)))
    }
}

/// Keys of a walk, and how much lies before each.
#[derive(Default)]
struct Steps {
    steps: Vec<(Bytes, u64)>,
    bytes: u64,
    /// How much lies between two of them.
    apart: u64,
}

impl Steps {
    fn push(&mut self, key: &[u8], weight: u64) {
        if self.steps.last().is_none_or(|(_, before)| self.bytes - before >= self.apart) {
            self.steps.push((Bytes::copy_from_slice(key), self.bytes));
            if self.steps.len() > STEPS_MAX {
                let mut turn = 0;
                self.steps.retain(|_| {
                    turn += 1;
                    turn % 2 == 1
                });
                self.apart = self.bytes / STEPS_MAX as u64 * 2;
            }
        }
        self.bytes += weight;
    }

    /// The key behind `start` with about half of it before.
    fn half(self, start: &[u8]) -> Option<Bytes> {
        let half = self.bytes / 2;
        let inside = self.steps.into_iter().filter(|(key, before)| *before > 0 && key[..] > *start);
        inside.min_by_key(|(_, before)| before.abs_diff(half)).map(|(key, _)| key)
    }
}

/// The bytes of `key` behind `common`, as a number.
fn number_at(key: &[u8], common: usize) -> u64 {
    let mut bytes = [0; SEARCHED_BYTES];
    let rest = &key[common.min(key.len())..];
    let some = rest.len().min(SEARCHED_BYTES);
    bytes[..some].copy_from_slice(&rest[..some]);
    u64::from_be_bytes(bytes)
}

/// The key of that number.
fn key_at(common: &[u8], number: u64) -> Bytes {
    [common, &number.to_be_bytes()].concat().into()
}

const ROWS: [&str; 2] = ["rocksdb.num-entries-active-mem-table", "rocksdb.num-entries-imm-mem-tables"];
const MEMTABLES: &str = "rocksdb.cur-size-all-mem-tables";
const KEYS: &str = "rocksdb.estimate-num-keys";
const FILES: &str = "rocksdb.live-sst-files-size";
