//! How [`State`] lies in RocksDB: one row for each thing that changes on its own, in column family `placement`.
//!
//! | key                    | value           | holds                                     |
//! |------------------------|-----------------|-------------------------------------------|
//! | `c`                    | `StoredCluster` | format, cluster id, next id, progress     |
//! | `r`, region id, 8 bytes| `Region`        | a region that the cluster began with      |
//! | `p`                    | `StoredScheduling` | what schedulers go by                  |
//! | `s`, store id, 8 bytes | `StoredStore`   | a store                                   |
//! | `w`                    | `StoredWindow`  | the sequencer's window                    |
//! | `x`                    | `StoredMarks`   | compacted revision, auth revision         |
//!
//! Ids are big endian. Rows are only overwritten, never deleted.

use std::collections::BTreeMap;

use braid_proto::id::{ClusterId, Revision, SequencerEpoch, StoreId};
use braid_proto::pb::{
    Region, Store, StoredAnswer, StoredCluster, StoredDrain, StoredLabel, StoredMarks, StoredScheduling, StoredStore,
    StoredWindow,
};
use prost::Message;
use thiserror::Error;

use super::{Drain, FORMAT, Scheduling, State, StoreRecord};
use crate::sequencer::{LastAnswer, Marks, WindowRecord};

/// Name of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// `c`
    Cluster,
    /// `r`
    FirstRegion(u64),
    /// `p`
    Scheduling,
    /// `s`
    Store(StoreId),
    /// `w`
    Window,
    /// `x`
    Marks,
}

/// Why rows make no state.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RowError {
    /// Not one of the keys above.
    #[error("placement's data has an unknown row {0:02x?}")]
    Unknown(Vec<u8>),
    /// The value does not decode, or contradicts its key.
    #[error("row {0:?} of placement's data is damaged")]
    Damaged(Row),
    /// A newer program wrote it.
    #[error("placement's data has format {0}, this program knows formats up to {FORMAT}: start the newer version")]
    Newer(u32),
}

impl Row {
    /// The bytes of its key.
    pub fn key(self) -> Vec<u8> {
        let with_id = |tag: u8, id: u64| [&[tag][..], &id.to_be_bytes()].concat();
        match self {
            Row::Cluster => vec![b'c'],
            Row::FirstRegion(id) => with_id(b'r', id),
            Row::Scheduling => vec![b'p'],
            Row::Store(id) => with_id(b's', id.0),
            Row::Window => vec![b'w'],
            Row::Marks => vec![b'x'],
        }
    }

    /// The row that has this key.
    pub fn from_key(key: &[u8]) -> Result<Self, RowError> {
        let row = match key.split_first() {
            Some((b'c', [])) => Some(Row::Cluster),
            Some((b'p', [])) => Some(Row::Scheduling),
            Some((b'w', [])) => Some(Row::Window),
            Some((b'x', [])) => Some(Row::Marks),
            Some((b'r', id)) => id.try_into().ok().map(|id| Row::FirstRegion(u64::from_be_bytes(id))),
            Some((b's', id)) => id.try_into().ok().map(|id| Row::Store(StoreId(u64::from_be_bytes(id)))),
            _ => None,
        };
        row.ok_or_else(|| RowError::Unknown(key.to_vec()))
    }
}

impl State {
    /// The value of a row; empty for a row that the state does not have.
    pub fn value(&self, row: Row) -> Vec<u8> {
        match row {
            Row::Cluster => StoredCluster {
                format: FORMAT,
                cluster_id: self.cluster_id.0,
                next_id: self.next_id,
                regions_started: self.regions_started,
            }
            .encode_to_vec(),
            Row::FirstRegion(id) => self.first_regions.get(&id).map(Message::encode_to_vec).unwrap_or_default(),
            Row::Store(id) => {
                self.stores.get(&id).map(|record| stored_store(record).encode_to_vec()).unwrap_or_default()
            }
            Row::Scheduling => {
                let paused = self.scheduling.paused.iter().cloned().collect();
                StoredScheduling { paused, settings: stored_labels(&self.scheduling.settings) }.encode_to_vec()
            }
            Row::Window => stored_window(&self.window).encode_to_vec(),
            Row::Marks => {
                let (compacted, auth_revision) = (self.marks.compacted.map(|it| it.0), self.marks.auth_revision);
                StoredMarks { compacted, auth_revision }.encode_to_vec()
            }
        }
    }

    /// The state that lies in `rows`.
    pub fn load(rows: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>) -> Result<Self, RowError> {
        let mut state = State::default();
        for (key, value) in rows {
            let row = Row::from_key(key.as_ref())?;
            state.set(row, value.as_ref())?;
        }
        Ok(state)
    }

    fn set(&mut self, row: Row, value: &[u8]) -> Result<(), RowError> {
        match row {
            Row::Cluster => {
                let cluster: StoredCluster = decode(row, value)?;
                if cluster.format > FORMAT {
                    return Err(RowError::Newer(cluster.format));
                }
                self.cluster_id = ClusterId(cluster.cluster_id);
                self.next_id = cluster.next_id;
                self.regions_started = cluster.regions_started;
            }
            Row::FirstRegion(id) => {
                let region: Region = decode(row, value)?;
                if region.id != id {
                    return Err(RowError::Damaged(row));
                }
                self.first_regions.insert(id, region);
            }
            Row::Store(id) => {
                let stored: StoredStore = decode(row, value)?;
                if stored.id != id.0 {
                    return Err(RowError::Damaged(row));
                }
                self.stores.insert(id, store(stored));
            }
            Row::Scheduling => {
                let stored: StoredScheduling = decode(row, value)?;
                let (paused, settings) = (stored.paused.into_iter().collect(), labels(stored.settings));
                self.scheduling = Scheduling { paused, settings };
            }
            Row::Window => self.window = window(&decode(row, value)?),
            Row::Marks => {
                let marks: StoredMarks = decode(row, value)?;
                self.marks = Marks { compacted: marks.compacted.map(Revision), auth_revision: marks.auth_revision };
            }
        }
        Ok(())
    }
}

fn decode<M: Message + Default>(row: Row, value: &[u8]) -> Result<M, RowError> {
    M::decode(value).map_err(|_| RowError::Damaged(row))
}

fn stored_store(record: &StoreRecord) -> StoredStore {
    let brought: BTreeMap<String, String> =
        record.store.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let drain = |drain: Drain| {
        let Drain { since_ms, replicas, leaders } = drain;
        StoredDrain { since_ms, replicas, leaders }
    };
    StoredStore {
        id: record.store.id,
        peer_addr: record.store.peer_addr.clone(),
        labels: stored_labels(&brought),
        version: record.store.version.clone(),
        name: record.name.clone(),
        held_peers: record.held_peers,
        set_labels: stored_labels(&record.set_labels),
        weight: Some(record.weight),
        drain: record.drain.map(drain),
        removed: record.removed.clone(),
    }
}

fn stored_labels(labels: &BTreeMap<String, String>) -> Vec<StoredLabel> {
    labels.iter().map(|(name, value)| StoredLabel { name: name.clone(), value: value.clone() }).collect()
}

fn labels(stored: Vec<StoredLabel>) -> BTreeMap<String, String> {
    stored.into_iter().map(|label| (label.name, label.value)).collect()
}

fn store(stored: StoredStore) -> StoreRecord {
    let brought = labels(stored.labels).into_iter().collect();
    let store = Store { id: stored.id, peer_addr: stored.peer_addr, labels: brought, version: stored.version };
    let drain = |drain: StoredDrain| {
        let StoredDrain { since_ms, replicas, leaders } = drain;
        Drain { since_ms, replicas, leaders }
    };
    StoreRecord {
        store,
        name: stored.name,
        held_peers: stored.held_peers,
        set_labels: labels(stored.set_labels),
        weight: stored.weight.unwrap_or(1.0),
        drain: stored.drain.map(drain),
        removed: stored.removed,
    }
}

fn stored_window(window: &WindowRecord) -> StoredWindow {
    StoredWindow {
        epoch: window.epoch.0,
        end: window.end.0,
        given: window.given.0,
        closed: window.closed,
        answers: window.answers.iter().map(StoredAnswer::from).collect(),
    }
}

fn window(stored: &StoredWindow) -> WindowRecord {
    WindowRecord {
        epoch: SequencerEpoch(stored.epoch),
        end: Revision(stored.end),
        given: Revision(stored.given),
        closed: stored.closed,
        answers: stored.answers.iter().map(LastAnswer::from).collect(),
    }
}
