//! A log in memory, for tests of what stands above it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use raft::eraftpb::Entry;

use super::{LogError, LogOp, LogStore, LogWrite};
use crate::meta::RaftState;

/// [`LogStore`] without a disk. Remembers how often it was asked to sync.
#[derive(Default)]
pub struct MemoryLog {
    regions: Mutex<BTreeMap<u64, Group>>,
    /// Batches written, and how many of them synced.
    pub written: Mutex<(usize, usize)>,
}

#[derive(Default)]
struct Group {
    state: Option<RaftState>,
    entries: BTreeMap<u64, Entry>,
}

impl LogStore for MemoryLog {
    fn write(&self, write: LogWrite, sync: bool) -> Result<(), LogError> {
        let mut regions = self.regions.lock();
        for (region, op) in write.ops {
            let group = regions.entry(region).or_default();
            match op {
                LogOp::Clean => *group = Group::default(),
                LogOp::State(state) => group.state = Some(state),
                LogOp::Compact(index) => group.entries = group.entries.split_off(&index),
                LogOp::Append(entries) => {
                    let first = entries[0].index;
                    if let Some((&last, _)) = group.entries.last_key_value() {
                        assert!(first <= last + 1, "hole in the log of r{region}");
                    }
                    group.entries.split_off(&first);
                    group.entries.extend(entries.into_iter().map(|e| (e.index, e)));
                }
            }
        }
        let mut written = self.written.lock();
        written.0 += 1;
        written.1 += usize::from(sync);
        Ok(())
    }

    fn entries(&self, region: u64, low: u64, high: u64, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        let regions = self.regions.lock();
        let group = regions.get(&region).ok_or_else(|| LogError("no such region".into()))?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let entry = group.entries.get(&index).ok_or_else(|| LogError(format!("entry {index} is missing")))?;
            if bytes >= bytes_max && !entries.is_empty() {
                break;
            }
            bytes += entry.data.len();
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn raft_state(&self, region: u64) -> Result<Option<RaftState>, LogError> {
        Ok(self.regions.lock().get(&region).and_then(|group| group.state))
    }

    fn span(&self, region: u64) -> Option<(u64, u64)> {
        let regions = self.regions.lock();
        let entries = &regions.get(&region)?.entries;
        Some((*entries.first_key_value()?.0, *entries.last_key_value()?.0))
    }

    fn regions(&self) -> Vec<u64> {
        self.regions.lock().keys().copied().collect()
    }

    fn purge(&self) -> Result<Vec<u64>, LogError> {
        Ok(Vec::new())
    }

    fn used_bytes(&self) -> u64 {
        0
    }
}
