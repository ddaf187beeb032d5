//! Many raft groups over one log: the multi-raft host, for any state machine.
//!
//! A store runs its data regions on one host, placement runs its single group on another. The host owns the raft
//! groups, the shared raft-engine log, the RocksDB instance, apply order, snapshots, log truncation, splits and leader
//! leases. What entries mean is the state machine's business ([`StateMachine`], [`RegionMachine`]).
//!
//! ```text
//!            propose / split / transfer / confirm                    RaftFrame, snapshots
//!  machine ───────────────────────────────────►  raft worker(s)  ◄──────────────────────►  transport ── other hosts
//!     ▲   ◄── on_follower ─────────────────────  step, tick, ready
//!     │                                          leader sends, one log write + fsync for all regions, acks
//!     │                                              │ committed entries
//!     └── apply, on_leader, on_region, done ◄──  apply thread  ── RocksDB (data + apply state in one batch)
//! ```
//!
//! Deliberately absent: clocks, threads or I/O in the pure parts ([`support`], `peer`); retries on behalf of clients;
//! any knowledge of keys' meaning beyond their order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use braid_proto::id::Term;
use braid_proto::pb::{Peer, RaftFrame, Region};
use bytes::Bytes;
use rocksdb::{ColumnFamilyDescriptor, DB, WriteBatch};

mod absorb;
mod applied;
mod apply;
mod bell;
mod change;
pub mod config;
mod destroy;
mod error;
mod gc;
mod guard;
mod handle;
mod host;
mod inbound;
mod lease;
mod log;
mod mail;
mod merge;
mod meta;
mod pace;
mod peer;
mod proposals;
mod reads;
mod recover;
mod snapshot;
mod split;
mod storage;
pub mod support;
mod table;
#[cfg(test)]
mod tests;
pub mod transport;
mod worker;

pub use change::{ChangeRefused, Changed, PeerChange};
pub use error::OpenError;
pub use handle::{PROPOSAL_BYTES_MAX, PeerHandle, Transferred};
pub use host::{Host, SupportHeld};
pub use merge::Frozen;
pub use pace::Pace;
pub use reads::Confirmed;
pub use split::SplitSpec;

/// What the entries of a host's regions mean. One value serves all regions of a host.
pub trait StateMachine: Send + Sync + 'static {
    /// Column families that hold the regions' data, beside the host's own.
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor>;

    /// Called once for every peer before it takes part in anything: at start, at creation, for the child of a split,
    /// and again (a fresh machine for the same peer) after a snapshot has replaced the region's data.
    fn open_region(&self, db: Arc<DB>, peer: PeerHandle) -> Arc<dyn RegionMachine>;

    /// Where the data of `region` lies: what a snapshot carries and what destroying a peer deletes. What the machine keeps
    /// of it elsewhere follows in [`Self::before_clear`] and [`Self::on_snapshot`].
    fn data_ranges(&self, region: &Region) -> Vec<DataRange>;

    /// Called once at start, before anything is read or replaced. An error says why the folder cannot be used.
    ///
    /// # Errors
    /// The machine's own rows cannot be read.
    fn opened(&self, db: &Arc<DB>) -> Result<(), String> {
        _ = db;
        Ok(())
    }

    /// What a receiver of a raft snapshot must know about all of this host's data; 0: nothing. Asked for after the files
    /// are written, so it covers whatever was dropped under the writer's hands.
    fn snapshot_mark(&self) -> i64 {
        0
    }

    /// A raft snapshot with this mark is about to be taken in. Durable when it returns; may be repeated.
    ///
    /// # Errors
    /// The mark cannot be written: fatal for the process.
    fn on_snapshot_mark(&self, mark: i64) -> Result<(), String> {
        _ = mark;
        Ok(())
    }

    /// The data of `region` is about to be deleted from its ranges; what follows from it elsewhere goes now, while it can
    /// still be found. Nothing of it is applied meanwhile. May be repeated, also when a part of the data is gone already.
    ///
    /// # Errors
    /// It cannot be deleted: fatal for the process.
    fn before_clear(&self, db: &DB, region: &Region) -> Result<(), String> {
        _ = (db, region);
        Ok(())
    }

    /// A raft snapshot has filled the ranges of `region`; what follows from it elsewhere is made now, before the region is
    /// opened or takes part in anything. Written with the WAL on, it is as durable as the installation. May be repeated.
    ///
    /// # Errors
    /// It cannot be made: fatal for the process.
    fn on_snapshot(&self, db: &DB, region: &Region) -> Result<(), String> {
        _ = (db, region);
        Ok(())
    }

    /// `target` (as it is up to now) takes in `source` (as it was frozen), whose data stays where it is: what else changes
    /// with that goes into `batch`, which the host writes synced. Called on the apply thread of every replica, where
    /// everything of both up to here is applied; again after a crash that came before the batch was durable.
    ///
    /// # Errors
    /// It cannot be told: fatal for the process.
    fn merge(&self, db: &DB, target: &Region, source: &Region, batch: &mut WriteBatch) -> Result<(), String> {
        _ = (db, target, source, batch);
        Ok(())
    }
}

/// A half-open range of raw RocksDB keys in one column family. An empty `end` is unbounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRange {
    /// Name of the column family.
    pub cf: &'static str,
    /// First key.
    pub start: Vec<u8>,
    /// First key after it; empty: there is none.
    pub end: Vec<u8>,
}

/// A committed data entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: Term,
    /// What was proposed.
    pub data: Bytes,
}

/// One region replica's state machine. Calls come from the host's threads and must not block on anything but RocksDB.
pub trait RegionMachine: Send + Sync + 'static {
    /// Applies `entries`, in index order. `batch` already carries the apply state that goes with them: the machine
    /// adds its changes and writes the batch exactly once (RocksDB WAL on, not synced). Deterministic: equal entries
    /// leave equal data on every replica. A write error is fatal for the process.
    fn apply(&self, entries: &[Entry], batch: WriteBatch);

    /// This peer leads in `term` and the first entry of the term is applied: evaluation may start (rule O2).
    /// Called on the apply thread, after everything before it is applied.
    fn on_leader(&self, term: Term);

    /// This peer does not lead (any more) in `term`. `leader` is known or not. Called on a raft worker as soon as it is
    /// known; compare terms, calls of the two threads may cross.
    fn on_follower(&self, term: Term, leader: Option<Peer>);

    /// The region's range, peers or epoch changed by an applied entry. Called on the apply thread in log order.
    fn on_region(&self, region: &Region);

    /// The region is frozen to go into another one, or (`None`) goes on by itself. Called on the apply thread in log order,
    /// after [`Self::on_region`]; once more after the start of a peer that is frozen.
    fn on_frozen(&self, frozen: Option<&Frozen>) {
        _ = frozen;
    }

    /// The region, now `merged`, has taken in `source`. Called on the apply thread after that is durable and after
    /// [`Self::on_region`], before the source's machine gets [`Self::on_destroyed`].
    fn on_merged(&self, source: &Region, merged: &Region) {
        _ = (source, merged);
    }

    /// What this peer's lease rests on has changed so that it may end sooner, or is gone. Called before anything leaves this
    /// host that could let somebody else lead; must not block.
    fn on_lease(&self) {}

    /// Approximate bytes and keys of the data, for reports.
    fn approximate_size(&self) -> (u64, u64);

    /// This peer is gone for good, removed from its region or with its region: what waits for it here will not be answered.
    /// Called once, on the apply thread, after that is durable and before the data is deleted (what another region has
    /// taken in is not); nothing is called afterwards.
    fn on_destroyed(&self) {}
}

/// How a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Committed and applied here.
    Applied,
    /// Certainly never happens: it left no trace in any log that can win.
    Dropped,
    /// Nobody here can tell (the peer was destroyed, or a snapshot jumped over the index).
    Unknown,
}

/// Called exactly once. `Applied` comes on the apply thread in log order after [`RegionMachine::apply`] returned.
pub type Done = Box<dyn FnOnce(Outcome) + Send + 'static>;

/// Delivers frames between hosts. Queues are bounded and lossy: raft repeats what is lost.
pub trait Transport: Send + Sync + 'static {
    /// Queues `frame` for host `frame.to_host`; never blocks. False: it was dropped (queue full, host unknown).
    fn send(&self, frame: RaftFrame) -> bool;

    /// Sends a raft snapshot: `frame` holds the one MsgSnapshot, `files` are the manifest's files in order.
    /// `done` is called exactly once, with why it failed if it did.
    fn send_snapshot(&self, frame: RaftFrame, files: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>);
}

/// Where the transport hands over what arrives.
pub trait Inbound: Send + Sync + 'static {
    /// A frame for this host arrived. Never blocks; a full mailbox drops the frame.
    fn receive(&self, frame: RaftFrame);

    /// All files of a snapshot lie complete, checked against the manifest's sizes and sums and synced in `dir`, named
    /// `0.sst`, `1.sst`, ... in manifest order. The host owns the folder from here on and removes it.
    fn receive_snapshot(&self, frame: RaftFrame, dir: PathBuf);

    /// Folder for incoming snapshots (on the disk of the data, so that files can be moved in).
    fn snapshot_dir(&self) -> &Path;

    /// How fast [`Self::snapshot_dir`] may be written to.
    fn snapshot_pace(&self) -> Arc<Pace>;
}
