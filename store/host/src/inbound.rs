//! The door of a host: frames and raft snapshots that the transport hands over.
//!
//! Frames of another cluster, another kind of host or for somebody else are refused here. Support is answered here, on
//! the transport's thread: a promise needs no raft worker, while asking for support does (a worker that is stuck must
//! lose its leases). Messages are decoded here too, off the worker.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use braid_proto::pb::{RaftFrame, RaftMessage, Region, SnapshotManifest};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::Inbound;
use crate::host::Core;
use crate::mail::{Letter, Mail, Parcel, SnapshotDir};
use crate::pace::Pace;
use crate::support::Now;

/// Where the transport of a host delivers. Outlives the host; then it drops everything.
pub(crate) struct Door {
    pub core: Weak<Core>,
    pub snap_dir: PathBuf,
    pub snapshot_pace: Arc<Pace>,
}

impl Door {
    /// The host, if the frame is meant for it.
    fn admit(&self, frame: &RaftFrame) -> Option<Arc<Core>> {
        let core = self.core.upgrade()?;
        let wrong = if frame.cluster_id != core.cluster_id.0 {
            "another cluster"
        } else if frame.domain != core.domain as i32 {
            "another kind of host"
        } else if frame.to_host != core.env.host_id {
            "another host"
        } else {
            return Some(core);
        };
        metrics::counter!("braid_raft_frames_misdirected_total").increment(1);
        tracing::warn!(from = frame.from_host, to = frame.to_host, "a raft frame is for {wrong}; check the addresses");
        None
    }
}

impl Inbound for Door {
    fn receive(&self, frame: RaftFrame) {
        let Some(core) = self.admit(&frame) else { return };
        let (host, incarnation) = (frame.from_host, frame.from_incarnation);
        if let Some(support) = frame.support
            && let Some(grant) = core.env.support.on_frame(host, incarnation, &support, Now::monotonic())
        {
            core.transport.send(RaftFrame { support: Some(grant), ..core.frame(host) });
        }
        let mut letters: Vec<Vec<Letter>> = Vec::new();
        letters.resize_with(core.posts.len(), Vec::new);
        for message in frame.messages {
            if let Some(letter) = open(message) {
                // Raft snapshots come with files, on their own way.
                if letter.message.get_msg_type() != MessageType::MsgSnapshot {
                    letters[core.worker_of(letter.region)].push(letter);
                }
            }
        }
        for (post, letters) in core.posts.iter().zip(letters).filter(|(_, letters)| !letters.is_empty()) {
            // A full box loses messages, which raft repeats.
            _ = post.mail.post(Mail::Messages { host, incarnation, letters });
        }
    }

    fn receive_snapshot(&self, frame: RaftFrame, dir: PathBuf) {
        let dir = SnapshotDir(Some(dir));
        let Some(core) = self.admit(&frame) else { return };
        let (host, incarnation) = (frame.from_host, frame.from_incarnation);
        let letter = frame.messages.into_iter().next().and_then(open);
        let Some(letter) = letter.filter(|letter| letter.message.get_msg_type() == MessageType::MsgSnapshot) else {
            tracing::warn!(from = host, "a raft snapshot without its message was refused");
            return;
        };
        let data: bytes::Bytes = letter.message.get_snapshot().data.clone();
        let Ok(manifest) = SnapshotManifest::decode(data) else {
            tracing::warn!(from = host, "a raft snapshot with an unreadable manifest was refused");
            return;
        };
        let parcel = Parcel { host, incarnation, letter, manifest, dir };
        // Refused like a lost message: the files go with it, and raft sends another snapshot.
        _ = core.post(parcel.letter.region).mail.post(Mail::Snapshot(Box::new(parcel)));
    }

    fn snapshot_dir(&self) -> &Path {
        &self.snap_dir
    }

    fn snapshot_pace(&self) -> Arc<Pace> {
        Arc::clone(&self.snapshot_pace)
    }
}

fn open(message: RaftMessage) -> Option<Letter> {
    let (from, to) = (message.from?, message.to?);
    let shape = message.epoch.map(|epoch| Region {
        id: message.region_id,
        start: message.start,
        end: message.end,
        epoch: Some(epoch),
        peers: Vec::new(),
    });
    match Message::parse_from_carllerche_bytes(&message.message) {
        Ok(decoded) => {
            Some(Letter { region: message.region_id, to, from, shape, gone: message.gone, message: decoded })
        }
        Err(error) => {
            tracing::warn!(region = message.region_id, %error, "an unreadable raft message was dropped");
            None
        }
    }
}
