//! What reaches a raft worker: mail from outside through a bounded box that refuses when full, notes of the host's own
//! threads through a box that never loses one (each thread has a bounded number of them on its way per region).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use braid_proto::pb::{Peer, Region, RegionEpoch, SnapshotManifest};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use raft::eraftpb::{Message, Snapshot};

use crate::bell::Bell;
use crate::change::{ChangeRefused, Changed, PeerChange};
use crate::handle::{PeerHandle, Transferred};
use crate::meta::{ApplyState, Change};
use crate::reads::Confirmed;
use crate::split::SplitSpec;
use crate::storage::SnapshotFiles;
use crate::{Done, Outcome, RegionMachine};

/// The bounded box of one worker.
///
/// A box whose reader has gone keeps what lies in it for as long as somebody may still write, and with it callbacks
/// that somebody waits for. So both sides empty a closed box: the reader after it has closed it, a writer after it has
/// written and sees it closed. Whichever comes last finds the mail.
pub(crate) struct MailBox {
    sender: Sender<Envelope>,
    receiver: Receiver<Envelope>,
    closed: AtomicBool,
    /// Of the worker.
    bell: Arc<Bell>,
}

impl MailBox {
    /// A box for so many pieces of mail, whose reader has this bell.
    pub fn new(capacity: usize, bell: Arc<Bell>) -> Self {
        let (sender, receiver) = bounded(capacity);
        Self { sender, receiver, closed: AtomicBool::new(false), bell }
    }

    /// Posts, or gives the mail back because the box is full or closed.
    pub fn post(&self, mail: Mail) -> Result<(), Mail> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(mail);
        }
        match self.sender.try_send(Envelope(Some(mail))) {
            Ok(()) => {
                if self.closed.load(Ordering::SeqCst) {
                    self.receiver.try_iter().for_each(drop);
                }
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(mail) | TrySendError::Disconnected(mail)) => {
                metrics::counter!("braid_raft_mailbox_full_total").increment(1);
                Err(mail.open())
            }
        }
    }

    /// Rings when there is mail.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// The reading end.
    pub fn receiver(&self) -> &Receiver<Envelope> {
        &self.receiver
    }

    /// Takes no more mail and refuses what is in it.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.receiver.try_iter().for_each(drop);
    }
}

/// A piece of mail on its way. Dropped unread it is refused, so that every question gets its answer.
pub(crate) struct Envelope(Option<Mail>);

impl Envelope {
    pub fn open(mut self) -> Mail {
        self.0.take().expect("an envelope is opened once")
    }
}

impl Drop for Envelope {
    fn drop(&mut self) {
        if let Some(mail) = self.0.take() {
            mail.refuse();
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
    /// Epoch of the sender's region, and with messages that may create a peer its range.
    pub shape: Option<Region>,
    /// Not a raft message: the region has no peer `to` any more.
    pub gone: bool,
    pub message: Message,
}

impl Letter {
    /// Configuration of the sender; 0: it did not say.
    pub fn conf_ver(&self) -> u64 {
        self.shape.as_ref().map_or(0, |shape| shape.region_epoch().conf_ver)
    }
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
    Change { term: u64, epoch: RegionEpoch, change: PeerChange, done: Changed },
    Reshape { term: u64, reshape: Box<Reshape>, done: Changed },
    Campaign,
}

/// A step of a merge, see [`crate::merge`].
#[derive(Debug)]
pub(crate) enum Reshape {
    /// For this target.
    Freeze(Region),
    /// The target as it is now.
    Thaw(Region),
    /// This frozen source.
    Merge(Region),
    /// The region is at this epoch.
    Bump(RegionEpoch),
}

impl Command {
    /// Answers a command that nobody carries out.
    pub fn refuse(self, why: &str) {
        match self {
            Command::Split { done, .. } => done(Outcome::Dropped),
            Command::Transfer { done, .. } => done(Err(why.to_owned())),
            Command::Confirm { done, .. } => done(false),
            Command::Change { done, .. } | Command::Reshape { done, .. } => {
                done(Err(ChangeRefused::NotNow(why.to_owned())))
            }
            Command::Campaign => {}
        }
    }
}

impl Mail {
    /// Answers mail that nobody reads.
    pub fn refuse(self) {
        match self {
            Mail::Messages { .. } | Mail::Snapshot(_) => {}
            Mail::Propose { done, .. } => done(Outcome::Dropped),
            Mail::Command { command, .. } => command.refuse("the raft worker is overloaded or stopped"),
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

/// What applied entries changed beside data.
#[derive(Default)]
pub(crate) struct Applied {
    /// The log is truncated up to here, and the term there.
    pub truncated: Option<(u64, u64)>,
    /// A split or a freeze was applied, or refused.
    pub reshaped: bool,
    /// Changes of peers that were accepted, in order.
    pub changes: Vec<Change>,
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
        effect: Applied,
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
    /// The peer is to be destroyed if its region's configuration is no newer than `conf_ver`.
    Destroy {
        region: u64,
        peer: u64,
        conf_ver: u64,
    },
    /// The tombstone of a peer is written, or the peer has become one that stays. `data`: the region that it held.
    Buried {
        region: u64,
        peer: u64,
        buried: bool,
        data: Option<Box<Region>>,
    },
    /// The data of a destroyed peer is deleted.
    Cleared {
        region: u64,
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn question(tell: &mpsc::Sender<Outcome>) -> Mail {
        let tell = tell.clone();
        let done: Done = Box::new(move |outcome| tell.send(outcome).unwrap());
        Mail::Propose { region: 1, term: 1, data: Bytes::new(), done }
    }

    #[test]
    fn a_closed_box_refuses_what_lies_in_it_and_what_comes() {
        let (tell, told) = mpsc::channel();
        let mail = MailBox::new(2, Arc::default());
        assert!(mail.post(question(&tell)).is_ok() && mail.post(question(&tell)).is_ok());
        assert!(mail.post(question(&tell)).is_err(), "full");
        mail.close();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [Outcome::Dropped; 2]);
        assert!(mail.post(question(&tell)).is_err(), "closed");
    }

    #[test]
    fn whoever_writes_while_the_box_closes_gets_an_answer() {
        for _ in 0..2000 {
            let (tell, told) = mpsc::channel();
            let mail = Arc::new(MailBox::new(4, Arc::default()));
            let writer = std::thread::spawn({
                let mail = Arc::clone(&mail);
                move || mail.post(question(&tell)).is_ok()
            });
            mail.close();
            let posted = writer.join().unwrap();
            // The box itself is still there, as it is while somebody holds a handle.
            assert_eq!(told.try_iter().count(), usize::from(posted));
        }
    }
}
