//! raft's view of one region's log: a cache of the newest entries over the shared log.
//!
//! ```text
//!        truncated            cache start         last
//! ───────────┼─────────────────────┼───────────────┤
//!   gone, its │  in the log store   │ in both; answered
//!   term known│  (cold reads)       │ from memory
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState as InitialState, Storage, StorageError};

use crate::error::fatal;
use crate::log::LogStore;
use crate::meta::ApplyState;
use crate::snapshot::Permit;

/// Bytes of entries that a region keeps in memory beyond those not applied yet.
const CACHE_BYTES_MAX: usize = 1 << 20;

/// One region's log as raft reads it. Owned by the raft group, so by one thread.
pub struct PeerStorage {
    region_id: u64,
    log: Arc<dyn LogStore>,
    conf_state: ConfState,
    hard_state: HardState,
    /// Everything up to here may be gone; (0, 0) for a peer that has nothing yet.
    truncated: (u64, u64),
    /// Highest entry that is in the log. Inclusive. Equals `truncated` when there is none.
    last: (u64, u64),
    /// A contiguous run of entries that ends at `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// Raft snapshots that followers need, asked for by raft inside `&self`.
    pub snapshots: RefCell<SnapshotSlot>,
}

/// The raft snapshot that a leader makes for one follower; the next follower waits.
#[derive(Default)]
pub enum SnapshotSlot {
    /// Nobody needs one.
    #[default]
    Idle,
    /// Raft asked for this peer; the worker has not started yet.
    Wanted(u64),
    /// A helper thread writes it.
    Generating,
    /// Done; raft takes it with its next message to the peer.
    Ready {
        /// Peer.
        to: u64,
        /// What raft sends.
        snapshot: Box<Snapshot>,
        /// The files, in manifest order.
        files: SnapshotFiles,
    },
    /// On its way to the peer.
    Sending(u64),
}

/// Files of a raft snapshot on the sending side; dropping it removes them.
pub struct SnapshotFiles {
    /// Folder made for this snapshot.
    pub dir: PathBuf,
    /// In manifest order.
    pub files: Vec<PathBuf>,
    /// Given back with the files.
    pub _permit: Permit,
}

impl Drop for SnapshotFiles {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the files of a sent snapshot");
        }
    }
}

impl PeerStorage {
    /// The log of a peer that was validated by `recover`, or that is new.
    pub fn new(
        region_id: u64,
        log: Arc<dyn LogStore>,
        conf_state: ConfState,
        hard_state: HardState,
        apply: Option<ApplyState>,
    ) -> Self {
        let truncated = apply.map_or((0, 0), |apply| (apply.truncated_index, apply.truncated_term));
        let mut storage = Self {
            region_id,
            log,
            conf_state,
            hard_state,
            truncated,
            last: truncated,
            cache: VecDeque::new(),
            cache_bytes: 0,
            snapshots: RefCell::default(),
        };
        if let Some((_, last)) = storage.log.span(region_id).filter(|(_, last)| *last > truncated.0) {
            let entry = storage.fetch(last, last + 1, usize::MAX);
            storage.last = (last, entry[0].term);
        }
        storage
    }

    /// Whether it holds a region's state at all.
    pub fn is_initialised(&self) -> bool {
        self.truncated.0 > 0
    }

    /// Highest index in the log.
    pub fn last(&self) -> u64 {
        self.last.0
    }

    /// Highest index that may be gone.
    pub fn truncated(&self) -> u64 {
        self.truncated.0
    }

    /// Takes over entries that are being written. They overwrite what they overlap.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated.0 && first.index <= self.last.0 + 1,
            "r{}: entries from {} do not follow {} (truncated {})",
            self.region_id,
            first.index,
            self.last.0,
            self.truncated.0
        );
        while self.cache.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.cache.pop_back().expect("just seen");
            self.cache_bytes -= entry_bytes(&dropped);
        }
        self.cache.extend(entries.iter().cloned());
        self.cache_bytes += entries.iter().map(entry_bytes).sum::<usize>();
        let last = entries.last().expect("not empty");
        self.last = (last.index, last.term);
    }

    /// Forgets cached entries up to `keep_after` where the cache is larger than `bytes_max`.
    pub fn trim_cache(&mut self, keep_after: u64, idle: bool) {
        let bytes_max = if idle { 0 } else { CACHE_BYTES_MAX };
        while self.cache_bytes > bytes_max && self.cache.front().is_some_and(|entry| entry.index <= keep_after) {
            let dropped = self.cache.pop_front().expect("just seen");
            self.cache_bytes -= entry_bytes(&dropped);
        }
        if idle && self.cache.is_empty() {
            self.cache.shrink_to_fit();
        }
    }

    /// The log up to here has been truncated by an applied entry.
    pub fn truncate(&mut self, index: u64, term: u64) {
        if index <= self.truncated.0 {
            return;
        }
        assert!(index <= self.last.0, "r{}: truncated {index} beyond last {}", self.region_id, self.last.0);
        self.truncated = (index, term);
        while self.cache.front().is_some_and(|entry| entry.index <= index) {
            let dropped = self.cache.pop_front().expect("just seen");
            self.cache_bytes -= entry_bytes(&dropped);
        }
    }

    /// A raft snapshot replaces the log.
    pub fn reset(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.truncated = (index, term);
        self.last = (index, term);
        self.conf_state = conf_state;
    }

    fn fetch(&self, low: u64, high: u64, bytes_max: usize) -> Vec<Entry> {
        match self.log.entries(self.region_id, low, high, bytes_max) {
            Ok(entries) => entries,
            Err(error) => fatal(format_args!("the raft log of r{} cannot be read: {error}", self.region_id)),
        }
    }
}

/// What an entry counts for in limits.
pub fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 24
}

impl Storage for PeerStorage {
    fn initial_state(&self) -> raft::Result<InitialState> {
        Ok(InitialState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        assert!(high <= self.last.0 + 1, "r{}: reading up to {high}, last is {}", self.region_id, self.last.0);
        let bytes_max = bytes_max.into().map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let cached = self.cache.front().map_or(self.last.0 + 1, |entry| entry.index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = low;
        // The log store may return fewer than asked; raft needs a gapless run, so the cache follows only a complete one.
        while next < high.min(cached) && (bytes < bytes_max || entries.is_empty()) {
            let more = self.fetch(next, high.min(cached), bytes_max - bytes.min(bytes_max));
            next += more.len() as u64;
            bytes += more.iter().map(entry_bytes).sum::<usize>();
            entries.extend(more);
        }
        let skip = next.saturating_sub(cached) as usize;
        for entry in self.cache.iter().skip(skip).take_while(|entry| entry.index < high && entry.index >= next) {
            bytes += entry_bytes(entry);
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        raft::util::limit_size(&mut entries, (bytes_max != usize::MAX).then_some(bytes_max as u64));
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index == self.last.0 {
            return Ok(self.last.1);
        }
        if index < self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        if index > self.last.0 {
            return Err(StorageError::Unavailable.into());
        }
        if let Some(first) = self.cache.front().filter(|first| index >= first.index) {
            return Ok(self.cache[(index - first.index) as usize].term);
        }
        Ok(self.fetch(index, index + 1, usize::MAX)[0].term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut slot = self.snapshots.borrow_mut();
        match &*slot {
            SnapshotSlot::Ready { to: ready_for, snapshot, .. } if *ready_for == to => {
                let index = snapshot.get_metadata().index;
                if index >= request_index && index >= self.truncated.0 {
                    return Ok((**snapshot).clone());
                }
                *slot = SnapshotSlot::Wanted(to);
            }
            SnapshotSlot::Idle => *slot = SnapshotSlot::Wanted(to),
            _ => {}
        }
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::{LogOp, LogWrite};

    fn entry(index: u64, bytes: usize) -> Entry {
        Entry { index, term: 5 + index / 10, data: vec![0; bytes].into(), ..Default::default() }
    }

    fn storage(entries: u64, bytes: usize) -> PeerStorage {
        let log = Arc::new(MemoryLog::default());
        let entries: Vec<Entry> = (6..6 + entries).map(|index| entry(index, bytes)).collect();
        let mut write = LogWrite::default();
        write.push(1, LogOp::Append(entries.clone()));
        log.write(write, true).unwrap();
        let apply = Some(ApplyState::INITIAL);
        let mut empty = PeerStorage::new(2, log.clone(), ConfState::default(), HardState::default(), apply);
        empty.region_id = 1;
        empty.append(&entries);
        empty
    }

    fn indexes(storage: &PeerStorage, low: u64, high: u64, bytes_max: u64) -> Vec<u64> {
        let entries = storage.entries(low, high, Some(bytes_max), GetEntriesContext::empty(false)).unwrap();
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn cache_and_log_make_one_gapless_run() {
        let mut storage = storage(30, 100_000);
        storage.trim_cache(100, false);
        let cached = storage.cache.front().unwrap().index;
        assert!(cached > 10 && cached < 35, "{cached}");
        assert_eq!(indexes(&storage, 6, 36, u64::MAX), (6..36).collect::<Vec<_>>());
        assert_eq!(indexes(&storage, cached - 1, 36, 250_000), [cached - 1, cached]);
        assert_eq!(indexes(&storage, 7, 9, 0), [7]);
        assert_eq!(indexes(&storage, cached + 2, cached + 4, u64::MAX), [cached + 2, cached + 3]);
        assert_eq!((storage.term(5).unwrap(), storage.term(12).unwrap(), storage.term(35).unwrap()), (5, 6, 8));
    }

    #[test]
    fn entries_not_applied_stay_cached_and_a_conflict_overwrites() {
        let mut storage = storage(30, 100_000);
        storage.trim_cache(7, false);
        assert_eq!(storage.cache.front().unwrap().index, 8);
        storage.append(&[Entry { index: 20, term: 99, ..Default::default() }]);
        assert_eq!((storage.last(), storage.term(20).unwrap()), (20, 99));
        assert!(storage.term(21).is_err());
    }

    #[test]
    fn what_is_truncated_is_gone_but_for_its_last_term() {
        let mut storage = storage(10, 1);
        storage.truncate(12, 6);
        assert_eq!(storage.first_index().unwrap(), 13);
        assert_eq!(storage.term(12).unwrap(), 6);
        assert!(storage.term(11).is_err());
        assert!(storage.entries(12, 14, None, GetEntriesContext::empty(false)).is_err());
        assert!(matches!(*storage.snapshots.borrow(), SnapshotSlot::Idle));
        assert!(storage.snapshot(0, 9).is_err());
        assert!(matches!(*storage.snapshots.borrow(), SnapshotSlot::Wanted(9)));
    }
}
