//! Messages out: one frame per host and round, cut where it gets large; raft snapshots on their own way.

use std::collections::BTreeMap;

use braid_proto::pb::{RaftFrame, RaftMessage};

use super::{Effects, Note, Worker};
use crate::bell::Ringing;
use crate::peer::OutgoingSnapshot;

/// Bytes of raft messages in one frame, more only where a single message is larger.
const FRAME_BYTES_MAX: usize = 1 << 20;

impl Worker {
    /// Sends what the round has gathered so far.
    pub(super) fn send(&mut self, effects: &mut Effects) {
        let mut frames: BTreeMap<u64, Vec<RaftMessage>> = BTreeMap::new();
        for (host, message) in effects.messages.drain(..) {
            frames.entry(host).or_default().push(message);
        }
        for (host, messages) in frames {
            let mut part = Vec::new();
            let mut bytes = 0;
            for message in messages {
                let size = message.message.len() + message.start.len() + message.end.len() + 64;
                if bytes + size > FRAME_BYTES_MAX && !part.is_empty() {
                    self.send_frame(host, std::mem::take(&mut part));
                    bytes = 0;
                }
                bytes += size;
                part.push(message);
            }
            self.send_frame(host, part);
        }
        for snapshot in effects.snapshots.drain(..) {
            self.send_snapshot(snapshot);
        }
    }

    fn send_frame(&self, host: u64, messages: Vec<RaftMessage>) {
        let mut lost: Vec<(u64, u64, u64)> = Vec::new();
        for message in &messages {
            let (Some(from), Some(to)) = (message.from, message.to) else { continue };
            lost.push((message.region_id, from.id, to.id));
        }
        let frame = RaftFrame { messages, ..self.core.frame(host) };
        if self.core.transport.send(frame) {
            return;
        }
        metrics::counter!("braid_raft_frames_refused_total").increment(1);
        lost.dedup();
        for (region, peer, to) in lost {
            self.core.note(region, Note::Unreachable { region, peer, to });
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        let OutgoingSnapshot { region, peer, to, host, message, files } = snapshot;
        let frame = RaftFrame { messages: vec![message], ..self.core.frame(host) };
        let paths = files.files.clone();
        let sent = Sent { notes: self.core.post(region).notes.clone(), region, peer, to, ok: false };
        let done = move |result: Result<(), String>| {
            let mut sent = sent;
            match result {
                Ok(()) => {
                    metrics::counter!("braid_raft_snapshots_sent_total").increment(1);
                    sent.ok = true;
                }
                Err(why) => tracing::warn!(region, to, why, "raft snapshot not sent"),
            }
            // The files go only when nobody reads them any more.
            drop(files);
        };
        self.core.transport.send_snapshot(frame, paths, Box::new(done));
    }
}

/// Tells raft how a snapshot ended, also when the transport forgets it: a follower that is never reported stays paused
/// for ever.
struct Sent {
    notes: Ringing<Note>,
    region: u64,
    peer: u64,
    to: u64,
    ok: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        // A worker that has ended needs no report.
        self.notes.send(Note::Sent { region: self.region, peer: self.peer, to: self.to, ok: self.ok });
    }
}
