//! How peers come to be on a worker: from the table (start, creation, split), or from a message of a region that has a
//! peer here which nobody has told this host of yet.
//!
//! The worker that owns a region id makes its peers, whatever the cause, so two causes cannot race:
//!
//! - A message makes an uninitialised peer only if it asks for a vote or comes from a leader that knows nothing of this
//!   peer, and only if the sender's range overlaps no region here but those that are to go into it. It votes and takes a snapshot; its votes are durable.
//! - If the overlap is with the parent that has not applied the split yet, the vote request waits for the child.
//! - A peer that was destroyed never comes back, and a later one of its region only when its data is gone.
//! - A split, or creation, replaces the uninitialised peer and keeps its votes.

use std::collections::BTreeMap;

use raft::eraftpb::MessageType;

use crate::absorb::in_the_way;

use super::{Birth, Letter, Now, Origin, Peer, PeerHandle, RaftState, VoteGuard, Worker};

/// Regions whose vote requests wait for their peer; more are dropped, candidates ask again.
const EARLY_VOTES_MAX: usize = 1024;

/// The last vote request for each region that is not here yet.
#[derive(Default)]
pub(super) struct EarlyVotes(BTreeMap<u64, (Letter, u64)>);

impl EarlyVotes {
    fn keep(&mut self, letter: Letter, incarnation: u64) {
        if self.0.len() < EARLY_VOTES_MAX || self.0.contains_key(&letter.region) {
            self.0.insert(letter.region, (letter, incarnation));
        }
    }
}

impl Worker {
    /// Drives a peer from now on.
    pub(super) fn create(&mut self, birth: Birth) {
        let Birth { handle, machine, apply, origin } = birth;
        let (region, core) = (handle.id(), &self.core);
        let raft_state = stored_raft_state(core.log.raft_state(region), region);
        let now = Now::monotonic();
        let mut guard = match origin {
            Origin::Restarted => VoteGuard::new(core.still_until.0, core.still_until.0),
            Origin::Created | Origin::SplitLeader => VoteGuard::new(0, 0),
            Origin::SplitFollower => VoteGuard::new(0, now.plus(core.env.timing.quiet()).0),
        };
        core.blanks.lock().remove(&region);
        if let Some(mut old) = self.peers.remove(&region) {
            assert!(!old.is_initialised(), "r{region} is created twice");
            if old.peer_id() == handle.peer().id {
                guard.inherit(old.guard());
            }
            old.abandon();
        }
        let log = std::sync::Arc::clone(&core.log);
        let mut peer = Peer::new(&core.env, handle, machine, log, raft_state, apply, guard);
        if peer.is_sole_voter() || origin == Origin::SplitLeader || (origin == Origin::Created && peer.goes_first()) {
            peer.campaign(now, &core.env);
        }
        self.peers.insert(region, Box::new(peer));
        self.touch(region);
        if let Some((letter, incarnation)) = self.early_votes.0.remove(&region) {
            self.on_letter(letter, incarnation, now);
        }
    }

    /// Makes an uninitialised peer for a message of an unknown region, if it may be made. Takes early votes aside.
    pub(super) fn conceive(&mut self, letter: &Letter) -> bool {
        let kind = letter.message.get_msg_type();
        let asks = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let greets = kind == MessageType::MsgHeartbeat && letter.message.commit == 0;
        let brings = kind == MessageType::MsgSnapshot;
        let Some(shape) = letter.shape.as_ref().filter(|_| asks || greets || brings) else { return false };
        let core = &self.core;
        if self.dying.contains(&letter.region) || core.tombstone(letter.region).is_some_and(|id| id >= letter.to.id) {
            return false;
        }
        {
            let table = core.table.lock();
            // In the table, but not here: it is about to be created.
            if table.get(letter.region).is_some() || in_the_way(&table, shape) {
                return false;
            }
        }
        let stored = stored_raft_state(core.log.raft_state(letter.region), letter.region);
        if stored.is_some_and(|stored| stored.peer_id > letter.to.id) {
            return false;
        }
        let stored = stored.filter(|stored| stored.peer_id == letter.to.id);
        // Whether an earlier start of this process had this peer and promised something, its stored votes tell.
        let still = if stored.is_some() { core.still_until.0 } else { 0 };
        let region = braid_proto::pb::Region { id: letter.region, ..Default::default() };
        let handle = PeerHandle::new(region, letter.to, None, core.post(letter.region).clone());
        let log = std::sync::Arc::clone(&core.log);
        core.blanks.lock().insert(letter.region, handle.clone());
        let peer = Peer::uninitialised(&core.env, handle, log, stored, VoteGuard::new(still, still));
        self.peers.insert(letter.region, Box::new(peer));
        true
    }

    /// Keeps a vote request for a region whose peer is about to be made.
    pub(super) fn keep_early(&mut self, letter: Letter, incarnation: u64) {
        if matches!(letter.message.get_msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote) {
            self.early_votes.keep(letter, incarnation);
        }
    }
}

fn stored_raft_state(read: Result<Option<RaftState>, crate::log::LogError>, region: u64) -> Option<RaftState> {
    match read {
        Ok(state) => state,
        Err(error) => crate::error::fatal(format_args!("raft state of r{region} cannot be read: {error}")),
    }
}
