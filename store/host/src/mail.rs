//! What reaches a raft worker: mail from outside through a bounded box that refuses when full, notes of the host's own
//! threads through a box that never loses one (each thread has a bounded number of them on its way per region).

use std::path::PathBuf;
use std::sync::Arc;

use braid_proto::pb::{Peer, Region, SnapshotManifest};
use bytes::Bytes;
use raft::eraftpb::{Message, Snapshot};

use crate::handle::{PeerHandle, Transferred};
use crate::meta::ApplyState;
use crate::reads::Confirmed;
use crate::split::SplitSpec;
use crate::storage::SnapshotFiles;
use crate::{Done, Outcome, RegionMachine};

/// A piece of mail on its way. Whoever drops it unread has it refused, so that every question gets its answer also when
/// the worker ends.
pub(crate) struct Envelope(Option<Mail>);

impl Envelope {
    pub fn new(mail: Mail) -> Self {
        Self(Some(mail))
    }

    pub fn open(mut self) -> Mail {
        self.0.take().expect("an envelope is opened once")
    }
}

impl Drop for Envelope {
    fn drop(&mut self) {
        if let Some(mail) = self.0.take() {
            mail.refuse("the raft worker is overloaded or stopped");
        }
    }
}

/// From outside.
pub(crate) enum Mail {
    /// Raft messages of one frame.
    Messages { host: u64, incarnation: u64, letters: Vec<Letter> },
    /// A raft snapshot has arrived completely.
    Snapshot(Box<Parcel>),
    /// A data entry.
    Propose { region: u64, term: u64, data: Bytes, done: Done },
    /// Anything else for one peer.
    Command { region: u64, command: Command },
}

/// One raft message, decoded, with what the receiver needs to judge it.
pub(crate) struct Letter {
    pub region: u64,
    pub to: Peer,
    pub from: Peer,
    /// Only with messages that may create a peer: range and epoch of the sender's region.
    pub shape: Option<Region>,
    pub message: Message,
}

/// A raft snapshot that arrived: its message and its files.
pub(crate) struct Parcel {
    pub host: u64,
    pub incarnation: u64,
    pub letter: Letter,
    pub manifest: SnapshotManifest,
    pub dir: SnapshotDir,
}

/// A folder of received snapshot files; removed with this unless it was taken over.
pub(crate) struct SnapshotDir(pub Option<PathBuf>);

impl SnapshotDir {
    pub fn take(mut self) -> PathBuf {
        self.0.take().expect("a snapshot folder is taken once")
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a refused snapshot");
        }
    }
}

/// A request of this process to one peer.
pub(crate) enum Command {
    Split { term: u64, spec: SplitSpec, done: Done },
    Transfer { term: u64, to: u64, done: Transferred },
    Confirm { term: u64, done: Confirmed },
    Campaign,
}

impl Command {
    /// Answers a command that nobody carries out.
    pub fn refuse(self, why: &str) {
        match self {
            Command::Split { done, .. } => done(Outcome::Dropped),
            Command::Transfer { done, .. } => done(Err(why.to_owned())),
            Command::Confirm { done, .. } => done(false),
            Command::Campaign => {}
        }
    }
}

impl Mail {
    /// Answers mail that nobody reads.
    fn refuse(self, why: &str) {
        match self {
            Mail::Messages { .. } | Mail::Snapshot(_) => {}
            Mail::Propose { done, .. } => done(Outcome::Dropped),
            Mail::Command { command, .. } => command.refuse(why),
        }
    }
}

/// A peer that is to be driven from now on: its state is durable, its machine open, its handle in the table.
pub(crate) struct Birth {
    pub handle: PeerHandle,
    pub machine: Arc<dyn RegionMachine>,
    pub apply: ApplyState,
    pub origin: Origin,
}

/// Where a peer comes from: decides when it may vote and campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was there before this start of the process and may have promised something.
    Restarted,
    /// Made with its region; nobody can have promised anything about it.
    Created,
    /// Child of a split on the parent's leader: campaigns at once.
    SplitLeader,
    /// Child of a split elsewhere: waits first (rule S2).
    SplitFollower,
}

/// From the host's own threads.
pub(crate) enum Note {
    Create(Box<Birth>),
    /// The apply thread applied up to `index`.
    Applied {
        region: u64,
        peer: u64,
        index: u64,
        bytes: usize,
        truncated: Option<(u64, u64)>,
        split: bool,
    },
    /// An installed snapshot's data is complete.
    Installed {
        region: u64,
        peer: u64,
        machine: Arc<dyn RegionMachine>,
        apply: ApplyState,
    },
    /// A snapshot for a follower is ready, or could not be made.
    Generated {
        region: u64,
        peer: u64,
        to: u64,
        result: Result<(Box<Snapshot>, SnapshotFiles), String>,
    },
    /// A snapshot was sent, or not.
    Sent {
        region: u64,
        peer: u64,
        to: u64,
        ok: bool,
    },
    /// A frame with messages for this peer was not taken by the transport.
    Unreachable {
        region: u64,
        peer: u64,
        to: u64,
    },
    /// A proposal of this term was refused for want of room.
    GiveUp {
        region: u64,
        term: u64,
    },
    /// Data up to here is durable without the log, which may go.
    Compact {
        region: u64,
        peer: u64,
        index: u64,
    },
    /// Old entries of these regions pin log files.
    ForceCompact {
        region: u64,
    },
    Stop,
}
