//! What raft wants done: taken in `collect`, acknowledged in `finish`.

use braid_proto::pb::{RaftMessage, RegionEpoch};
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Ready, SnapshotStatus};

use super::snapshot::Install;
use super::{Env, Peer};
use crate::Done;
use crate::log::{LogOp, LogWrite};
use crate::meta::RaftState;
use crate::storage::{SnapshotFiles, SnapshotSlot, entry_bytes};
use crate::support::Now;

/// Bytes of entries in one message. raft's own batching may put more into one; it is cut here.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Everything the peers of a worker want done, in one round.
#[derive(Default)]
pub(crate) struct Effects {
    /// Messages and the host each goes to.
    pub messages: Vec<(u64, RaftMessage)>,
    pub log: LogWrite,
    pub sync: bool,
    /// Raft snapshots to install; their intent goes to RocksDB before `log` is written.
    pub installs: Vec<Install>,
    pub committed: Vec<Committed>,
    /// Raft snapshots to make: (region, peer, for which peer).
    pub generate: Vec<(u64, u64, u64)>,
    pub snapshots: Vec<OutgoingSnapshot>,
    /// Entries put into `log`, for metrics.
    pub appended: u64,
}

/// Committed entries of one region, for the apply thread.
pub(crate) struct Committed {
    pub region: u64,
    pub peer: u64,
    pub entries: Vec<Entry>,
    /// Who is to be told, by index.
    pub done: Vec<(u64, Done)>,
    /// This peer leads the term, and the first entry of it is among the entries.
    pub lead: Option<u64>,
    pub bytes: usize,
}

/// A raft snapshot on its way out.
pub(crate) struct OutgoingSnapshot {
    pub region: u64,
    pub peer: u64,
    pub to: u64,
    pub host: u64,
    pub message: RaftMessage,
    pub files: SnapshotFiles,
}

impl Peer {
    /// Takes what raft wants done. `room`: the apply thread can take more. What is returned goes to `finish`.
    pub fn collect(&mut self, now: Now, env: &Env, room: bool, effects: &mut Effects) -> Option<Ready> {
        if self.condemned {
            return None;
        }
        self.observe_role(now, env);
        self.post_dismissals(effects);
        self.post_renunciation(effects);
        self.want_snapshot(effects);
        if self.installing || (!room && self.apply_bytes > 0) {
            return None;
        }
        let withheld = std::mem::take(&mut self.withheld);
        self.hand(withheld, effects);
        if self.raw.snap().is_some() && self.handed != self.applied() {
            return None;
        }
        if self.is_leader()
            && self.raw.raft.commit_to_current_term()
            && let Some(context) = self.reads.next_context(now.0)
        {
            self.raw.read_index(context);
        }
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            self.reads.answered(&state.request_ctx, state.index);
        }
        self.reads.applied(self.handle.applied_index());
        let messages = ready.take_messages();
        self.send(messages, now, effects);
        let region = self.region_id();
        if let Some(hard) = ready.hs() {
            self.raft_state =
                RaftState { peer_id: self.peer_id(), term: hard.term, vote: hard.vote, commit: hard.commit };
        }
        if !ready.snapshot().is_empty() {
            effects.log.push(region, LogOp::Clean);
            let install = self.begin_install(ready.snapshot());
            effects.installs.push(install);
        }
        if !ready.entries().is_empty() {
            effects.appended += ready.entries().len() as u64;
            effects.log.push(region, LogOp::Append(ready.entries().clone()));
        }
        // A commit index that moved alone is not worth a write: the apply state makes up for it after a restart.
        if ready.must_sync() {
            effects.log.push(region, LogOp::State(self.raft_state));
            effects.sync = true;
        }
        let committed = ready.take_committed_entries();
        self.hand(committed, effects);
        Some(ready)
    }

    /// The log write that `collect` asked for is done.
    pub fn finish(&mut self, mut ready: Ready, now: Now, env: &Env, effects: &mut Effects) {
        if !ready.snapshot().is_empty() {
            let meta = ready.snapshot().get_metadata();
            let (index, term, conf_state) = (meta.index, meta.term, meta.get_conf_state().clone());
            self.raw.mut_store().reset(index, term, conf_state);
            self.log_bytes = 0;
        }
        self.log_bytes += ready.entries().iter().map(|entry| entry_bytes(entry) as u64).sum::<u64>();
        self.raw.mut_store().append(ready.entries());
        let messages = ready.take_persisted_messages();
        self.send(messages, now, effects);
        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raft_state.commit = commit;
        }
        let messages = light.take_messages();
        self.send(messages, now, effects);
        let committed = light.take_committed_entries();
        if self.installing {
            // They came in one round with the raft snapshot that they follow.
            self.withheld = committed;
        } else {
            self.hand(committed, effects);
        }
        if let Some(to) = self.failed_snapshot.take() {
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
        }
        self.retry();
        self.observe_role(now, env);
    }

    fn hand(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        let Some(last) = entries.last() else { return };
        self.handed = last.index;
        let done = self.proposals.committed(&entries);
        let lead = self.inaugurating.filter(|term| entries.iter().any(|entry| entry.term == *term));
        if lead.is_some() {
            self.inaugurating = None;
        }
        let bytes = entries.iter().map(entry_bytes).sum();
        self.apply_bytes += bytes;
        let (region, peer) = (self.region_id(), self.peer_id());
        effects.committed.push(Committed { region, peer, entries, done, lead, bytes });
    }

    fn send(&mut self, messages: Vec<Message>, now: Now, effects: &mut Effects) {
        if messages.iter().any(|message| message.get_msg_type() == MessageType::MsgTimeoutNow) {
            self.void_lease();
        }
        for mut message in messages {
            match message.get_msg_type() {
                MessageType::MsgSnapshot => self.send_snapshot(message, effects),
                MessageType::MsgAppend => {
                    for part in cut(message) {
                        self.post(part, effects);
                    }
                }
                MessageType::MsgHeartbeat => {
                    // The answer brings it back and so proves that the voter was in this term after `now`.
                    if message.context.is_empty() {
                        message.context = now.0.to_be_bytes().to_vec().into();
                    }
                    self.post(message, effects);
                }
                _ => self.post(message, effects),
            }
        }
    }

    pub(super) fn post(&self, message: Message, effects: &mut Effects) {
        if let Some((host, message)) = self.envelope(message) {
            effects.messages.push((host, message));
        }
    }

    fn envelope(&self, message: Message) -> Option<(u64, RaftMessage)> {
        let mut known = self.peers.iter().chain(&self.strangers);
        let to = known.find(|peer| peer.id == message.to).copied()?;
        // Only messages that may create a peer over there carry the region's shape.
        let creates = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote | MessageType::MsgSnapshot
        ) || (message.get_msg_type() == MessageType::MsgHeartbeat && message.commit == 0);
        let region = self.handle.region();
        // What raft goes by: whoever gets this is in it.
        let epoch = Some(RegionEpoch { conf_ver: self.conf_ver, ..region.region_epoch() });
        let (start, end) = if creates { (region.start.clone(), region.end.clone()) } else { Default::default() };
        let bytes = message.write_to_bytes().expect("a raft message has no required fields");
        let envelope = RaftMessage {
            region_id: self.region_id(),
            epoch,
            from: Some(self.handle.peer()),
            to: Some(to),
            message: bytes.into(),
            start,
            end,
            gone: false,
        };
        Some((to.store_id, envelope))
    }

    /// Tells removed peers that they are none.
    fn post_dismissals(&mut self, effects: &mut Effects) {
        for to in std::mem::take(&mut self.dismissals) {
            let message = RaftMessage {
                region_id: self.region_id(),
                epoch: self.handle.region().epoch,
                from: Some(self.handle.peer()),
                to: Some(to),
                gone: true,
                ..RaftMessage::default()
            };
            effects.messages.push((to.store_id, message));
        }
    }

    fn send_snapshot(&mut self, message: Message, effects: &mut Effects) {
        let to = message.to;
        let slot = self.raw.store().snapshots.replace(SnapshotSlot::Sending(to));
        match (slot, self.envelope(message)) {
            (SnapshotSlot::Ready { to: ready_for, files, .. }, Some((host, message))) if ready_for == to => {
                let (region, peer) = (self.region_id(), self.peer_id());
                effects.snapshots.push(OutgoingSnapshot { region, peer, to, host, message, files });
            }
            // The files are gone with a role that was lost meanwhile: as if the transport had failed.
            _ => {
                self.raw.store().snapshots.replace(SnapshotSlot::Idle);
                self.failed_snapshot = Some(to);
            }
        }
    }
}

/// Cuts a MsgAppend into parts of bounded size. Each is complete in itself.
fn cut(mut message: Message) -> Vec<Message> {
    let bytes: usize = message.entries.iter().map(entry_bytes).sum();
    if bytes <= MESSAGE_BYTES_MAX {
        return vec![message];
    }
    let entries = std::mem::take(&mut message.entries).into_vec();
    let mut parts = Vec::new();
    let mut part = message.clone();
    let mut filled = 0;
    for entry in entries {
        let bytes = entry_bytes(&entry);
        if filled > 0 && filled + bytes > MESSAGE_BYTES_MAX {
            let last = part.entries.last().expect("filled");
            let (index, log_term) = (last.index, last.term);
            parts.push(std::mem::replace(&mut part, message.clone()));
            (part.index, part.log_term) = (index, log_term);
            filled = 0;
        }
        filled += bytes;
        part.entries.push(entry);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_appends_are_cut_into_complete_ones() {
        let entry = |index| Entry { index, term: index / 4, data: vec![0; 700 << 10].into(), ..Default::default() };
        let mut message = Message { index: 9, log_term: 2, commit: 12, term: 5, ..Default::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.entries = (10..20).map(entry).collect::<Vec<_>>().into();
        let parts = cut(message.clone());
        assert!(parts.len() > 3);
        let mut before = (9, 2);
        let mut joined = Vec::new();
        for part in parts {
            assert_eq!((part.index, part.log_term, part.commit, part.term), (before.0, before.1, 12, 5));
            let last = part.entries.last().unwrap();
            before = (last.index, last.term);
            joined.extend(part.entries.iter().cloned());
        }
        assert_eq!(joined, message.entries.to_vec());
    }
}
