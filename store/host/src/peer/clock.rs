//! A peer's clock: ticks while it is awake, fewer heartbeats while its leader rests, and sleep, in which nothing happens
//! to it at all.
//!
//! ```text
//!  leader    busy ──── everybody has everything ───► rests ──── quiet for a while ───► asleep
//!  follower  awake ─── its leader's store is promised support, quiet for a while ───► asleep
//! ```
//!
//! Sleep rests on support between stores, not on heartbeats: while a store is promised support its leaders cannot be
//! replaced, and while support is held its leaders need not ask. So whatever touches that wakes (`worker/rounds.rs`): a
//! message, a proposal, a command, a note of this host's threads; for a leader every change in the support held from a
//! store of its region; for a follower the end of the promise to its leader's store, also by a restart of that store. A
//! patrol wakes everybody once in a long while, in case all this has a hole.
//!
//! A store that is down keeps nobody awake once it is reported: its return begins a new stretch of support.

use std::sync::atomic::Ordering;

use raft::StateRole;

use super::{Env, Peer};
use crate::handle::listed;
use crate::storage::SnapshotSlot;
use crate::support::{Now, Standing};

/// Ticks between two heartbeats of a leader that rests.
const RESTING_TICKS: u64 = 20;
/// Ticks between two heartbeats of a leader that serves, and waits for one follower only.
const WAITING_TICKS: u64 = 3;
/// While the stores of a quorum support a leader, silence of its voters counts for so much less: their answers are late
/// because somebody is overloaded, and another election would only add to it.
const QUORUM_SLACK: u64 = 8;
/// Ticks between two looks at who lacks much of the log, and at who is to be told again that it was removed.
const REPORT_TICKS: u64 = 5;
/// Ticks without any event before a peer falls asleep: one that is used now and then stays awake.
const QUIET_TICKS: u64 = 10;

/// How often a leader has to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Something is under way, or it has no lease.
    Busy,
    /// A follower whose store is there lacks something, or was not seen since its store began to support this one.
    Waiting,
    /// Everybody whose store is there has everything, and a quorum supports it.
    Rests,
}

impl Peer {
    /// A tick has passed. `elections`: time counts against a silent leader.
    pub fn tick(&mut self, now: Now, env: &Env, elections: bool) {
        self.ticks += 1;
        self.quiet_ticks += 1;
        if self.condemned {
            return;
        }
        self.mind_leader(now, env);
        self.watch_transfer(true);
        self.expire_snapshot(env);
        if self.installing || !self.is_initialised() {
            return;
        }
        if self.is_leader() {
            return self.tick_leader(now, env);
        }
        self.renounce_if_due();
        // Who follows nobody, having led last perhaps, must speak up: others may be bound to it until it does.
        if !(elections || self.guard.followed().is_none()) {
            return;
        }
        let promised = |host, incarnation| env.support.promised(host, incarnation, now);
        // The clock runs up to the end but not past it: when support lapses, or the quiet after a start or a split is over,
        // the rest of the random timeout is left.
        let at_the_end = self.raw.raft.election_elapsed + 1 >= env.timing.election_ticks;
        if at_the_end && (!self.guard.may_campaign(now.0) || self.guard.bound(promised)) {
            return;
        }
        self.raw.tick();
    }

    fn tick_leader(&mut self, now: Now, env: &Env) {
        let turn = self.ticks + self.region_id();
        if turn.is_multiple_of(RESTING_TICKS) {
            self.report_down_peers(now, env);
        }
        if turn.is_multiple_of(REPORT_TICKS) {
            self.report_catching_up(now, env);
            self.say_farewell();
        }
        self.leave_joint(env);
        let ticks = match self.pace(now, env) {
            Pace::Busy => 1,
            Pace::Waiting => WAITING_TICKS,
            Pace::Rests => RESTING_TICKS,
        };
        let greets = std::mem::take(&mut self.greets);
        if turn.is_multiple_of(ticks) {
            let slack = !self.ticks.is_multiple_of(QUORUM_SLACK) && self.lease.has_quorum(now);
            self.raw.tick();
            if slack && self.raw.raft.lead_transferee.is_none() {
                self.raw.raft.election_elapsed = self.raw.raft.election_elapsed.saturating_sub(1);
            }
            self.retry();
        } else if greets {
            self.raw.ping();
        }
    }

    fn pace(&self, now: Now, env: &Env) -> Pace {
        let raft = &self.raw.raft;
        let (last, committed) = (raft.raft_log.last_index(), raft.raft_log.committed);
        let idle = committed == last && self.transfer.is_none() && self.reads.is_empty() && self.proposals.is_empty();
        if !idle || self.lease.until() <= now {
            return Pace::Busy;
        }
        let has_all = |id: u64, pr: &raft::Progress| {
            (pr.matched == last && pr.committed_index >= committed) || self.is_silent(id, now, env)
        };
        let rests = self.lease.all_seen(now) && raft.prs().iter().all(|(id, pr)| has_all(*id, pr));
        if rests { Pace::Rests } else { Pace::Waiting }
    }

    /// Whether the store of peer `id` does not support this one: nothing reaches it, as far as is known.
    pub(super) fn is_silent(&self, id: u64, now: Now, env: &Env) -> bool {
        let peer = self.peers.iter().find(|peer| peer.id == id);
        peer.is_some_and(|peer| peer.store_id != env.host_id && !env.support.holds(peer.store_id, now))
    }

    fn say_farewell(&mut self) {
        for (peer, left) in std::mem::take(&mut self.farewells) {
            self.dismiss(peer);
            if left > 1 {
                self.farewells.push((peer, left - 1));
            }
        }
    }

    fn report_down_peers(&mut self, now: Now, env: &Env) {
        let silent = |peer: &u64| {
            let heard = self.last_heard.iter().find(|(id, _)| id == peer).map_or(Now(0), |(_, heard)| *heard);
            now.since(heard) >= env.timing.peer_down
        };
        let ids = self.peers.iter().map(|peer| peer.id).filter(|id| *id != self.peer_id());
        let down: Vec<u64> = ids.filter(silent).collect();
        if **self.handle.0.down_peers.load() != down {
            self.handle.0.down_peers.store(listed(down));
        }
    }

    /// Whether nothing will happen to this peer unless somebody wakes it. `standings`: what the worker compares the next
    /// look at the stores with; a change after that look wakes the peer.
    pub fn may_sleep(&mut self, now: Now, env: &Env, standings: &[Standing]) -> bool {
        if self.condemned {
            return true;
        }
        let under_way = self.transfer.is_some()
            || self.is_installing()
            || self.inaugurating.is_some()
            || self.splitting
            || self.failed_snapshot.is_some()
            || (self.is_leader() && (self.is_joint() || !self.farewells.is_empty()))
            || self.apply_bytes > 0
            || !matches!(*self.raw.store().snapshots.borrow(), SnapshotSlot::Idle);
        if self.quiet_ticks < QUIET_TICKS || under_way || self.is_busy() {
            return false;
        }
        if !self.is_initialised() {
            return true;
        }
        match self.raw.raft.state {
            StateRole::Leader => self.leader_may_sleep(now, env),
            StateRole::Follower => self.follower_may_sleep(now, env, standings),
            StateRole::Candidate | StateRole::PreCandidate => false,
        }
    }

    fn leader_may_sleep(&mut self, now: Now, env: &Env) -> bool {
        if self.pace(now, env) != Pace::Rests {
            return false;
        }
        self.report_down_peers(now, env);
        self.report_catching_up(now, env);
        let down = self.handle.0.down_peers.load_full();
        let reported = |id: u64| self.is_silent(id, now, env) == down.contains(&id);
        if !self.peers.iter().all(|peer| reported(peer.id)) {
            return false;
        }
        // Nobody looks at the log of a sleeper.
        self.consider_gc(env, false);
        !self.is_busy()
    }

    fn follower_may_sleep(&self, now: Now, env: &Env, standings: &[Standing]) -> bool {
        let raft = &self.raw.raft;
        let Some(followed) = self.guard.followed() else { return false };
        let stands = standings.iter().find(|standing| standing.host == followed.host);
        (followed.peer, followed.term) == (raft.leader_id, raft.term)
            && stands.is_some_and(|standing| standing.promised == Some(followed.incarnation))
            && env.support.promised(followed.host, followed.incarnation, now)
    }

    /// Falls asleep: gives back what only work needs.
    pub fn sleep(&mut self, env: &Env) {
        let applied = self.applied();
        self.raw.mut_store().trim_cache(applied, true);
        self.raw.raft.maybe_free_inflight_buffers();
        self.raw.raft.raft_log.unstable.entries.shrink_to_fit();
        self.proposals.shrink();
        if !self.is_leader() {
            // As if it had stayed awake: when the promise ends, the rest of the random timeout is left.
            let elapsed = &mut self.raw.raft.election_elapsed;
            *elapsed = (*elapsed).max(env.timing.election_ticks.saturating_sub(1));
        }
        self.handle.0.asleep.store(true, Ordering::Release);
    }

    /// Wakes up.
    pub fn wake(&mut self, now: Now) {
        self.handle.0.asleep.store(false, Ordering::Release);
        if self.is_leader() {
            // Nobody answered because nobody was asked: neither the quorum check nor the report of silent peers may
            // count the time asleep. Who was silent before still is.
            self.raw.raft.election_elapsed = 0;
            let down = self.handle.0.down_peers.load();
            for (_, heard) in self.last_heard.iter_mut().filter(|(peer, _)| !down.contains(peer)) {
                *heard = now;
            }
        }
    }

    /// Something happened to the peer, which is awake: it will not sleep right after.
    pub fn stir(&mut self) {
        self.quiet_ticks = 0;
    }

    /// Lets a leader speak at the next tick, whether it rests or not.
    pub fn greet(&mut self) {
        self.greets = true;
    }

    /// Whether a change concerns this peer: in the support `held` from `host`, or in what `host` is `promised`.
    pub fn leans_on(&self, host: u64, held: bool, promised: bool) -> bool {
        if self.is_leader() {
            return held && self.peers.iter().any(|peer| peer.store_id == host);
        }
        promised && self.guard.followed().is_some_and(|followed| followed.host == host)
    }
}
