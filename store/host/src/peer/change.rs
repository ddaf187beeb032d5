//! Changes of the region's peers as its leader judges and proposes them, and as every peer takes them over.
//!
//! raft counts votes by a configuration as soon as `apply_conf_change` was called, so the worker calls it for every
//! change that the apply thread accepted, in order, before it says how far was applied.

use std::sync::atomic::Ordering;

use braid_proto::id::StoreId;
use braid_proto::pb::{Peer as PeerMeta, Region, RegionEpoch};
use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{Progress, ProgressState, StateRole};

use super::{Effects, Env, Peer, STRANGERS_MAX, admin_entry, command::Transfer};
use crate::Outcome;
use crate::change::{self, ChangeRefused, Changed, PeerChange, votes_new, votes_old};
use crate::error::fatal;
use crate::handle::listed;
use crate::lease::Voter;
use crate::merge::refuse_frozen;
use crate::meta::{Admin, Change};
use crate::support::Now;

/// Entries that a learner may lack and yet become a voter.
const PROMOTE_LAG_MAX: u64 = 128;
/// Entries that a peer may lack and yet count as caught up, for reports.
const REPORT_LAG_MAX: u64 = 512;

impl Peer {
    pub(super) fn propose_change(
        &mut self,
        (term, epoch): (u64, RegionEpoch),
        change: &PeerChange,
        done: Changed,
        now: Now,
        env: &Env,
    ) {
        let entry = match self.judge(term, epoch, change, now, env) {
            Ok(entry) => entry,
            Err(refused) => {
                tracing::info!(region = self.region_id(), ?change, %refused, "change of peers refused");
                return done(Err(refused));
            }
        };
        if !self.append_change(&entry) {
            return done(Err(ChangeRefused::NotNow("raft takes no change of peers now".to_owned())));
        }
        let raft = &self.raw.raft;
        let told = move |outcome| {
            done(match outcome {
                Outcome::Applied => Ok(()),
                Outcome::Dropped => {
                    Err(ChangeRefused::NotNow("another leader, or another change, was first".to_owned()))
                }
                Outcome::Unknown => Err(ChangeRefused::Unknown),
            });
        };
        self.proposals.appended(raft.raft_log.last_index(), raft.term, Box::new(told));
    }

    /// The entry for `change`, or why it is not proposed.
    fn judge(
        &self,
        term: u64,
        epoch: RegionEpoch,
        change: &PeerChange,
        now: Now,
        env: &Env,
    ) -> Result<Change, ChangeRefused> {
        let not_now = |why: &str| Err(ChangeRefused::NotNow(why.to_owned()));
        if !self.leads(term) {
            return Err(ChangeRefused::NotLeader);
        }
        let region = self.handle.region();
        if region.region_epoch() != epoch {
            return Err(ChangeRefused::Epoch);
        }
        if !self.settled() || self.raw.raft.has_pending_conf() || region.is_joint() {
            return not_now("another change of peers, or the first entry of the term, is not applied yet");
        }
        if self.splitting || self.transfer.is_some() || self.proposals.is_waiting() {
            return not_now("a split or a transfer is under way, or proposals wait");
        }
        refuse_frozen(self.handle.frozen()).map_err(ChangeRefused::NotNow)?;
        let own = StoreId(env.host_id);
        let entry = change::resolve(&region, change).map_err(ChangeRefused::Invalid)?;
        match change {
            PeerChange::AddLearner(_) => {}
            PeerChange::Remove(store) if *store == own => {
                return Err(ChangeRefused::Invalid("the leader cannot be removed; hand over first".to_owned()));
            }
            PeerChange::Remove(_) => {}
            PeerChange::Voters { demote, .. } => {
                if demote.contains(&own) {
                    return Err(ChangeRefused::Invalid("the leader cannot be demoted; hand over first".to_owned()));
                }
                self.check_voters(&region, &entry, now, env).map_err(ChangeRefused::NotNow)?;
            }
        }
        Ok(entry)
    }

    /// Whether a change of voters leaves the region able to go on: both sets answer, and those who come have the log.
    fn check_voters(&self, region: &Region, entry: &Change, now: Now, env: &Env) -> Result<(), String> {
        let next = change::changed(region, entry)?;
        for votes in [votes_new, votes_old] {
            let voters: Vec<u64> = next.peers.iter().filter(|peer| votes(peer)).map(|peer| peer.id).collect();
            let answering = voters.iter().filter(|id| !self.is_silent(**id, now, env)).count();
            if answering <= voters.len() / 2 {
                return Err(format!("only {answering} of {} voters would answer", voters.len()));
            }
        }
        let raft = &self.raw.raft;
        for id in &entry.promote {
            let progress = raft.prs().get(*id).ok_or("raft does not know the learner yet")?;
            let lag = raft.raft_log.last_index().saturating_sub(progress.matched);
            if lacks_data(progress) || lag > PROMOTE_LAG_MAX || self.is_silent(*id, now, env) {
                return Err(format!("peer {id} lacks {lag} entries, or does not answer"));
            }
        }
        Ok(())
    }

    /// Appends the entry of a change. False: raft would not have it.
    fn append_change(&mut self, change: &Change) -> bool {
        let mut entry = admin_entry(&Admin::Change(change.clone()));
        (entry.context, entry.data) = change::encode(change);
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.peer_id();
        message.entries = vec![entry].into();
        let last = self.raw.raft.raft_log.last_index();
        // What raft does not like it replaces by an empty entry, without a word.
        self.raw.raft.step(message).is_ok() && self.raw.raft.pending_conf_index == last + 1
    }

    /// A leader in a joint configuration leaves it as soon as nothing is in the way: also one that was elected in it. One
    /// that has, or will have, no vote hands over.
    pub(super) fn leave_joint(&mut self, env: &Env) {
        if !self.is_leader() || !self.settled() {
            return;
        }
        if !self.raw.raft.promotable() && self.transfer.is_none() {
            let region = self.handle.region();
            return self.hand_over(&region, env);
        }
        if !self.is_joint() {
            return;
        }
        let region = self.handle.region();
        let raft = &self.raw.raft;
        if raft.has_pending_conf()
            || raft.prs().conf().to_conf_state().voters_outgoing.is_empty()
            || !region.is_joint()
            || self.transfer.is_some()
            || self.proposals.is_waiting()
        {
            return;
        }
        if !region.peers.iter().any(|peer| peer.id == self.peer_id() && votes_new(peer)) {
            return self.hand_over(&region, env);
        }
        if !self.append_change(&change::leave(&region)) {
            tracing::warn!(region = region.id, "the joint configuration is not left yet");
        }
    }

    /// A leader that would be a learner after the change hands over before it.
    fn hand_over(&mut self, region: &Region, env: &Env) {
        let raft = &self.raw.raft;
        let best = region.peers.iter().filter(|peer| votes_new(peer));
        let best = best.filter_map(|peer| Some((raft.prs().get(peer.id)?, peer.id)));
        let best = best.filter(|(progress, _)| progress.recent_active).max_by_key(|(progress, _)| progress.matched);
        let Some((_, to)) = best else { return };
        let (term, region) = (raft.term, self.region_id());
        let deadline = self.ticks + 2 * env.timing.election_ticks as u64;
        let done = Box::new(move |ended: Result<(), String>| {
            tracing::info!(region, to, ?ended, "handed over by a leader that is being demoted");
        });
        self.transfer = Some(Box::new(Transfer { to, term, deadline, done }));
        self.raw.transfer_leader(to);
    }

    /// Whether a change of voters has begun and is not over.
    pub(super) fn is_joint(&self) -> bool {
        self.peers.iter().any(|peer| peer.changing)
    }

    /// The apply thread has accepted these changes; raft goes by them from now on.
    pub(super) fn take_over(&mut self, changes: &[Change], now: Now, env: &Env) {
        for change in changes {
            if let Err(error) = self.raw.apply_conf_change(&change::conf_change(change)) {
                fatal(format_args!("r{}: raft refuses {change:?}, which is applied: {error}", self.region_id()));
            }
        }
        if let Some(last) = changes.last() {
            self.conf_ver = last.conf_ver + 1;
        }
        let before = std::mem::take(&mut self.peers);
        self.peers.clone_from(&self.handle.region().peers);
        self.strangers.retain(|known| !self.peers.iter().any(|peer| peer.id == known.id));
        let gone = before.into_iter().filter(|old| !self.peers.iter().any(|peer| peer.id == old.id));
        self.farewells.extend(gone.map(|peer| (peer, FAREWELLS)));
        let excess = self.farewells.len().saturating_sub(STRANGERS_MAX);
        self.farewells.drain(..excess);
        if !self.is_leader() {
            return;
        }
        self.last_heard.retain(|(id, _)| self.peers.iter().any(|peer| peer.id == *id));
        for peer in &self.peers {
            if !self.last_heard.iter().any(|(id, _)| *id == peer.id) {
                self.last_heard.push((peer.id, now));
            }
        }
        if self.lease.term != 0 {
            (self.lease.others, self.lease.own) = (self.voters(env), self.own_votes());
            self.publish_lease();
        }
        self.report_catching_up(now, env);
        self.greet();
    }

    /// A leader that lost its vote and then its role never campaigns, so nobody would learn from it that it leads no more,
    /// while others may be bound to it: it says so instead, until it follows somebody. Its term may be a later one by then:
    /// that of a peer that it handed over to, and that was not elected.
    pub(super) fn renounce_if_due(&mut self) {
        let raft = &self.raw.raft;
        let led_last = self.led > 0 && self.guard.followed().is_none() && raft.leader_id == raft::INVALID_ID;
        self.renounces = led_last && !self.is_leader() && !raft.promotable();
    }

    /// Asks everybody for a vote that it could not use, in a later term: a leader does not (see [`crate::guard`]).
    pub(super) fn post_renunciation(&mut self, effects: &mut Effects) {
        let raft = &self.raw.raft;
        if !std::mem::take(&mut self.renounces) || raft.leader_id != raft::INVALID_ID {
            return;
        }
        let mut message = Message { from: self.peer_id(), term: raft.term + 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgRequestPreVote);
        message.index = raft.raft_log.last_index();
        message.log_term = raft.raft_log.last_term();
        for peer in self.peers.iter().filter(|peer| peer.id != self.peer_id()) {
            self.post(Message { to: peer.id, ..message.clone() }, effects);
        }
    }

    /// Everybody else as the lease counts them by raft's present configuration, with what was seen of them in this term.
    /// Learners count nothing; what is seen of them does once they vote, because they keep the same promises.
    pub(super) fn voters(&self, env: &Env) -> Vec<Voter> {
        let conf = self.raw.raft.prs().conf().to_conf_state();
        let outgoing = if conf.voters_outgoing.is_empty() { &conf.voters } else { &conf.voters_outgoing };
        let others = self.peers.iter().filter(|peer| peer.id != self.peer_id());
        let voter = |peer: &PeerMeta| Voter {
            peer: peer.id,
            cell: env.support.cell(peer.store_id),
            seen: self.lease.others.iter().find(|known| known.peer == peer.id).and_then(|known| known.seen),
            new: conf.voters.contains(&peer.id),
            old: outgoing.contains(&peer.id),
        };
        others.map(voter).collect()
    }

    /// Whether the leader itself votes in the new and in the old set.
    pub(super) fn own_votes(&self) -> (bool, bool) {
        let conf = self.raw.raft.prs().conf().to_conf_state();
        let outgoing = if conf.voters_outgoing.is_empty() { &conf.voters } else { &conf.voters_outgoing };
        (conf.voters.contains(&self.peer_id()), outgoing.contains(&self.peer_id()))
    }

    /// Publishes which peers answer, but lack much of the log.
    pub(super) fn report_catching_up(&self, now: Now, env: &Env) {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let lacks = |id: &u64| match raft.prs().get(*id) {
            Some(progress) => lacks_data(progress) || last.saturating_sub(progress.matched) > REPORT_LAG_MAX,
            None => true,
        };
        let others = self.peers.iter().map(|peer| peer.id).filter(|id| *id != self.peer_id());
        let lacking: Vec<u64> = others.filter(|id| !self.is_silent(*id, now, env)).filter(lacks).collect();
        if **self.handle.0.catching_up.load() != lacking {
            self.handle.0.catching_up.store(listed(lacking));
        }
    }

    /// Whether a change of peers stands in the way of a handover.
    pub(super) fn is_changing(&self) -> bool {
        self.is_joint() || self.raw.raft.has_pending_conf()
    }

    /// Takes note of who leads, or that nobody is known to: what placement is asked about after long.
    pub(super) fn mind_leader(&self, now: Now, env: &Env) {
        let shared = &self.handle.0;
        let leads = self.raw.raft.state == StateRole::Leader;
        let promised = |host, incarnation| env.support.promised(host, incarnation, now);
        if leads {
            shared.leader_heard.store(now.0, Ordering::Release);
        }
        if !leads && (self.raw.raft.leader_id == raft::INVALID_ID || !self.guard.bound(promised)) {
            _ = shared.alone_since.compare_exchange(0, now.0, Ordering::AcqRel, Ordering::Acquire);
        } else if leads {
            shared.alone_since.store(0, Ordering::Release);
        }
    }
}

impl Peer {
    /// Gives the peer up if its configuration is older than `conf_ver`, in which it does not exist. True: it is to be
    /// buried. While a raft snapshot comes in, that has to end first.
    pub fn condemn(&mut self, conf_ver: u64) -> bool {
        let known = self.handle.region().region_epoch().conf_ver.max(self.member_in);
        if self.condemned || known >= conf_ver {
            return false;
        }
        self.give_up_membership(conf_ver)
    }

    /// The same on the word of placement, which has judged the configuration that this peer has applied.
    pub fn condemn_by_placement(&mut self, conf_ver: u64) -> bool {
        if self.condemned || self.is_leader() || self.handle.region().region_epoch().conf_ver > conf_ver {
            return false;
        }
        self.give_up_membership(conf_ver.saturating_add(1))
    }

    fn give_up_membership(&mut self, conf_ver: u64) -> bool {
        if self.is_installing() {
            self.doomed = self.doomed.max(conf_ver);
            return false;
        }
        tracing::info!(region = self.region_id(), peer = self.peer_id(), conf_ver, "this peer was removed");
        self.condemned = true;
        self.void_lease();
        true
    }

    /// What was heard of while a raft snapshot came in.
    pub fn doom(&mut self) -> u64 {
        std::mem::take(&mut self.doomed)
    }

    /// A blank peer that was about to be destroyed has its region now, or is about to get it.
    pub fn pardon(&mut self) {
        self.condemned = false;
    }
}

/// Whether a peer has nothing yet, or waits for a raft snapshot. Not whether it replicates: a snapshot that brought the last
/// entry leaves it probing until there is another one.
fn lacks_data(progress: &Progress) -> bool {
    progress.matched == 0 || progress.state == ProgressState::Snapshot
}

/// How often a removed peer is told so by the leader that removed it.
const FAREWELLS: u8 = 10;
