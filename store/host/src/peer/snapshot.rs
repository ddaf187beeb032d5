//! Raft snapshots as one peer sees them: wanted, generated and sent by a leader; received and installed by a follower.
//!
//! A follower installs in this order, each step durable before the next (`install` has the steps):
//!
//! 1. RocksDB: "applying", with what to install and the apply state it will leave.
//! 2. Log: cleaned, raft state at the snapshot. From here on the acknowledgement may leave.
//! 3. RocksDB: the region's old data deleted, the files taken in.
//! 4. RocksDB: "normal".

use braid_proto::id::PeerId;
use braid_proto::pb::{Region, SnapshotManifest};
use raft::SnapshotStatus;
use raft::eraftpb::Snapshot;

use super::{Effects, Env, Peer};
use crate::handle::PeerHandle;
use crate::mail::{Letter, Parcel, SnapshotDir};
use crate::meta::{ApplyState, RaftState};
use crate::storage::{SnapshotFiles, SnapshotSlot};
use crate::support::Now;

/// A raft snapshot that is to replace a region's data here.
pub(crate) struct Install {
    pub handle: PeerHandle,
    pub region: Region,
    /// The region before; None: the peer held nothing.
    pub replaced: Option<Region>,
    pub manifest: SnapshotManifest,
    pub dir: SnapshotDir,
    pub apply: ApplyState,
    pub raft_state: RaftState,
}

impl Peer {
    /// Passes on that raft needs a snapshot for a follower.
    pub(super) fn want_snapshot(&mut self, effects: &mut Effects) {
        let SnapshotSlot::Wanted(to) = *self.raw.store().snapshots.borrow() else { return };
        if self.handle.frozen().is_some() {
            // It would not be frozen where it is taken in. Raft asks again.
            self.raw.store().snapshots.replace(SnapshotSlot::Idle);
            return;
        }
        effects.generate.push((self.region_id(), self.peer_id(), to));
    }

    /// Generation of the wanted snapshot starts.
    pub fn on_generating(&mut self) {
        let mut slot = self.raw.store().snapshots.borrow_mut();
        if matches!(*slot, SnapshotSlot::Wanted(_)) {
            *slot = SnapshotSlot::Generating;
        }
    }

    /// A snapshot for `to` was made, or could not be.
    pub fn on_generated(&mut self, to: u64, result: Result<(Box<Snapshot>, SnapshotFiles), String>) {
        let leads = self.is_leader();
        let mut slot = self.raw.store().snapshots.borrow_mut();
        match result {
            Ok((snapshot, files)) if leads => *slot = SnapshotSlot::Ready { to, snapshot, files },
            Ok(_) => *slot = SnapshotSlot::Idle,
            Err(why) => {
                tracing::warn!(region = self.handle.id(), to, why, "raft snapshot not made, raft asks again");
                *slot = SnapshotSlot::Idle;
            }
        }
        drop(slot);
        // Raft would come back to it with the follower's next heartbeat answer.
        if leads && self.raw.raft.prs().get(to).is_some() {
            self.raw.raft.send_append(to);
        }
    }

    /// A snapshot reached `to`, or did not.
    pub fn on_sent(&mut self, to: u64, ok: bool) {
        if matches!(*self.raw.store().snapshots.borrow(), SnapshotSlot::Sending(peer) if peer == to) {
            self.raw.store().snapshots.replace(SnapshotSlot::Idle);
        }
        self.raw.report_snapshot(to, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// The transport did not take a message to `to`.
    pub fn on_unreachable(&mut self, to: u64) {
        self.raw.report_unreachable(to);
    }

    /// Whether a raft snapshot is on its way in.
    pub fn is_installing(&self) -> bool {
        self.installing || self.incoming.is_some()
    }

    /// Gives up a snapshot that raft never came back for, and with it the right to make another one.
    pub(super) fn expire_snapshot(&mut self, env: &Env) {
        let mut slot = self.raw.store().snapshots.borrow_mut();
        if !matches!(*slot, SnapshotSlot::Ready { .. }) {
            self.snapshot_age = 0;
            return;
        }
        self.snapshot_age += 1;
        if self.snapshot_age > 4 * env.timing.election_ticks as u64 {
            *slot = SnapshotSlot::Idle;
        }
    }

    /// A received raft snapshot, whose range is reserved. True: raft takes it, and the files with it.
    pub fn step_snapshot(&mut self, parcel: Parcel, now: Now, env: &Env) -> bool {
        let Parcel { incarnation, letter, manifest, dir, .. } = parcel;
        let conf_ver = letter.conf_ver();
        let Letter { from, message, .. } = letter;
        let listed = manifest.region.as_ref().and_then(|region| region.peer(PeerId(self.peer_id()))).is_some();
        if self.condemned || self.installing || self.incoming.is_some() || !listed {
            return false;
        }
        let index = message.get_snapshot().get_metadata().index;
        self.step((from, conf_ver), incarnation, message, now, env);
        let taken = self.raw.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index);
        if taken {
            self.incoming = Some(Box::new((manifest, dir)));
        }
        taken
    }

    /// Raft has accepted the snapshot that came with the stored files: nothing else happens to this peer until its data
    /// is in place.
    pub(super) fn begin_install(&mut self, snapshot: &Snapshot) -> Install {
        let (manifest, dir) = *self.incoming.take().expect("raft snapshots enter through step_snapshot");
        let meta = snapshot.get_metadata();
        self.installing = true;
        self.proposals.jumped(meta.index);
        let region = manifest.region.clone().expect("checked when it was stepped");
        let replaced = self.is_initialised().then(|| (*self.handle.region()).clone());
        let apply = ApplyState::at(meta.index, meta.term);
        // The hard state of this very Ready is taken over already; its commit is the snapshot's index.
        let raft_state = self.raft_state;
        Install { handle: self.handle.clone(), region, replaced, manifest, dir, apply, raft_state }
    }

    /// The data of the snapshot is in place and durable; `machine` is opened on it.
    pub fn on_installed(&mut self, machine: std::sync::Arc<dyn crate::RegionMachine>, apply: ApplyState) {
        self.installing = false;
        self.handed = apply.applied_index;
        let region = self.handle.region();
        self.peers.clone_from(&region.peers);
        self.conf_ver = region.region_epoch().conf_ver;
        self.raw.advance_apply_to(apply.applied_index);
        self.machine = Some(machine);
        // What was seen of the role so far went to the machine before this one: it is told again.
        self.seen = (0, self.raw.raft.state, 0);
        self.reads.applied(apply.applied_index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use braid_proto::id::Term;
    use braid_proto::pb::{Peer as PeerMeta, Region, RegionEpoch, SnapshotManifest};
    use raft::eraftpb::{Entry, Message, MessageType};

    use super::super::raft_logger;
    use super::*;
    use crate::change::conf_state;
    use crate::config::Timing;
    use crate::gc::Keep;
    use crate::guard::VoteGuard;
    use crate::log::LogStore;
    use crate::log::memory::MemoryLog;
    use crate::support::{SupportConfig, SupportTable};

    struct Machine;

    impl crate::RegionMachine for Machine {
        fn apply(&self, _: &[crate::Entry], _: rocksdb::WriteBatch) {}
        fn on_leader(&self, _: Term) {}
        fn on_follower(&self, _: Term, _: Option<PeerMeta>) {}
        fn on_region(&self, _: &Region) {}
        fn approximate_size(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    /// Peer 13 of region 1 on host 3, which the message of another host made.
    struct Follower {
        env: Env,
        peer: Peer,
        log: Arc<MemoryLog>,
        region: Region,
    }

    impl Follower {
        const LEADER: PeerMeta = PeerMeta { id: 11, store_id: 1, learner: false, changing: false };
        const TERM: u64 = 6;

        fn new() -> Self {
            let support = Arc::new(SupportTable::new(3, 1, SupportConfig::default()));
            let keep = Keep { entries: 100, bytes: 1 << 20 };
            let env = Env { host_id: 3, timing: Timing::default(), keep, support, logger: raft_logger() };
            let region = Region {
                id: 1,
                epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
                peers: vec![PeerMeta::voter(13, 3), Self::LEADER, PeerMeta::voter(12, 2)],
                ..Region::default()
            };
            let log = Arc::new(MemoryLog::default());
            let store: Arc<dyn LogStore> = Arc::clone(&log) as _;
            let peer = Peer::uninitialised(&env, PeerHandle::detached(&region), store, None, VoteGuard::new(0, 0));
            Self { env, peer, log, region }
        }

        fn message(kind: MessageType) -> Message {
            let mut message = Message { from: 11, to: 13, term: Self::TERM, ..Message::default() };
            message.set_msg_type(kind);
            message
        }

        fn snapshot(&mut self, index: u64, at: Now) {
            let manifest = SnapshotManifest { region: Some(self.region.clone()), ..SnapshotManifest::default() };
            let mut message = Self::message(MessageType::MsgSnapshot);
            let meta = message.mut_snapshot().mut_metadata();
            (meta.index, meta.term) = (index, Self::TERM);
            meta.set_conf_state(conf_state(&self.region.peers));
            let letter = Letter {
                region: 1,
                to: self.peer.handle.peer(),
                from: Self::LEADER,
                shape: Some(self.region.clone()),
                gone: false,
                message,
            };
            let parcel = Parcel { host: 1, incarnation: 1, letter, manifest, dir: SnapshotDir(None) };
            assert!(self.peer.step_snapshot(parcel, at, &self.env), "raft takes the snapshot");
        }

        /// The entry after `index`, committed.
        fn entry_after(&mut self, index: u64, at: Now) {
            let entry =
                Entry { index: index + 1, term: Self::TERM, data: b"k=v".as_slice().into(), ..Entry::default() };
            let mut append = Self::message(MessageType::MsgAppend);
            (append.index, append.log_term, append.commit) = (index, Self::TERM, index + 1);
            append.entries = vec![entry].into();
            self.peer.step((Self::LEADER, 1), 1, append, at, &self.env);
        }

        /// What the worker does in one round; returns what it hands to the apply thread.
        fn round(&mut self, at: Now) -> Vec<u64> {
            let mut effects = Effects::default();
            if let Some(ready) = self.peer.collect(at, &self.env, true, &mut effects) {
                self.log.write(std::mem::take(&mut effects.log), effects.sync).unwrap();
                self.peer.finish(ready, at, &self.env, &mut effects);
            }
            effects.committed.iter().flat_map(|committed| &committed.entries).map(|entry| entry.index).collect()
        }
    }

    #[test]
    fn entries_that_came_with_a_snapshot_wait_for_its_data() {
        let mut follower = Follower::new();
        // Past the time in which a new peer lets entries pass unanswered.
        let at = Now::monotonic().plus(follower.env.timing.election() * 10);
        follower.snapshot(500, at);
        follower.entry_after(500, at);
        assert_eq!(follower.round(at), [0; 0], "the data is not in place");
        assert_eq!(follower.round(at), [0; 0], "still not");
        follower.peer.on_installed(Arc::new(Machine), ApplyState::at(500, Follower::TERM));
        assert_eq!(follower.round(at), [501]);
        follower.entry_after(501, at);
        assert_eq!(follower.round(at), [502], "once, and the next as ever");
    }
}
