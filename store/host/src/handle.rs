//! What the rest of a process holds of a peer: a cheap clone that answers from shared memory and posts to the raft
//! worker that owns the peer.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use braid_proto::id::{PeerId, Term};
use braid_proto::pb::{Peer, Region, RegionEpoch, RegionReport};
use bytes::Bytes;

use crate::applied::AppliedIndex;
use crate::bell::Ringing;
use crate::change::{Changed, PeerChange};
use crate::config::Timing;
use crate::lease::LeaseBasis;
use crate::mail::{Command, Mail, MailBox, Note, Reshape};
use crate::merge::Frozen;
use crate::meta::ApplyState;
use crate::reads::Confirmed;
use crate::split::SplitSpec;
use crate::support::Now;
use crate::worker::PATROL_TICKS;
use crate::{Done, Outcome};

/// Bytes of proposals of one host that may be on their way to its workers.
const POSTED_BYTES_MAX: usize = 128 << 20;
/// Largest proposal. Raft messages are cut at entry boundaries, so an entry must fit into one message of the transport
/// (64 MiB).
pub const PROPOSAL_BYTES_MAX: usize = 48 << 20;

/// How a peer's role looked when it last changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub term: u64,
    pub leading: bool,
    pub leader: Option<Peer>,
}

/// Where a peer's mail goes.
#[derive(Clone)]
pub(crate) struct Post {
    /// Bounded; may refuse.
    pub mail: Arc<MailBox>,
    /// For the host's own threads; each sends a bounded amount per region.
    pub notes: Ringing<Note>,
    /// Bytes of proposals in `mail` boxes.
    pub posted_bytes: Arc<AtomicUsize>,
}

/// Handle of one peer of this host.
#[derive(Clone)]
pub struct PeerHandle(pub(crate) Arc<PeerShared>);

/// Behind the handle. The worker and the apply thread write, everybody reads.
pub(crate) struct PeerShared {
    pub region_id: u64,
    pub peer: Peer,
    pub region: ArcSwap<Region>,
    /// Written by the apply thread once it is durable.
    pub frozen: ArcSwapOption<Frozen>,
    /// See [`crate::meta::RegionState::absorbed`]; None: none.
    pub absorbed: ArcSwapOption<Vec<u64>>,
    pub view: ArcSwap<View>,
    /// Counts up when a raft snapshot begins to replace the data, and when it has: odd in between.
    pub replacements: AtomicU64,
    /// Highest applied index, and the term of its entry. Written by the apply thread, the term last.
    pub applied_index: AppliedIndex,
    pub applied_term: AtomicU64,
    pub basis: ArcSwap<LeaseBasis>,
    pub down_peers: ArcSwap<Vec<u64>>,
    pub catching_up: ArcSwap<Vec<u64>>,
    /// Since when no leader is known ([`Now`]); 0: one is. Written by the worker.
    pub alone_since: AtomicU64,
    /// When a leader spoke last, or this peer led.
    pub leader_heard: AtomicU64,
    /// Term in which a proposal was refused for want of room: nothing later of it may be accepted (rule O3).
    pub refused_term: AtomicU64,
    pub gone: AtomicBool,
    /// Nothing happens to the peer until somebody wakes it. Written by the worker, for people and tests.
    pub asleep: AtomicBool,
    pub post: Post,
}

/// A list of peers to be published. Most lists name nobody, and share one.
pub(crate) fn listed(peers: Vec<u64>) -> Arc<Vec<u64>> {
    static NOBODY: LazyLock<Arc<Vec<u64>>> = LazyLock::new(Arc::default);
    if peers.is_empty() { Arc::clone(&NOBODY) } else { Arc::new(peers) }
}

/// The basis of every peer that does not lead.
pub(crate) fn no_lease() -> Arc<LeaseBasis> {
    static NO_LEASE: LazyLock<Arc<LeaseBasis>> = LazyLock::new(Arc::default);
    Arc::clone(&NO_LEASE)
}

impl PeerHandle {
    pub(crate) fn new(region: Region, peer: Peer, apply: Option<ApplyState>, post: Post) -> Self {
        let applied = apply.unwrap_or(ApplyState::at(0, 0));
        Self(Arc::new(PeerShared {
            region_id: region.id,
            peer,
            region: ArcSwap::from_pointee(region),
            frozen: ArcSwapOption::empty(),
            absorbed: ArcSwapOption::empty(),
            view: ArcSwap::default(),
            replacements: AtomicU64::new(0),
            applied_index: AppliedIndex::new(applied.applied_index),
            applied_term: AtomicU64::new(applied.applied_term),
            basis: ArcSwap::new(no_lease()),
            down_peers: ArcSwap::new(listed(Vec::new())),
            catching_up: ArcSwap::new(listed(Vec::new())),
            alone_since: AtomicU64::new(0),
            leader_heard: AtomicU64::new(Now::monotonic().0),
            refused_term: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            post,
        }))
    }

    /// A handle that belongs to no worker.
    #[cfg(test)]
    pub(crate) fn detached(region: &Region) -> Self {
        let bell = Arc::default();
        let mail = Arc::new(MailBox::new(1, Arc::clone(&bell)));
        let (notes, _) = crate::bell::queue(bell);
        let post = Post { mail, notes, posted_bytes: Arc::default() };
        Self::new(region.clone(), region.peers.first().copied().unwrap_or_default(), None, post)
    }

    /// The region as this peer has applied it.
    pub fn region(&self) -> Arc<Region> {
        self.0.region.load_full()
    }

    /// This peer, as the region lists it.
    pub fn peer(&self) -> Peer {
        self.0.region.load().peer(PeerId(self.0.peer.id)).copied().unwrap_or(self.0.peer)
    }

    /// Newest raft term this peer knows.
    pub fn term(&self) -> Term {
        Term(self.0.view.load().term)
    }

    /// Whether this peer leads in `term`, as far as it knows. Proves nothing about others: see [`Self::lease`].
    pub fn is_leader(&self, term: Term) -> bool {
        let view = self.0.view.load();
        view.leading && view.term == term.0 && !self.gone()
    }

    /// The leader this peer knows.
    pub fn leader(&self) -> Option<Peer> {
        self.0.view.load().leader
    }

    /// Highest raft index applied here.
    pub fn applied_index(&self) -> u64 {
        self.0.applied_index.get()
    }

    /// Returns when `index` is applied here; for a peer that is removed before, never: the caller brings the deadline.
    pub async fn applied(&self, index: u64) {
        self.0.applied_index.reach(index).await;
    }

    /// Names the data this peer stands on; `None` while a raft snapshot replaces it. What is seen between two calls with
    /// the same answer is not half replaced.
    pub fn replacements(&self) -> Option<u64> {
        let count = self.0.replacements.load(Ordering::SeqCst);
        count.is_multiple_of(2).then_some(count)
    }

    /// Whether, at some instant during this call, no other peer could lead and everything that was committed before
    /// `term` is applied here. Sample what rests on it first, then ask.
    pub fn lease(&self, term: Term) -> bool {
        self.0.lease(term.0, Now::monotonic())
    }

    /// As [`Self::lease`], and nothing is under way that ends it: as long as [`Host::support_held`](crate::Host::support_held)
    /// answers the same and [`RegionMachine::on_lease`](crate::RegionMachine::on_lease) is not called, it stands.
    pub fn lease_stands(&self, term: Term) -> bool {
        let uncapped = self.0.basis.load().cap.is_none();
        uncapped && self.lease(term)
    }

    /// Proposes a data entry in `term`. `done` is called exactly once, possibly before this returns.
    ///
    /// Entries of one term are accepted in the order of the calls or not at all: once one is refused while this peer
    /// leads, so are all later ones of the term, and the peer gives up leadership (rule O3).
    pub fn propose(&self, term: Term, data: Bytes, done: Done) {
        if data.is_empty() || data.len() > PROPOSAL_BYTES_MAX {
            tracing::error!(region = self.0.region_id, bytes = data.len(), "proposal of a size that is not allowed");
            return self.refuse(term, done);
        }
        let shared = &self.0;
        if shared.gone.load(Ordering::Acquire) || shared.refused_term.load(Ordering::Acquire) == term.0 {
            return done(Outcome::Dropped);
        }
        let bytes = data.len();
        if shared.post.posted_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes > POSTED_BYTES_MAX {
            shared.post.posted_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return self.refuse(term, done);
        }
        if let Err(mail) = shared.post.mail.post(Mail::Propose { region: shared.region_id, term: term.0, data, done }) {
            shared.post.posted_bytes.fetch_sub(bytes, Ordering::AcqRel);
            if let Mail::Propose { done, .. } = mail {
                self.refuse(term, done);
            }
        }
    }

    /// Splits the region. The caller has drained it (rule S1). `Dropped`: refused, at propose or at apply.
    pub fn propose_split(&self, term: Term, spec: SplitSpec, done: Done) {
        self.command(Command::Split { term: term.0, spec, done });
    }

    /// Hands leadership to `to`. The lease is gone for the rest of the term once the target was told, even if it never
    /// takes over (rule O7). `done` tells how it ended, at the latest after an election timeout.
    pub fn transfer_leader(&self, term: Term, to: PeerId, done: Transferred) {
        self.command(Command::Transfer { term: term.0, to: to.0, done });
    }

    /// Asks a quorum whether this peer leads in `term`. True: it did at some instant after the call, and has applied
    /// everything that was committed at that instant. False as soon as it cannot be answered in this term.
    pub fn confirm_leadership(&self, term: Term, done: Confirmed) {
        self.command(Command::Confirm { term: term.0, done });
    }

    /// Changes the peers of the region, which is at `epoch`. One change at a time, never together with a split or a
    /// transfer; the leader itself stays. `done` tells how it ended, possibly before this returns.
    pub fn propose_change(&self, term: Term, epoch: RegionEpoch, change: PeerChange, done: Changed) {
        self.command(Command::Change { term: term.0, epoch, change, done });
    }

    /// What the region is frozen for, as this peer has applied it; durable.
    pub fn frozen(&self) -> Option<Frozen> {
        self.0.frozen()
    }

    /// Freezes the region, whose leader has drained it (rules S1, S4), to go into `target`, which is at its epoch given
    /// here. From the call on the lease is not renewed, and there is none while it is frozen; no data entry may follow in
    /// this term before the freeze is refused, or has ended.
    pub fn propose_freeze(&self, term: Term, target: Region, done: Changed) {
        self.reshape(term, Reshape::Freeze(target), done);
    }

    /// Ends the freeze. `proof` is the target as it is now: it has left the epoch that the freeze is for, and does not hold
    /// this region's keys. [`ChangeRefused::NotNow`](crate::ChangeRefused::NotNow) until the target's peer on this host has
    /// left that epoch too: what has taken the region in may have split since, and look as if it had not.
    pub fn propose_thaw(&self, term: Term, proof: Region, done: Changed) {
        self.reshape(term, Reshape::Thaw(proof), done);
    }

    /// Takes in `source`, as it was frozen for this region at its present epoch: by every one of its peers, durably. The
    /// caller has drained this region.
    pub fn propose_merge(&self, term: Term, source: Region, done: Changed) {
        self.reshape(term, Reshape::Merge(source), done);
    }

    /// Raises the version of the region, which is at `epoch`, so that no merge at that epoch can happen any more.
    pub fn propose_bump(&self, term: Term, epoch: RegionEpoch, done: Changed) {
        self.reshape(term, Reshape::Bump(epoch), done);
    }

    fn reshape(&self, term: Term, reshape: Reshape, done: Changed) {
        self.command(Command::Reshape { term: term.0, reshape: Box::new(reshape), done });
    }

    /// Campaigns now instead of at the next election timeout, unless a promise to another leader stands.
    pub fn campaign(&self) {
        self.command(Command::Campaign);
    }

    /// What placement wants to know of a led region; None where this peer does not lead. Sizes are the machine's.
    pub fn report(&self) -> Option<RegionReport> {
        let view = self.0.view.load();
        (view.leading && !self.gone()).then(|| RegionReport {
            region: Some((*self.region()).clone()),
            leader_peer: self.0.peer.id,
            term: view.term,
            down_peers: self.0.down_peers.load().to_vec(),
            catching_up: self.0.catching_up.load().to_vec(),
            ..RegionReport::default()
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.region_id
    }

    /// Whether the peer costs nothing until somebody wakes it.
    pub(crate) fn asleep(&self) -> bool {
        self.0.asleep.load(Ordering::Acquire)
    }

    fn gone(&self) -> bool {
        self.0.gone.load(Ordering::Acquire)
    }

    /// Refuses a proposal for want of room, and with it the rest of the term.
    fn refuse(&self, term: Term, done: Done) {
        self.0.refused_term.fetch_max(term.0, Ordering::AcqRel);
        // The worker may have ended; then nobody leads any more.
        self.0.post.notes.send(Note::GiveUp { region: self.0.region_id, term: term.0 });
        done(Outcome::Dropped);
    }

    fn command(&self, command: Command) {
        if self.gone() {
            return command.refuse("the peer is gone");
        }
        if let Err(mail) = self.0.post.mail.post(Mail::Command { region: self.0.region_id, command }) {
            mail.refuse();
        }
    }
}

impl PeerShared {
    /// Whether no leader is known for long. A peer whose leader rests hears from it with every patrol; one that does not
    /// was forgotten.
    pub fn is_lonely(&self, now: Now, timing: &Timing) -> bool {
        if self.view.load().leading || self.gone.load(Ordering::Acquire) {
            return false;
        }
        let alone = Now(self.alone_since.load(Ordering::Acquire));
        let heard = Now(self.leader_heard.load(Ordering::Acquire));
        let patrols = timing.tick * (2 * PATROL_TICKS as u32);
        (alone != Now(0) && now.since(alone) >= timing.lonely) || now.since(heard) >= patrols + timing.lonely
    }

    /// A leader spoke.
    pub fn hear_leader(&self, now: Now) {
        self.leader_heard.store(now.0, Ordering::Release);
        self.alone_since.store(0, Ordering::Release);
    }

    /// See [`PeerHandle::frozen`].
    pub fn frozen(&self) -> Option<Frozen> {
        self.frozen.load().as_deref().copied()
    }

    /// Regions that this one has taken in.
    pub fn absorbed(&self) -> Vec<u64> {
        self.absorbed.load().as_deref().cloned().unwrap_or_default()
    }

    /// See [`Self::absorbed`].
    pub fn set_absorbed(&self, absorbed: Vec<u64>) {
        self.absorbed.store((!absorbed.is_empty()).then(|| Arc::new(absorbed)));
    }

    /// See [`PeerHandle::lease`].
    pub fn lease(&self, term: u64, now: Now) -> bool {
        let basis = self.basis.load();
        !self.gone.load(Ordering::Acquire)
            && basis.term == term
            && term != 0
            && self.frozen.load().is_none()
            && self.applied_term.load(Ordering::Acquire) == term
            && now < basis.until()
    }
}

/// How a transfer ended; an error says why for people.
pub type Transferred = Box<dyn FnOnce(Result<(), String>) + Send + 'static>;

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.0.view.load();
        write!(
            f,
            "r{} p{} t{}{}{}",
            self.0.region_id,
            self.0.peer.id,
            view.term,
            if view.leading { " leader" } else { "" },
            if self.asleep() { " asleep" } else { "" }
        )
    }
}
