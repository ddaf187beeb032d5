//! One raft group member: what happens to it goes in, [`Effects`] come out. No threads, no sockets, no disk of its own
//! but the log it reads through [`PeerStorage`]; time comes in as `now`.
//!
//! ```text
//!  in                                         out (Effects)
//!  step(message), step_snapshot               messages        sent before the log write (leader) or after it (others)
//!  propose, command, tick                     log, sync       one write for all regions of the worker
//!  on_applied, on_installed, on_generated     apply           committed entries
//!  collect → (effects are carried out) → finish               install, generate, snapshots
//! ```
//!
//! Nothing but `finish` may be called between `collect` and `finish`.

use std::sync::Arc;

use braid_proto::id::{PeerId, Term};
use braid_proto::pb::{Peer as PeerMeta, SnapshotManifest};
use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};

use crate::change::{conf_state, votes};
use crate::config::Timing;
use crate::error::fatal;
use crate::gc::Keep;
use crate::guard::{Followed, VoteGuard, asks_for_vote, from_leader};
use crate::handle::{PeerHandle, View, listed, no_lease};
use crate::lease::{LeaseBasis, Seen};
use crate::log::LogStore;
use crate::mail::{Applied, SnapshotDir};
use crate::meta::{Admin, ApplyState, RaftState};
use crate::proposals::{Proposals, Waiting};
use crate::reads::Reads;
use crate::storage::{PeerStorage, SnapshotSlot};
use crate::support::{Now, SupportTable};
use crate::{Done, Outcome, RegionMachine};

mod change;
mod clock;
mod command;
mod merge;
mod ready;
mod snapshot;
mod tell;

pub(crate) use command::Transfer;
pub(crate) use ready::{Committed, Effects, OutgoingSnapshot};
pub(crate) use snapshot::Install;
use tell::Told;

/// What all peers of a host share.
pub(crate) struct Env {
    pub host_id: u64,
    pub timing: Timing,
    pub keep: Keep,
    pub support: Arc<SupportTable>,
    /// Raft's own log.
    pub logger: slog::Logger,
}

/// Raft's own log: what it warns of goes to ours, the rest (every vote of every region) nowhere.
pub(crate) fn raft_logger() -> slog::Logger {
    slog::Logger::root(Warnings, slog::o!())
}

/// A peer without region state lets entries pass unanswered for so many election timeouts. Its host is most likely about
/// to hear of the region, or to apply the split that makes it; an answer would make the leader send a raft snapshot.
const BLANK_ELECTIONS: u32 = 3;
/// Peers beside its own that a peer remembers or answers at once; more come again.
const STRANGERS_MAX: usize = 16;

/// A peer of this host.
pub(crate) struct Peer {
    pub handle: PeerHandle,
    raw: RawNode<PeerStorage>,
    /// Until then a peer without region state does not tell a leader so.
    blank_until: Now,
    /// None while the peer has no region state.
    machine: Option<Arc<dyn RegionMachine>>,
    /// What was last written, but for a commit index that may have moved since.
    raft_state: RaftState,
    /// Term, role and leader as last published.
    seen: (u64, StateRole, u64),
    /// Senders and receivers by id; the region's peers, and whoever wrote while there was no region.
    peers: Vec<PeerMeta>,
    guard: VoteGuard,
    lease: LeaseBasis,
    proposals: Proposals,
    reads: Reads,
    transfer: Option<Box<Transfer>>,
    /// Leads this term, and the machine has not been told because nothing of the term is handed to apply yet.
    inaugurating: Option<u64>,
    /// A split or a freeze of this term was proposed and is not applied.
    splitting: bool,
    /// Index of the freeze that this term proposed last: no data follows it before it is refused, or has ended. 0: none.
    freezing: u64,
    /// Highest index handed to the apply thread.
    handed: u64,
    /// Bytes of entries that the apply thread has not answered yet.
    apply_bytes: usize,
    /// Highest index whose truncation was proposed.
    compact_proposed: u64,
    /// Bytes of the entries behind `truncated`, about.
    log_bytes: u64,
    incoming: Option<Box<(SnapshotManifest, SnapshotDir)>>,
    installing: bool,
    /// Entries behind the raft snapshot that is being installed, committed already: handed over once its data is in place.
    withheld: Vec<Entry>,
    /// Ticks that a finished snapshot waits for raft to take it.
    snapshot_age: u64,
    /// A raft snapshot for this peer could not be sent; raft is told when it may be.
    failed_snapshot: Option<u64>,
    last_heard: Vec<(u64, Now)>,
    /// Senders of a newer configuration than this peer has applied: they are answered like peers.
    strangers: Vec<PeerMeta>,
    /// Peers that were removed, and how often they are told so yet: by this peer as soon as it leads.
    farewells: Vec<(PeerMeta, u8)>,
    /// Peers that are told with the next round that the region has no such peer.
    dismissals: Vec<PeerMeta>,
    /// The peer is being destroyed: nothing happens to it any more.
    condemned: bool,
    /// Configuration in which there is no such peer, heard of while a raft snapshot came in; 0: none.
    doomed: u64,
    /// Newest configuration that is known to hold this peer.
    member_in: u64,
    /// Newest term that this peer led.
    led: u64,
    /// It led last and has no vote any more: with the next round it tells the others that it leads no more.
    renounces: bool,
    /// Configuration that raft goes by here; the apply thread may be ahead of it.
    conf_ver: u64,
    ticks: u64,
    /// Ticks since anything happened to it.
    quiet_ticks: u64,
    /// A leader that is to send heartbeats with the next tick.
    greets: bool,
    told: Told,
}

impl Peer {
    /// A peer with region state. `raft_state` is what the log holds for it.
    pub fn new(
        env: &Env,
        handle: PeerHandle,
        machine: Arc<dyn RegionMachine>,
        log: Arc<dyn LogStore>,
        raft_state: Option<RaftState>,
        apply: ApplyState,
        guard: VoteGuard,
    ) -> Self {
        let raft_state = initial_raft_state(handle.peer().id, raft_state, apply);
        let region = handle.region();
        Self::build(env, handle, Some(machine), log, raft_state, Some(apply), guard, region.peers.clone())
    }

    /// A peer that a message called into being: it may vote and take a raft snapshot, no more.
    pub fn uninitialised(
        env: &Env,
        handle: PeerHandle,
        log: Arc<dyn LogStore>,
        raft_state: Option<RaftState>,
        guard: VoteGuard,
    ) -> Self {
        let raft_state = raft_state.unwrap_or(RaftState { peer_id: handle.peer().id, ..RaftState::default() });
        // A new learner has nothing to wait for: its host is told of it by nobody else.
        let patience = if handle.0.peer.learner { 0 } else { BLANK_ELECTIONS };
        let blank_until = Now::monotonic().plus(env.timing.election() * patience);
        Self { blank_until, ..Self::build(env, handle, None, log, raft_state, None, guard, Vec::new()) }
    }

    #[expect(clippy::too_many_arguments, reason = "the two constructors above are what callers see")]
    fn build(
        env: &Env,
        handle: PeerHandle,
        machine: Option<Arc<dyn RegionMachine>>,
        log: Arc<dyn LogStore>,
        raft_state: RaftState,
        apply: Option<ApplyState>,
        guard: VoteGuard,
        peers: Vec<PeerMeta>,
    ) -> Self {
        let conf_state = conf_state(&peers);
        let conf_ver = handle.region().region_epoch().conf_ver;
        let storage = PeerStorage::new(handle.id(), log, conf_state, raft_state.hard_state(), apply);
        let applied = apply.map_or(0, |apply| apply.applied_index);
        let config = Config {
            id: handle.peer().id,
            election_tick: env.timing.election_ticks,
            heartbeat_tick: env.timing.heartbeat_ticks,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            batch_append: true,
            // Told with the next entries, or by `tell`.
            skip_bcast_commit: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            ..Config::default()
        };
        let raw = match RawNode::new(&config, storage, &env.logger) {
            Ok(raw) => raw,
            Err(error) => fatal(format_args!("raft group {handle:?} cannot start: {error}")),
        };
        let seen = (raw.raft.term, raw.raft.state, raw.raft.leader_id);
        handle.0.view.store(Arc::new(View { term: seen.0, leading: false, leader: None }));
        Self {
            handle,
            raw,
            blank_until: Now(0),
            machine,
            raft_state,
            seen,
            peers,
            guard,
            lease: LeaseBasis::default(),
            proposals: Proposals::default(),
            reads: Reads::default(),
            transfer: None,
            inaugurating: None,
            splitting: false,
            freezing: 0,
            handed: applied,
            apply_bytes: 0,
            compact_proposed: 0,
            log_bytes: 0,
            incoming: None,
            installing: false,
            withheld: Vec::new(),
            snapshot_age: 0,
            failed_snapshot: None,
            last_heard: Vec::new(),
            strangers: Vec::new(),
            farewells: Vec::new(),
            dismissals: Vec::new(),
            condemned: false,
            doomed: 0,
            member_in: 0,
            led: 0,
            renounces: false,
            conf_ver,
            ticks: 0,
            quiet_ticks: 0,
            greets: false,
            told: Told::default(),
        }
    }

    pub fn region_id(&self) -> u64 {
        self.handle.id()
    }

    pub fn peer_id(&self) -> u64 {
        self.handle.0.peer.id
    }

    pub fn guard(&self) -> &VoteGuard {
        &self.guard
    }

    pub fn is_initialised(&self) -> bool {
        self.raw.store().is_initialised()
    }

    /// Whether raft has something to do that `collect` would take.
    pub fn is_busy(&self) -> bool {
        !self.condemned && (self.raw.has_ready() || self.renounces || !self.dismissals.is_empty())
    }

    fn leads(&self, term: u64) -> bool {
        self.raw.raft.state == StateRole::Leader && self.raw.raft.term == term
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn applied(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// Whether the first entry of the leader's own term is applied.
    fn settled(&self) -> bool {
        self.handle.0.applied_term.load(std::sync::atomic::Ordering::Acquire) == self.raw.raft.term
    }

    /// Whether a sole voter sits here: it may campaign at once, nobody else can have been promised anything.
    pub fn is_sole_voter(&self) -> bool {
        let region = self.handle.region();
        region.peers.iter().filter(|peer| votes(peer)).count() == 1
            && region.peer(PeerId(self.peer_id())).is_some_and(votes)
    }

    /// Whether this peer campaigns at once where all peers of its region were just created.
    pub fn goes_first(&self) -> bool {
        let region = self.handle.region();
        region.peers.iter().find(|peer| !peer.learner).is_some_and(|peer| peer.id == self.peer_id())
    }

    /// A message of another host, whose frames carry `incarnation`; `conf_ver` is the sender's.
    pub fn step(&mut self, (from, conf_ver): (PeerMeta, u64), incarnation: u64, message: Message, now: Now, env: &Env) {
        match message.get_msg_type() {
            // Forwarded proposals and questions have no index and no term to answer by; nobody sends them here.
            MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgTransferLeader
            // Local to the sender; from outside they are forgeries.
            | MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum => return,
            // A campaign looks at what is not applied yet, and a snapshot that is being installed counts as that.
            MessageType::MsgTimeoutNow if self.installing => return,
            MessageType::MsgAppend if !self.is_initialised() && now < self.blank_until => return,
            _ => {}
        }
        if message.from != from.id || message.to != self.peer_id() {
            return;
        }
        if self.condemned || !self.knows(from, conf_ver) {
            return;
        }
        // Who writes to this peer has it in its configuration.
        self.member_in = self.member_in.max(conf_ver);
        let promised = |host, incarnation| env.support.promised(host, incarnation, now);
        if !self.guard.admits(&message, now.0, promised) {
            metrics::counter!("braid_raft_votes_withheld_total").increment(1);
            return;
        }
        self.heard(from.id, &message, incarnation, now);
        if asks_for_vote(&message) {
            // Who asks a leader for its vote has not heard of it.
            self.greet();
        }
        let (term, leading) = (message.term, from_leader(&message));
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(region = self.region_id(), %error, "raft refused a message");
        }
        let raft = &self.raw.raft;
        if leading && raft.term == term && raft.leader_id == from.id {
            self.guard.follows(Followed { peer: from.id, term, host: from.store_id, incarnation });
            self.handle.0.hear_leader(now);
        }
    }

    /// Whether the sender is somebody to talk to. Somebody of a newer configuration is: this peer learns of it only from
    /// those it does not know yet. Somebody of an older one was removed, and is told so.
    fn knows(&mut self, from: PeerMeta, conf_ver: u64) -> bool {
        let same = |known: &PeerMeta| known.id == from.id && known.store_id == from.store_id;
        if self.peers.iter().any(same) {
            return true;
        }
        if !self.is_initialised() {
            self.peers.retain(|known| known.id != from.id);
            self.peers.push(from);
            return true;
        }
        // The apply thread may be ahead of `self.peers`: whom it has accepted is no stranger who was removed.
        let region = self.handle.region();
        let own = region.region_epoch().conf_ver;
        if conf_ver > own || region.peers.iter().any(same) {
            if !self.strangers.iter().any(same) {
                if self.strangers.len() == STRANGERS_MAX {
                    self.strangers.remove(0);
                }
                self.strangers.push(from);
            }
            return true;
        }
        if conf_ver < own {
            self.dismiss(from);
        }
        false
    }

    /// Tells a removed peer so, with the next round.
    fn dismiss(&mut self, peer: PeerMeta) {
        if self.dismissals.len() < STRANGERS_MAX && !self.dismissals.iter().any(|known| known.id == peer.id) {
            self.dismissals.push(peer);
        }
    }

    fn heard(&mut self, from: u64, message: &Message, incarnation: u64, now: Now) {
        if !self.is_leader() {
            return;
        }
        match self.last_heard.iter_mut().find(|(peer, _)| *peer == from) {
            Some((_, heard)) => *heard = now,
            None => self.last_heard.push((from, now)),
        }
        let answers = message.get_msg_type() == MessageType::MsgHeartbeatResponse && message.term == self.raw.raft.term;
        let Some(sent) = message.context.first_chunk::<8>().filter(|_| answers) else { return };
        let seen = Seen { sent: Now(u64::from_be_bytes(*sent)), incarnation };
        if seen.sent <= now && self.lease.saw(from, seen) {
            // It can only last longer.
            self.share_lease();
        }
    }

    fn publish_lease(&self) {
        self.share_lease();
        if let Some(machine) = &self.machine {
            machine.on_lease();
        }
    }

    fn share_lease(&self) {
        let basis = if self.lease.term == 0 { no_lease() } else { Arc::new(self.lease.clone()) };
        self.handle.0.basis.store(basis);
    }

    /// Ends the lease for good in this term (rule O7).
    fn void_lease(&mut self) {
        self.lease = LeaseBasis::default();
        self.publish_lease();
    }

    /// Publishes term, role and leader if they changed, and does what follows from it. Before anything is sent.
    fn observe_role(&mut self, now: Now, env: &Env) {
        let raft = &self.raw.raft;
        let seen = (raft.term, raft.state, raft.leader_id);
        if seen == self.seen {
            return;
        }
        let was = std::mem::replace(&mut self.seen, seen);
        let (term, state, leader_id) = seen;
        let (led, leads) = (was.1 == StateRole::Leader, state == StateRole::Leader);
        let anew = leads && !(led && was.0 == term);
        if led && (!leads || anew) {
            self.resign();
        }
        let leader = self.peers.iter().find(|peer| peer.id == leader_id).copied();
        self.handle.0.view.store(Arc::new(View { term, leading: leads, leader }));
        if anew {
            self.inaugurate(now, env);
        } else if matches!(state, StateRole::Follower | StateRole::PreCandidate)
            && let Some(machine) = &self.machine
        {
            // A candidate may still lead its term; everybody else cannot any more.
            machine.on_follower(Term(term), leader);
        }
        self.watch_transfer(false);
    }

    fn inaugurate(&mut self, now: Now, env: &Env) {
        metrics::counter!("braid_raft_leader_changes_total").increment(1);
        let term = self.raw.raft.term;
        self.guard.leads();
        self.inaugurating = Some(term);
        self.led = term;
        self.compact_proposed = 0;
        // The first entry of the term is on its way.
        self.told_with_entries();
        self.lease = LeaseBasis::default();
        self.lease = LeaseBasis { term, others: self.voters(env), own: self.own_votes(), cap: None };
        self.publish_lease();
        self.last_heard = self.peers.iter().map(|peer| (peer.id, now)).collect();
        self.report_catching_up(now, env);
        // Asks everybody right away, so that the lease does not wait for the first tick.
        self.raw.ping();
    }

    fn resign(&mut self) {
        self.void_lease();
        self.inaugurating = None;
        (self.splitting, self.freezing) = (false, 0);
        self.reads.fail();
        self.proposals.drop_waiting();
        self.handle.0.down_peers.store(listed(Vec::new()));
        self.handle.0.catching_up.store(listed(Vec::new()));
        let mut slot = self.raw.store().snapshots.borrow_mut();
        if matches!(*slot, SnapshotSlot::Wanted(_) | SnapshotSlot::Ready { .. }) {
            *slot = SnapshotSlot::Idle;
        }
    }

    /// The apply thread has applied up to `index`.
    pub fn on_applied(&mut self, (index, bytes): (u64, usize), effect: &Applied, now: Now, env: &Env) {
        let Applied { truncated, reshaped, ref changes } = *effect;
        self.apply_bytes -= bytes;
        if !changes.is_empty() {
            self.take_over(changes, now, env);
        }
        if index > self.applied() {
            self.raw.advance_apply_to(index);
        }
        if let Some((index, term)) = truncated {
            let (old, last) = (self.raw.store().truncated(), self.raw.store().last());
            self.raw.mut_store().truncate(index, term);
            if index > old && last > old {
                self.log_bytes =
                    (u128::from(self.log_bytes) * u128::from(last - index) / u128::from(last - old)) as u64;
            }
        }
        if reshaped {
            self.splitting = false;
            self.peers.clone_from(&self.handle.region().peers);
            if self.lease.cap.take().is_some() {
                self.publish_lease();
            }
        }
        self.reads.applied(index);
        self.raw.mut_store().trim_cache(index, false);
        self.leave_joint(env);
    }

    /// The process stops, or the peer is replaced: nobody will answer for it any more.
    pub fn abandon(&mut self) {
        self.void_lease();
        let view = View { term: self.raw.raft.term, ..View::default() };
        self.handle.0.view.store(Arc::new(view));
        self.reads.fail();
        self.proposals.abandon();
        if let Some(transfer) = self.transfer.take() {
            (transfer.done)(Err("this peer goes away".to_owned()));
        }
    }
}

struct Warnings;

impl slog::Drain for Warnings {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Warning) {
            tracing::warn!(target: "raft", "{}", record.msg());
        }
        Ok(())
    }
}

/// The raft state that an initialised peer starts with, given what its log holds.
pub(crate) fn initial_raft_state(peer_id: u64, stored: Option<RaftState>, apply: ApplyState) -> RaftState {
    let fresh = RaftState { peer_id, term: apply.applied_term, vote: 0, commit: apply.applied_index };
    match stored {
        Some(stored) if stored.peer_id == peer_id && stored.term >= fresh.term => {
            RaftState { commit: stored.commit.max(fresh.commit), ..stored }
        }
        _ => fresh,
    }
}

/// A raft entry of our own making.
fn entry(context: Bytes, data: Bytes) -> Entry {
    Entry { context, data, ..Entry::default() }
}

fn admin_entry(admin: &Admin) -> Entry {
    let (context, data) = admin.encode();
    entry(context, data)
}

impl Peer {
    /// Proposes a data entry, behind everything proposed before it (rule O3).
    pub fn propose(&mut self, term: u64, data: Bytes, done: Done) {
        if self.condemned
            || !self.leads(term)
            || self.handle.0.refused_term.load(std::sync::atomic::Ordering::Acquire) == term
        {
            return done(Outcome::Dropped);
        }
        if self.is_freezing() {
            // What was evaluated after it must not be accepted later (rule O3).
            tracing::warn!(region = self.region_id(), "a frozen region takes no data: who proposes has not drained it");
            done(Outcome::Dropped);
            return self.give_up(term);
        }
        metrics::counter!("braid_raft_proposals_total").increment(1);
        let proposal = Waiting { context: Bytes::new(), data, done };
        let refused = if self.proposals.is_waiting() { Err(proposal) } else { self.append(proposal) };
        let Err(proposal) = refused else { return };
        if let Err(proposal) = self.proposals.wait(proposal) {
            (proposal.done)(Outcome::Dropped);
            self.give_up(term);
        }
    }

    /// Whether the region is frozen or a freeze is on its way. Looks at what is applied, not at what the worker has been
    /// told of it: who proposed is told first.
    fn is_freezing(&self) -> bool {
        self.handle.applied_index() < self.freezing || self.handle.frozen().is_some()
    }

    /// Appends to the raft log, or gives the proposal back because raft would not take it now.
    fn append(&mut self, proposal: Waiting) -> Result<(), Waiting> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.peer_id();
        message.entries = vec![entry(proposal.context.clone(), proposal.data.clone())].into();
        match self.raw.raft.step(message) {
            Ok(()) => {
                let raft = &self.raw.raft;
                self.proposals.appended(raft.raft_log.last_index(), raft.term, proposal.done);
                self.told_with_entries();
                Ok(())
            }
            Err(_) => Err(proposal),
        }
    }

    /// Proposes again what raft refused before, in order.
    fn retry(&mut self) {
        while self.is_leader()
            && let Some(proposal) = self.proposals.next_waiting()
        {
            if let Err(proposal) = self.append(proposal) {
                return self.proposals.wait_again(proposal);
            }
        }
    }

    /// A proposal of `term` was refused for want of room: what was evaluated after it must not be accepted, so the
    /// leader steps down.
    pub fn give_up(&mut self, term: u64) {
        if !self.leads(term) {
            return;
        }
        tracing::warn!(region = self.region_id(), term, "a proposal of this term was refused; the leader steps down");
        metrics::counter!("braid_raft_gave_up_total").increment(1);
        self.handle.0.refused_term.fetch_max(term, std::sync::atomic::Ordering::AcqRel);
        self.proposals.drop_waiting();
        self.raw.raft.become_follower(term, raft::INVALID_ID);
    }
}
