//! The raft log of all regions of a host: one trait, raft-engine behind it.
//!
//! A [`LogWrite`] holds what many regions want written; it becomes one record and, if asked, one fsync. Rules that the
//! engine imposes and this module keeps: a batch that failed is thrown away; an append never leaves a hole; entries
//! after a snapshot follow a [`LogOp::Clean`] in the same batch; single keys are never deleted; `Engine::sync` does
//! nothing and is never called.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use raft::eraftpb::Entry;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use thiserror::Error;

use crate::error::OpenError;
use crate::meta::{RAFT_STATE_KEY, RaftState};

#[cfg(test)]
pub mod memory;

/// One step of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum LogOp {
    /// Forgets everything of the region, its raft state included.
    Clean,
    /// Appends; overwrites what it overlaps, and everything behind that.
    Append(Vec<Entry>),
    /// Replaces the raft state.
    State(RaftState),
    /// Gives up entries below this index.
    Compact(u64),
}

/// What goes to the log at once, atomically, for any number of regions.
#[derive(Default, Debug)]
pub struct LogWrite {
    ops: Vec<(u64, LogOp)>,
}

impl LogWrite {
    /// Adds a step. Steps of one region are applied in the order they were added.
    pub fn push(&mut self, region: u64, op: LogOp) {
        self.ops.push((region, op));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Why the log cannot be read or written. None of them is repaired by trying again; the caller stops the process.
#[derive(Debug, Error)]
#[error("raft log: {0}")]
pub struct LogError(pub String);

/// Where raft entries and raft state live.
pub trait LogStore: Send + Sync + 'static {
    /// Writes the batch; after Ok with `sync` it survives a power failure.
    fn write(&self, write: LogWrite, sync: bool) -> Result<(), LogError>;

    /// Reads entries `[low, high)`, all of which must be in the log. Stops after the entry that reaches `bytes_max`.
    fn entries(&self, region: u64, low: u64, high: u64, bytes_max: usize) -> Result<Vec<Entry>, LogError>;

    /// Raft state of the region, if it ever had one.
    fn raft_state(&self, region: u64) -> Result<Option<RaftState>, LogError>;

    /// Lowest and highest index in the log; None: there are no entries.
    fn span(&self, region: u64) -> Option<(u64, u64)>;

    /// Regions with anything in the log.
    fn regions(&self) -> Vec<u64>;

    /// Gives space back to the disk. Returns the regions whose old entries prevent more; they should be truncated.
    fn purge(&self) -> Result<Vec<u64>, LogError>;

    /// Bytes on disk.
    fn used_bytes(&self) -> u64;
}

/// [`LogStore`] over raft-engine.
pub struct EngineLog {
    engine: Engine,
    /// Tells the opened logs of the process apart.
    opening: u64,
}

thread_local! {
    /// The opening whose entries this thread reads; 0 before it has read any.
    static READS_OPENING: Cell<u64> = const { Cell::new(0) };
}

/// Tells the engine where an entry's index is.
struct EntryIndex;

impl MessageExt for EntryIndex {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// How often a read is repeated that met a file just as the purge removed it (raft-engine's issue 370).
const READ_TRIES: usize = 5;

impl EngineLog {
    /// Opens or creates the log in `dir`. A record torn at the very end is dropped: it was never acknowledged. Whether
    /// something acknowledged is missing, the caller checks against the applied state.
    pub fn open(dir: &Path, purge_bytes: u64) -> Result<Arc<Self>, OpenError> {
        let target_file_size = (purge_bytes / 8).clamp(1 << 20, 64 << 20);
        let config = Config {
            dir: dir.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            purge_threshold: ReadableSize(purge_bytes.max(target_file_size)),
            target_file_size: ReadableSize(target_file_size),
            // Etcd's values are often text that packs well, but the fsync costs more than the bytes: only big batches.
            batch_compression_threshold: ReadableSize::kb(64),
            ..Config::default()
        };
        let engine = Engine::open(config).map_err(|error| OpenError::engine(dir, error))?;
        static OPENINGS: AtomicU64 = AtomicU64::new(1);
        Ok(Arc::new(Self { engine, opening: OPENINGS.fetch_add(1, Ordering::Relaxed) }))
    }

    /// Runs `read` on a thread that has read entries of no other log. The engine keeps the block it read last in a
    /// thread-local variable, known by its place alone: a thread that reads entries of a second log takes them from the
    /// first one's block where the places are the same. Only recovery ever reads a second one; host threads have one.
    fn on_own_thread<T: Send>(&self, read: impl FnOnce() -> T + Send) -> T {
        let reads = READS_OPENING.get();
        if reads == 0 {
            READS_OPENING.set(self.opening);
        }
        if reads == 0 || reads == self.opening {
            return read();
        }
        thread::scope(|scope| scope.spawn(read).join()).expect("reading the raft log does not panic")
    }

    fn read<T>(&self, mut read: impl FnMut() -> raft_engine::Result<T>) -> Result<T, LogError> {
        let mut tries = 1;
        loop {
            match read() {
                Ok(value) => return Ok(value),
                Err(error) if tries < READ_TRIES && error.to_string().contains("file seqno out of range") => {
                    metrics::counter!("braid_raft_log_read_retries_total").increment(1);
                    tries += 1;
                }
                Err(error) => return Err(LogError(error.to_string())),
            }
        }
    }
}

impl LogStore for EngineLog {
    fn write(&self, write: LogWrite, sync: bool) -> Result<(), LogError> {
        let mut batch = LogBatch::with_capacity(write.ops.len());
        let refuse = |error: raft_engine::Error| LogError(error.to_string());
        for (region, op) in write.ops {
            match op {
                LogOp::Clean => batch.add_command(region, Command::Clean),
                LogOp::Append(entries) => batch.add_entries::<EntryIndex>(region, &entries).map_err(refuse)?,
                LogOp::State(state) => {
                    batch.put(region, RAFT_STATE_KEY.to_vec(), state.encode().to_vec()).map_err(refuse)?;
                }
                LogOp::Compact(index) => batch.add_command(region, Command::Compact { index }),
            }
        }
        self.engine.write(&mut batch, sync).map_err(refuse)?;
        Ok(())
    }

    fn entries(&self, region: u64, low: u64, high: u64, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        assert!(low <= high, "raft log of r{region}: reading {low} to {high}");
        let fetch = || {
            // Bounded: the engine reserves room for all indexes up front.
            let mut entries = Vec::new();
            let high = high.min(low + 4096);
            self.engine.fetch_entries_to::<EntryIndex>(region, low, high, Some(bytes_max), &mut entries)?;
            Ok(entries)
        };
        let entries = self.on_own_thread(|| self.read(fetch))?;
        match entries.first() {
            Some(first) if first.index == low => Ok(entries),
            None if low == high => Ok(entries),
            _ => Err(LogError(format!("entry {low} of r{region} is missing"))),
        }
    }

    fn raft_state(&self, region: u64) -> Result<Option<RaftState>, LogError> {
        let Some(bytes) = self.engine.get(region, RAFT_STATE_KEY) else { return Ok(None) };
        let state = RaftState::decode(&bytes).ok_or_else(|| LogError(format!("raft state of r{region} is damaged")))?;
        Ok(Some(state))
    }

    fn span(&self, region: u64) -> Option<(u64, u64)> {
        self.engine.first_index(region).zip(self.engine.last_index(region))
    }

    fn regions(&self) -> Vec<u64> {
        self.engine.raft_groups()
    }

    fn purge(&self) -> Result<Vec<u64>, LogError> {
        self.engine.purge_expired_files().map_err(|error| LogError(error.to_string()))
    }

    fn used_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }
}

#[cfg(test)]
mod tests;
