//! One region peer: the shell around the pure write path. Carries out its effects, feeds it what happens.
//!
//! Locking: the pipeline's mutex is held while a request is evaluated and while entries are handed to raft, because
//! evaluation order, number order and log order must be one order. It is never held across a call that may come back
//! into this region: numbers are asked for, and callers answered, after it is released.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use braid_host::{Entry, Frozen, Outcome, PROPOSAL_BYTES_MAX, PeerHandle, RegionMachine};
use braid_placement_client::{NumberError, Numbers};
use braid_proto::error;
use braid_proto::id::{RegionId, Term};
use braid_proto::pb::{
    Peer, Refusal, Region, RegionEntry, RegionEpoch, RegionResponse, StoredLease, StoredLock, region_request,
    region_response,
};
use braid_store_client::Regions as Cluster;
use braid_store_core::epoch;
use braid_store_core::eval::{EFFECT_BYTES_MAX, ROWS_BYTES_MAX, Request};
use braid_store_core::pipeline::{
    BATCH_BYTES_MAX, BarrierId, BatchId, Block, Effect, EntryEnd, EntryId, Pipeline, Until, Woken, Work, not_found,
    timed_out,
};
use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;
use prost::Message;
use rocksdb::{DB, WriteBatch};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::engine::{Boundary, NewestRecords, RegionData};
use crate::flow::Flow;
use crate::frontier::Promise;
use crate::leases::{self, Revocations};
use crate::load::Load;
use crate::merge::{self, Ended};
use crate::multi;
use crate::space::Space;
use crate::watch::Publisher;
use crate::watch::live::Live;

/// Where an answer goes. A caller that went away is no error.
pub type Reply = oneshot::Sender<RegionResponse>;
/// Who waits for in-flight writes and locks.
pub type Waker = oneshot::Sender<Woken>;
type Effects = Vec<Effect<Reply, Waker>>;

// An entry holds one batch, or one request of any size that may be evaluated; both with what encoding adds.
const _: () = assert!(EFFECT_BYTES_MAX + ROWS_BYTES_MAX + BATCH_BYTES_MAX < PROPOSAL_BYTES_MAX);

/// What all region peers of a store share.
pub struct Shared {
    /// This process's way to revisions.
    pub numbers: Arc<Numbers>,
    /// Where work goes that must not run on the thread that found it.
    pub runtime: Handle,
    /// Whether there is room to write.
    pub space: Arc<Space>,
    /// Below it history may be gone.
    pub boundary: Arc<Boundary>,
    /// The newest records of its regions.
    pub newest: Arc<NewestRecords>,
    /// This process's way to all regions.
    pub cluster: Arc<Cluster>,
    /// Tells whoever follows the regions.
    pub publisher: Arc<Publisher>,
    /// When the process began: what the leases' time is counted from.
    pub started: Instant,
    /// What revocations over regions share.
    pub revocations: Arc<Revocations>,
    /// What there is to do and to tell for which regions: the others cost nothing.
    pub busy: Busy,
    /// Where the keys of regions are that have ended.
    pub ended: Ended,
    /// Slows puts down when compaction is behind.
    pub flow: Flow,
}

/// The region peers of a store.
pub type Peers = DashMap<RegionId, Arc<RegionPeer>>;

/// The regions of a store that are not idle. Each stands on a list at most once.
#[derive(Default)]
pub struct Busy {
    /// Which may have something to report.
    news: Mutex<Vec<RegionId>>,
    /// For which time goes on.
    ticking: Mutex<Vec<RegionId>>,
    /// Leases whose records lie in regions that are led here.
    leases: AtomicUsize,
}

impl Busy {
    /// Takes the regions that may have something to report since the last time. The caller says so to each before it looks at
    /// it ([`RegionPeer::taken`]).
    pub fn news(&self) -> Vec<RegionId> {
        std::mem::take(&mut self.news.lock())
    }

    /// Takes the regions for which time goes on; a tick puts back those for which it goes on still.
    pub fn ticking(&self) -> Vec<RegionId> {
        std::mem::take(&mut self.ticking.lock())
    }

    /// Leases whose records lie in regions that are led here.
    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }
}

/// Why a region is not drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDrained {
    /// It takes too long.
    InTime,
    /// Another barrier stands, or this peer does not lead (any more).
    Otherwise,
}

/// One region peer of this store.
pub struct RegionPeer {
    handle: PeerHandle,
    data: RegionData,
    pipeline: Mutex<Pipeline<Reply, Waker>>,
    shared: Arc<Shared>,
    /// Who waits for a barrier to stand.
    drained: Mutex<Option<oneshot::Sender<bool>>>,
    /// Set when the data could not be read: the peer refuses everything from then on.
    damaged: AtomicBool,
    /// Set when the peer is destroyed.
    gone: AtomicBool,
    /// Tells whoever waits for something to happen here that nothing will.
    gone_now: Notify,
    /// Set while the region is frozen, which the pipeline knows too: for those who do not ask it.
    frozen: AtomicBool,
    /// Tells whoever waits for what becomes of the frozen region that it goes on.
    thawed_now: Notify,
    /// Somebody sees its merge through.
    driven: AtomicBool,
    /// The leader's last word on how far this region is.
    promise: Promise,
    /// Who is told what is applied.
    live: Live,
    load: Load,
    /// It stands on the list of those that may have something to report.
    listed: AtomicBool,
    /// It stands on the list of those for which time goes on.
    ticks: AtomicBool,
    /// The publisher has been told to look at it since it has looked.
    restless: AtomicBool,
    /// Leases among all of the store's. Written under the pipeline's lock.
    counted_leases: AtomicUsize,
    /// All peers of the store, this one among them until it is destroyed.
    peers: Weak<Peers>,
    me: Weak<RegionPeer>,
}

impl RegionPeer {
    /// The peer behind `handle`, which does not lead yet.
    pub fn open(db: Arc<DB>, handle: PeerHandle, shared: Arc<Shared>, peers: &Arc<Peers>) -> Arc<Self> {
        let region = handle.region();
        let mut parent = None;
        let data = RegionData::open_child(db, &region, Arc::clone(&shared.boundary), &shared.newest, &mut || {
            parent = parent_of(peers, &region);
            parent.as_ref().map(|parent| parent.data().max_applied())
        });
        if let Some(parent) = parent {
            data.inherit(parent.data());
        }
        Arc::new_cyclic(|me| Self {
            data,
            pipeline: Mutex::new(Pipeline::new(Arc::clone(&region))),
            handle,
            shared,
            drained: Mutex::new(None),
            damaged: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            gone_now: Notify::new(),
            frozen: AtomicBool::new(false),
            thawed_now: Notify::new(),
            driven: AtomicBool::new(false),
            peers: Arc::downgrade(peers),
            promise: Promise::default(),
            live: Live::default(),
            load: Load::default(),
            listed: AtomicBool::new(false),
            ticks: AtomicBool::new(false),
            restless: AtomicBool::new(false),
            counted_leases: AtomicUsize::new(0),
            me: me.clone(),
        })
    }

    /// Its region.
    pub fn id(&self) -> RegionId {
        self.handle.region().region_id()
    }

    /// Its raft side.
    pub fn handle(&self) -> &PeerHandle {
        &self.handle
    }

    /// Its data.
    pub fn data(&self) -> &RegionData {
        &self.data
    }

    /// What it shares with the store's other peers.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Takes a write or transaction; `reply` gets the answer, whatever happens.
    pub fn write(&self, request: Request, epoch: RegionEpoch, span_ok: bool, reply: Reply) {
        if request.puts() && !self.shared.space.writable() {
            return answer(reply, error::NO_SPACE);
        }
        self.work(Work::Evaluate(request), epoch, span_ok, reply);
    }

    /// Takes work of any kind; `reply` gets the answer, whatever happens.
    pub fn work(&self, work: Work, epoch: RegionEpoch, span_ok: bool, reply: Reply) {
        if self.damaged.load(Ordering::Acquire) {
            return answer(reply, error::CORRUPT);
        }
        self.with(|pipeline, effects| pipeline.submit(reply, work, epoch, span_ok, effects));
    }

    /// What its leader said last about how far the region is.
    pub fn promise(&self) -> &Promise {
        &self.promise
    }

    /// Who is told what is applied.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The term it leads in, the newest revision up to which everything is applied and told, given what was heard before,
    /// and whether transactions over several regions have anything locked; `None`: it does not lead. A promise needs the
    /// term's lease, checked after (rule F1).
    pub fn leads_up_to(&self, heard: i64) -> Option<(Term, i64, bool)> {
        let pipeline = self.pipeline.lock();
        Some((pipeline.leading()?, pipeline.frontier(heard), pipeline.has_locks()))
    }

    /// Whether it leads and nothing holds its frontier back; before that changes, it is stirred.
    pub fn is_calm(&self) -> bool {
        self.pipeline.lock().is_calm()
    }

    /// Something may hold its frontier back from now on: the publisher looks at it in its next round.
    pub fn stir(&self) {
        if !self.restless.load(Ordering::Relaxed) && !self.restless.swap(true, Ordering::AcqRel) {
            self.shared.publisher.stirred(self.id());
        }
    }

    /// The publisher is about to look. What happens from now on stirs it again.
    pub fn looked_at(&self) {
        self.restless.store(false, Ordering::SeqCst);
    }

    /// What it counts of its load.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// A client's request has come.
    pub fn touched(&self, op: &region_request::Op) {
        if self.load.request(op, || self.shared.now()) {
            self.has_news();
        }
    }

    /// Puts it on the list of those that may have something to report.
    pub fn has_news(&self) {
        if !self.listed.load(Ordering::Relaxed) && !self.listed.swap(true, Ordering::AcqRel) {
            self.shared.busy.news.lock().push(self.id());
        }
    }

    /// It was taken off that list. What happens from now on puts it there again.
    pub fn taken(&self) {
        self.listed.store(false, Ordering::Release);
    }

    /// Whether a request that was routed by `epoch` is sent to the region as it is cut now.
    pub fn is_cut_as(&self, epoch: RegionEpoch) -> bool {
        epoch::serves(self.pipeline.lock().region(), epoch)
    }

    /// See [`Pipeline::not_leader`].
    pub fn not_leader(&self) -> Refusal {
        self.pipeline.lock().not_leader()
    }

    /// See [`Pipeline::epoch_mismatch`].
    pub fn epoch_mismatch(&self) -> Refusal {
        self.pipeline.lock().epoch_mismatch()
    }

    /// Lets time go on for leases, and for the locks of transactions over several regions. It was taken off the list of those
    /// that need this, and is put there again if it does.
    pub fn tick(&self) {
        {
            let _pipeline = self.pipeline.lock();
            self.ticks.store(false, Ordering::Relaxed);
        }
        self.with(Pipeline::tick);
    }

    /// Runs `event` on the pipeline, lets it go on, and carries out what follows.
    pub fn with<T>(&self, event: impl FnOnce(&mut Pipeline<Reply, Waker>, &mut Effects) -> T) -> T {
        let mut effects = Effects::new();
        let result = {
            let mut pipeline = self.pipeline.lock();
            pipeline.at(self.shared.now());
            let result = event(&mut pipeline, &mut effects);
            let heard = self.shared.numbers.heard().1;
            if let Err(damage) = pipeline.pump(&self.data, heard, &mut effects) {
                self.poison(&damage.0);
            }
            for effect in &mut effects {
                if let Effect::Propose { entry, term, data } = effect {
                    self.shared.flow.proposed(data.len());
                    self.propose(*entry, *term, std::mem::take(data));
                }
            }
            self.count(&pipeline);
            if !pipeline.is_calm() {
                // Before a number is asked for: no round that follows may miss it.
                self.stir();
            }
            result
        };
        for effect in effects {
            self.carry_out(effect);
        }
        result
    }

    /// Follows what the pipeline has: leases, and whether time must go on for it.
    fn count(&self, pipeline: &Pipeline<Reply, Waker>) {
        let (before, now) = (self.counted_leases.load(Ordering::Relaxed), pipeline.leases().len());
        if before != now {
            self.counted_leases.store(now, Ordering::Relaxed);
            self.shared.busy.leases.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
        if pipeline.has_ticks() && !self.ticks.swap(true, Ordering::Relaxed) {
            self.shared.busy.ticking.lock().push(self.id());
        }
    }

    /// Stops evaluation and waits until nothing is in flight (rule S1), and for what `until` says.
    /// After that [`Self::release`] must follow.
    ///
    /// # Errors
    /// See [`NotDrained`]; no barrier stands then.
    pub async fn drain(&self, until: Until, patience: Duration) -> Result<BarrierId, NotDrained> {
        let (tell, told) = oneshot::channel();
        let begun = self.with(|pipeline, _| {
            let begun = pipeline.begin_barrier(until);
            if begun.is_some() {
                *self.drained.lock() = Some(tell);
            }
            begun
        });
        let barrier = begun.ok_or(NotDrained::Otherwise)?;
        match timeout(patience, told).await {
            Ok(Ok(true)) => Ok(barrier),
            Ok(Ok(false) | Err(_)) => Err(NotDrained::Otherwise),
            Err(_) => {
                self.release(barrier);
                Err(NotDrained::InTime)
            }
        }
    }

    /// Ends a barrier.
    pub fn release(&self, barrier: BarrierId) {
        self.with(|pipeline, _| pipeline.end_barrier(barrier));
    }

    /// Waits for the outcome of what was proposed behind `barrier`, for `patience` at most; `None`: it is not known. The
    /// barrier stands until it is, however long that takes: what is evaluated before might be applied behind the change.
    pub async fn outcome<T: Send + 'static>(
        self: &Arc<Self>,
        barrier: BarrierId,
        told: oneshot::Receiver<T>,
        patience: Duration,
    ) -> Option<T> {
        let (tell, known) = oneshot::channel();
        let region = Arc::downgrade(self);
        tokio::spawn(async move {
            let outcome = told.await.ok();
            if let Some(region) = region.upgrade() {
                region.release(barrier);
            }
            _ = tell.send(outcome);
        });
        timeout(patience, known).await.ok()?.ok()?
    }

    fn propose(&self, entry: EntryId, term: Term, data: Bytes) {
        let me = self.me.clone();
        let done = Box::new(move |outcome: Outcome| {
            let Some(region) = me.upgrade() else { return };
            match outcome {
                // On the apply thread, which holds no lock of this region.
                Outcome::Applied => region.entry_ended(entry, EntryEnd::Applied),
                // Maybe inside `propose` itself, under the pipeline's lock.
                Outcome::Dropped => region.end_elsewhere(entry, EntryEnd::Dropped),
                Outcome::Unknown => region.end_elsewhere(entry, EntryEnd::Unknown),
            }
        });
        self.handle.propose(term, data, done);
    }

    fn end_elsewhere(self: Arc<Self>, entry: EntryId, end: EntryEnd) {
        let runtime = self.shared.runtime.clone();
        runtime.spawn(async move { self.entry_ended(entry, end) });
    }

    fn entry_ended(&self, entry: EntryId, end: EntryEnd) {
        let holes = self.with(|pipeline, effects| pipeline.entry_ended(entry, end, effects));
        count_holes(holes as u64);
        if self.live.any() {
            self.shared.publisher.applied();
        }
    }

    fn carry_out(&self, effect: Effect<Reply, Waker>) {
        match effect {
            Effect::Propose { .. } => {}
            Effect::Number { batch, count } => self.ask_numbers(batch, count),
            Effect::Judge { to, term, answer } => self.judge(to, term, answer),
            Effect::Reply { to, answer } => _ = to.send(answer),
            Effect::Wake { reader, woken } => _ = reader.send(woken),
            Effect::Carry { token, txn, revision, share } => {
                let carry = multi::carry(self.me.clone(), token, txn, revision, share);
                self.shared.runtime.spawn(carry);
            }
            Effect::Ask { token, txn, primary } => {
                let (me, ask) = (self.me.clone(), multi::Question { token, txn, primary, read_at: 0 });
                self.shared.runtime.spawn(async move {
                    if let Some(region) = me.upgrade() {
                        multi::ask(&region, ask).await;
                    }
                });
            }
            Effect::Register { question, lease, range } => {
                self.shared.runtime.spawn(leases::register(self.me.clone(), question, lease, range));
            }
            Effect::Revoke { lease, ranges } => {
                self.shared.runtime.spawn(leases::revoke(self.me.clone(), lease, ranges));
            }
            Effect::Drained => {
                if let Some(tell) = self.drained.lock().take() {
                    _ = tell.send(true);
                }
            }
        }
    }

    fn ask_numbers(&self, batch: BatchId, count: u32) {
        let me = self.me.clone();
        let done = Box::new(move |answer: Result<braid_placement_client::Block, NumberError>| {
            let Some(region) = me.upgrade() else { return };
            region.with(|pipeline, effects| match answer {
                Ok(block) => {
                    let given = Block { base: block.base, compacted: block.compacted };
                    if !pipeline.numbered(batch, given, effects) {
                        count_holes(u64::from(block.count));
                    }
                }
                Err(error) => pipeline.not_numbered(batch, &error.to_string(), effects),
            });
        });
        self.shared.numbers.request(count, done);
    }

    /// Answers if this peer still leads `term`: by lease, or by asking a quorum where the lease does not hold.
    fn judge(&self, to: Reply, term: Term, response: RegionResponse) {
        if self.handle.lease(term) {
            _ = to.send(response);
            return;
        }
        metrics::counter!("braid_read_index_total").increment(1);
        let me = self.me.clone();
        let done = Box::new(move |leads: bool| {
            let response = match (leads, me.upgrade()) {
                (true, _) => response,
                (false, Some(region)) => region.refuse_not_leader(),
                (false, None) => refusal(timed_out("the region's peer is gone")),
            };
            _ = to.send(response);
        });
        self.handle.confirm_leadership(term, done);
    }

    /// The answer, if this peer still leads `term`: what it rests on was sampled before (rule Q2: lease and term last).
    pub async fn judged(&self, term: Term, answer: region_response::Result) -> RegionResponse {
        let (to, judged) = oneshot::channel();
        self.judge(to, term, RegionResponse { result: Some(answer) });
        judged.await.unwrap_or_else(|_| refusal(timed_out("leadership could not be confirmed")))
    }

    /// The refusal of a peer that does not lead.
    pub fn refuse_not_leader(&self) -> RegionResponse {
        if let Some(refused) = self.unserved() {
            return refusal(refused);
        }
        let leader = self.handle.leader();
        refusal(braid_proto::pb::Refusal {
            reason: Some(braid_proto::pb::refusal::Reason::NotLeader(braid_proto::pb::NotLeader { leader })),
        })
    }

    /// Whether the peer is destroyed: its data is gone or about to go.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// What everybody is told who finds the peer destroyed: where its keys are, if it went into another region.
    pub fn ended(&self) -> Refusal {
        let peers = self.peers.upgrade();
        peers.map_or_else(not_found, |peers| self.shared.ended.refusal(&peers, self.id()))
    }

    /// What everybody is told, if this peer serves nothing at all.
    pub fn unserved(&self) -> Option<Refusal> {
        match self.is_gone() {
            true => Some(self.ended()),
            false => self.is_frozen().then(|| self.not_leader()),
        }
    }

    /// Whether the region is frozen here.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Returns when the region is not frozen here (any more), or the peer destroyed.
    pub async fn settled(&self) {
        let thawed = self.thawed_now.notified();
        if self.is_frozen() {
            tokio::select! {
                () = thawed => {}
                () = self.destroyed() => {}
            }
        }
    }

    /// The term in which this peer sees through what has frozen its region; `None`: it does not.
    pub fn frozen_term(&self) -> Option<Term> {
        self.pipeline.lock().frozen_term()
    }

    /// The peer of another region on the same store.
    pub fn neighbour(&self, region: RegionId) -> Option<Arc<RegionPeer>> {
        self.peers.upgrade()?.get(&region).map(|peer| Arc::clone(&peer))
    }

    /// Whether nobody else sees the merge through; then the caller does, until it says so ([`Self::undriven`]).
    pub fn take_wheel(&self) -> bool {
        self.frozen_term().is_some() && !self.driven.swap(true, Ordering::SeqCst)
    }

    /// The caller does not see the merge through any more.
    pub fn leave_wheel(&self) {
        self.driven.store(false, Ordering::SeqCst);
    }

    fn see_through(&self) {
        if self.take_wheel() {
            self.shared.runtime.spawn(merge::drive(self.me.clone()));
        }
    }

    /// Returns when the peer is destroyed.
    pub async fn destroyed(&self) {
        let told = self.gone_now.notified();
        if !self.is_gone() {
            told.await;
        }
    }

    /// Ends it: whoever waits is answered as by a store that does not have the region, and nothing is served any more. A
    /// peer of the region that comes later is another one.
    fn end(&self) {
        if self.gone.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(peers) = self.peers.upgrade() {
            peers.remove_if(&self.id(), |_, peer| std::ptr::eq(Arc::as_ptr(peer), self));
        }
        let ended = self.ended();
        self.with(|pipeline, effects| pipeline.on_destroyed(ended.clone(), effects));
        if let Some(tell) = self.drained.lock().take() {
            _ = tell.send(false);
        }
        self.gone_now.notify_waiters();
        self.load.lead(false, self.shared.now());
        self.has_news();
        self.data.trim();
        // Who adds a follow looks afterwards whether this peer still leads, so none is left behind.
        self.live.leave(Term(u64::MAX), &ended);
    }

    /// Whether its data could not be read.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Marks the peer as damaged: it refuses everything from now on, loudly.
    pub fn poison(&self, why: &str) {
        if !self.damaged.swap(true, Ordering::AcqRel) {
            metrics::counter!("braid_damaged_regions_total").increment(1);
            self.stir();
            tracing::error!(region = %self.id(), why, "data of a region cannot be read; the peer refuses all requests. \
                Remove this store's data folder and let it rejoin as a new store.");
        }
    }
}

impl RegionPeer {
    /// What a term begins with. On the apply thread: nothing is applied meanwhile.
    fn rows(&self) -> (Vec<StoredLock>, Vec<(i64, StoredLease)>) {
        let leases = self.data.leases().unwrap_or_else(|damage| {
            self.poison(&damage.0);
            Vec::new()
        });
        (self.data.locks(), leases)
    }
}

impl Drop for RegionPeer {
    fn drop(&mut self) {
        self.shared.busy.leases.fetch_sub(*self.counted_leases.get_mut(), Ordering::Relaxed);
    }
}

impl Shared {
    /// Milliseconds since the process began.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl RegionMachine for RegionPeer {
    fn apply(&self, entries: &[Entry], batch: WriteBatch) {
        if self.load.wrote(entries.iter().map(|entry| entry.data.len()).sum()) {
            self.has_news();
        }
        let mut txns = Vec::with_capacity(entries.len());
        let mut locks = Vec::new();
        let mut leases = Vec::new();
        for entry in entries {
            let decoded = RegionEntry::decode(entry.data.clone()).unwrap_or_else(|e| {
                panic!("{} index {}: a committed entry does not decode: {e}", self.id(), entry.index)
            });
            // Evaluated in another term, on a state that may not be this log's (rule O1).
            if decoded.term != entry.term.0 {
                continue;
            }
            txns.extend(decoded.txns);
            locks.extend(decoded.locks);
            leases.extend(decoded.leases);
        }
        // Going on without these changes would leave this replica different from the others for ever: the host ends the
        // process, and the start after it replays the entries.
        let told = {
            // Held: what a follow reads from disk, and what it is told from then on, meet exactly.
            let mut live = self.live.lock();
            let superseded = match self.data.apply_keeping(&txns, &locks, &leases, batch, &|key| live.wants_before(key))
            {
                Ok(superseded) => superseded,
                Err(damage) => {
                    panic!("{}: entries up to index {} cannot be applied: {damage}", self.id(), newest(entries))
                }
            };
            live.publish(&self.data, &txns, &superseded)
        };
        if let Err(damage) = told {
            self.poison(&damage.0);
            self.live.leave(Term(u64::MAX), &not_found());
        }
    }

    fn on_leader(&self, term: Term) {
        let (locks, leases) = self.rows();
        let leads = self.with(|pipeline, effects| {
            pipeline.on_leader(term, locks, leases, effects);
            pipeline.leading() == Some(term)
        });
        if leads {
            self.load.lead(true, self.shared.now());
        }
        self.has_news();
        self.see_through();
    }

    fn on_follower(&self, term: Term, leader: Option<Peer>) {
        let leads = self.with(|pipeline, effects| {
            pipeline.on_follower(term, leader, effects);
            pipeline.leading().is_some()
        });
        if !leads {
            self.load.lead(false, self.shared.now());
        }
        self.has_news();
        if let Some(tell) = self.drained.lock().take() {
            _ = tell.send(false);
        }
        if self.live.any() {
            // The list of follows is locked while a batch is written, for which raft must not wait.
            let (me, refusal) = (self.me.clone(), self.not_leader());
            self.shared.runtime.spawn(async move {
                if let Some(region) = me.upgrade() {
                    region.live.leave(term, &refusal);
                }
            });
        }
    }

    fn on_lease(&self) {
        self.stir();
    }

    fn on_region(&self, region: &Region) {
        if !self.data.covers(&region.range()) {
            // A merge: `on_merged` follows, with what comes with the keys. Until then nobody may find them here.
            return;
        }
        self.data.on_region(region);
        self.has_news();
        let recut = self.with(|pipeline, effects| {
            let before = pipeline.region().region_epoch();
            pipeline.on_region(region.clone(), effects);
            !epoch::serves(region, before)
        });
        // Other peers are no reason to follow anew.
        if recut && self.live.any() {
            self.live.leave(Term(u64::MAX), &self.epoch_mismatch());
        }
    }

    fn on_frozen(&self, frozen: Option<&Frozen>) {
        if frozen.is_none() {
            if !self.is_frozen() {
                return;
            }
            let (locks, leases) = self.rows();
            let leads = self.with(|pipeline, effects| {
                pipeline.thaw(locks, leases, effects);
                pipeline.leading().is_some()
            });
            self.frozen.store(false, Ordering::SeqCst);
            self.load.lead(leads, self.shared.now());
            self.thawed_now.notify_waiters();
            return self.has_news();
        }
        self.frozen.store(true, Ordering::SeqCst);
        self.with(Pipeline::freeze);
        if let Some(tell) = self.drained.lock().take() {
            _ = tell.send(false);
        }
        self.load.lead(false, self.shared.now());
        self.has_news();
        // Who adds a follow looks afterwards whether this peer still leads.
        self.live.leave(Term(u64::MAX), &self.not_leader());
        self.see_through();
    }

    fn on_merged(&self, source: &Region, merged: &Region) {
        let other = self.neighbour(source.region_id());
        let absorbed = self.data.absorb(merged, other.as_ref().map(|other| other.data()));
        let leases = absorbed.and_then(|()| self.data.leases_in(&source.range())).unwrap_or_else(|damage| {
            self.poison(&damage.0);
            Vec::new()
        });
        self.shared.ended.insert(source.region_id(), merged.clone());
        self.with(|pipeline, effects| pipeline.absorb(merged.clone(), leases, effects));
        self.stir();
        self.has_news();
        if self.live.any() {
            self.live.leave(Term(u64::MAX), &self.epoch_mismatch());
        }
    }

    fn approximate_size(&self) -> (u64, u64) {
        self.data.approximate_size()
    }

    fn on_destroyed(&self) {
        self.end();
    }
}

/// The peer that `child` was split off just before: it has given up the child's keys. Looked for among all, so only by who
/// is such a child.
fn parent_of(peers: &Peers, child: &Region) -> Option<Arc<RegionPeer>> {
    let is_parent = |other: &Region| {
        !child.start.is_empty() && other.end == child.start && epoch::serves(other, child.region_epoch())
    };
    let found = peers.iter().find(|peer| is_parent(&peer.handle().region()));
    found.map(|peer| Arc::clone(&peer))
}

/// Counts revisions that no write has because leadership was lost with them in hand (rule R3).
fn count_holes(holes: u64) {
    if holes > 0 {
        metrics::counter!("braid_revision_holes_total", "cause" => "leadership_lost").increment(holes);
    }
}

fn newest(entries: &[Entry]) -> u64 {
    entries.last().map_or(0, |entry| entry.index)
}

/// A response that is a refusal.
pub fn refusal(refusal: braid_proto::pb::Refusal) -> RegionResponse {
    RegionResponse { result: Some(region_response::Result::Refusal(refusal)) }
}

/// Answers with one of etcd's errors.
pub fn answer(reply: Reply, error: error::EtcdStatus) {
    _ = reply.send(etcd_error(error));
}

/// A response that is one of etcd's errors.
pub fn etcd_error(error: error::EtcdStatus) -> RegionResponse {
    RegionResponse { result: Some(region_response::Result::Error(error.into())) }
}
