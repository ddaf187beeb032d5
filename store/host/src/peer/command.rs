//! What this process asks of a peer: split, transfer, confirm, campaign; and what a leader asks of itself: log GC.

use braid_proto::id::PeerId;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Env, Peer, admin_entry};
use crate::gc::{Span, compact_index};
use crate::handle::Transferred;
use crate::mail::Command;
use crate::merge::refuse_frozen;
use crate::meta::{Admin, Compact, Split};
use crate::split::{SplitSpec, halves};
use crate::storage::SnapshotSlot;
use crate::support::Now;
use crate::{Done, Outcome};

/// Entries that the target of a transfer may lack: while it catches up, nothing can be proposed.
const TRANSFER_LAG_MAX: u64 = 128;

/// A handover under way.
pub(crate) struct Transfer {
    pub to: u64,
    pub term: u64,
    pub deadline: u64,
    pub done: Transferred,
}

impl Peer {
    pub fn command(&mut self, command: Command, now: Now, env: &Env) {
        if self.condemned {
            return command.refuse("the peer is being destroyed");
        }
        match command {
            Command::Split { term, spec, done } => self.propose_split(term, spec, done, now),
            Command::Transfer { term, to, done } => match self.begin_transfer(term, to, env) {
                Ok(deadline) => {
                    self.transfer = Some(Box::new(Transfer { to, term, deadline, done }));
                    self.raw.transfer_leader(to);
                }
                Err(why) => done(Err(why)),
            },
            Command::Confirm { term, done } if self.leads(term) => self.reads.ask(done),
            Command::Confirm { done, .. } => done(false),
            Command::Change { term, epoch, change, done } => {
                self.propose_change((term, epoch), &change, done, now, env);
            }
            Command::Reshape { term, reshape, done } => self.propose_reshape(term, &reshape, done, now),
            Command::Campaign => self.campaign(now, env),
        }
    }

    /// Campaigns, unless somebody may hold a promise of this store.
    pub fn campaign(&mut self, now: Now, env: &Env) {
        let promised = |host, incarnation| env.support.promised(host, incarnation, now);
        if self.installing
            || self.raw.raft.state != StateRole::Follower
            || self.guard.bound(promised)
            || !(self.guard.may_campaign(now.0) || self.is_sole_voter())
            || !self.raw.raft.promotable()
        {
            return;
        }
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(region = self.region_id(), %error, "raft did not campaign");
        }
    }

    fn begin_transfer(&self, term: u64, to: u64, env: &Env) -> Result<u64, String> {
        if !self.leads(term) {
            return Err("this peer does not lead".to_owned());
        }
        if self.transfer.is_some() {
            return Err("another transfer is under way".to_owned());
        }
        if self.is_changing() {
            return Err("a change of peers is under way".to_owned());
        }
        let region = self.handle.region();
        if to == self.peer_id() {
            return Err("the target leads already".to_owned());
        }
        if region.peer(PeerId(to)).is_none_or(|peer| peer.learner) {
            return Err("the target is no voter of the region".to_owned());
        }
        let progress = self.raw.raft.prs().get(to).ok_or("the target is no voter of the region")?;
        let lag = self.raw.raft.raft_log.last_index() - progress.matched;
        if lag > TRANSFER_LAG_MAX {
            return Err(format!("the target lacks {lag} entries: try again when it has caught up"));
        }
        if !progress.recent_active {
            return Err("the target has not answered its leader lately: if its store is up, try again".to_owned());
        }
        Ok(self.ticks + 2 * env.timing.election_ticks as u64)
    }

    /// Tells who waits for a transfer how it ended, once it has. `tick`: the clock counts too.
    pub fn watch_transfer(&mut self, tick: bool) {
        let Some(transfer) = &self.transfer else { return };
        let under_way = self.leads(transfer.term) && self.raw.raft.lead_transferee == Some(transfer.to);
        if tick && under_way {
            // Once more: the word may be lost, and a target that has not applied the last change of peers yet ignores it.
            let raft = &self.raw.raft;
            let has_all = raft.prs().get(transfer.to).is_some_and(|pr| pr.matched == raft.raft_log.last_index());
            if has_all {
                self.raw.raft.send_timeout_now(transfer.to);
            }
            return;
        }
        let (term, leader) = (self.raw.raft.term, self.raw.raft.leader_id);
        let ended = if term > transfer.term && leader == transfer.to {
            Ok(())
        } else if term > transfer.term && leader != raft::INVALID_ID {
            Err("another peer took over".to_owned())
        } else if tick && self.leads(transfer.term) {
            Err("the target did not take over in time; leadership stays".to_owned())
        } else if tick && self.ticks >= transfer.deadline {
            Err("no leader is known after the transfer".to_owned())
        } else {
            return;
        };
        let transfer = self.transfer.take().expect("just seen");
        (transfer.done)(ended);
    }

    fn propose_split(&mut self, term: u64, spec: SplitSpec, done: Done, now: Now) {
        let region = self.handle.region();
        let version = region.region_epoch().version;
        let split = Split { key: spec.key, child_id: spec.child_id.0, child_peer_ids: spec.child_peer_ids, version };
        let refusal = if !self.leads(term) || !self.settled() {
            Some("this peer does not lead, or has not applied its first entry".to_owned())
        } else if self.splitting || self.is_changing() || self.proposals.is_waiting() {
            Some("a split or a change of peers is under way, or proposals wait".to_owned())
        } else {
            refuse_frozen(self.handle.frozen()).and_then(|()| halves(&region, &split)).err()
        };
        if let Some(why) = refusal {
            tracing::warn!(region = region.id, why, "split refused");
            return done(Outcome::Dropped);
        }
        // Before anything of it leaves: no lease beyond what the children elsewhere will wait for (rule S2).
        self.splitting = true;
        self.lease.cap = Some(self.lease.until().max(now));
        self.publish_lease();
        if let Err(done) = self.append_admin(&Admin::Split(split), Some(done)) {
            self.splitting = false;
            self.lease.cap = None;
            self.publish_lease();
            if let Some(done) = done {
                done(Outcome::Dropped);
            }
        }
    }

    /// Appends an entry of the host's own, or gives `done` back.
    pub(super) fn append_admin(&mut self, admin: &Admin, done: Option<Done>) -> Result<(), Option<Done>> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.peer_id();
        message.entries = vec![admin_entry(admin)].into();
        if self.raw.raft.step(message).is_err() {
            return Err(done);
        }
        if let Some(done) = done {
            let raft = &self.raw.raft;
            self.proposals.appended(raft.raft_log.last_index(), raft.term, done);
        }
        Ok(())
    }

    /// Truncates the log where that is worth an entry. `forced`: old entries pin files of the log.
    pub fn consider_gc(&mut self, env: &Env, forced: bool) {
        if !self.is_leader() || !self.settled() || self.proposals.is_waiting() || self.transfer.is_some() {
            return;
        }
        // Whoever lacks some of a frozen region's log cannot get a raft snapshot instead.
        if !forced && self.is_freezing() {
            return;
        }
        let raft = &self.raw.raft;
        let own = self.peer_id();
        let others = raft.prs().iter().filter(|(id, _)| **id != own).map(|(_, pr)| pr.matched);
        let last = raft.raft_log.last_index();
        let snapshot = match &*raft.store().snapshots.borrow() {
            SnapshotSlot::Ready { snapshot, .. } => Some(snapshot.get_metadata().index),
            // While one is under way nothing more is cut off: the index is at least what is truncated now.
            SnapshotSlot::Generating | SnapshotSlot::Sending(_) => Some(raft.store().truncated()),
            SnapshotSlot::Idle | SnapshotSlot::Wanted(_) => None,
        };
        let span = Span {
            truncated: raft.store().truncated(),
            applied: raft.raft_log.applied,
            last,
            replicated: others.min().unwrap_or(last),
            bytes: self.log_bytes,
            snapshot,
        };
        let Some(index) = compact_index(span, env.keep, forced) else { return };
        if index <= self.compact_proposed {
            return;
        }
        let Ok(term) = raft.raft_log.term(index) else { return };
        if self.append_admin(&Admin::Compact(Compact { index, term }), None).is_ok() {
            self.compact_proposed = index;
        }
    }
}
