//! The write path of one led region, as a value: requests, numbers and outcomes in, effects out.
//!
//! ```text
//!  events                                         effects
//!  submit(request) ──► queue ─ evaluate ─► ready                 Number: ask the sequencer for a block
//!                                            │ pump
//!                                          batch ───────────►   (one outstanding)
//!  numbered(block) ────────────────────────► │                  Propose: one raft entry per batch
//!                                          entries ─────────►   Judge: an answer that needs a lease check
//!  entry_ended(outcome) ───────────────────► │                  Reply: an answer that needs none
//!                                            ▼                  Wake: readers whose writes are applied
//!                                         overlay pruned        Drained: a barrier's work may begin
//! ```
//!
//! 1. A request is evaluated on the applied state under the overlay of this leader's in-flight writes. If its result
//!    depends on a number that has not arrived (rule O5), it waits at the head of the queue and everything behind it too:
//!    evaluation order, number order and log order are one order (rule N1).
//! 2. What mutates enters the overlay under a sequence number `seq` and takes a number; what does not takes a bound in
//!    the same ordered request.
//! 3. Numbers fill the placeholders in results and changes, and the batch's changes become one raft entry.
//! 4. When the entry is applied its requests are answered and its overlay entries go.
//!
//! What transactions over several regions ask of a region goes through the same queue (`multi`): their locks stand in
//! front of evaluations (`locks`), and whoever meets one is parked until it goes (rule M2). Such items take no number
//! here, but for a decision; where nothing that takes one lies before them they are proposed at once.
//!
//! Leases go the same way (`lease_work`): the records of those that lie here are kept in a table (`leases`), and a put with
//! one of which nothing is known waits until the region of its record has been asked.
//!
//! Everything belongs to one term (rule O1): losing it answers what certainly did not happen with a refusal, and leaves
//! proposed entries to their outcome. Deliberately absent: clocks (the shell says what time it is, the sequencer's client has
//! the deadline), the leader's own lease (the shell checks it, last), retries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use braid_proto::id::Term;
use braid_proto::key::KeyRange;
use braid_proto::pb::{
    self, LeaseRow, LockRow, LockToken, Peer, Refusal, Region, RegionEntry, RegionResponse, StoredLease, StoredLock,
    TxnEffect, refusal, region_response,
};
use prost::Message;

use crate::epoch;
use crate::eval::{self, Context, Evaluated, Leases, WaitFor};
use crate::overlay::Overlay;
use crate::view::{BaseView, Damaged, View};

mod lease_work;
mod leases;
mod locks;
mod merging;
mod multi;
mod numbers;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
mod words;

use lease_work::Waiting;
pub use lease_work::{LEASE_KEYS_AT_ONCE, LeaseState, LeaseWork, Registered};
pub use leases::{CHECKPOINT_MS, EXPIRING_MAX, EXTENSION_MS, Keep, LeaseTable};
pub use locks::{ASK_TICKS, LOCKS_MAX, SILENT_TICKS_MAX};
use locks::{Denied, LockTable};
pub use merging::Reign;
pub use multi::{Blocker, Outcome};
use numbers::Numbers;
pub use words::{BatchId, Block, Effect, EntryEnd, EntryId, Woken, Work, busy, not_found, timed_out, unknown};
use words::{error, judge, refuse, reply};

/// Raft entries of one region that may be on their way at once. Work that arrives meanwhile joins the next entry, so
/// entries grow with load; more in flight lowers latency on slow disks and raises the cost of each write.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 2;
/// Requests that wait for evaluation in one region; beyond it the region answers busy.
pub const QUEUE_MAX: usize = 16_384;
/// Bytes of evaluated changes that are not applied yet; beyond it requests wait in the queue.
pub const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Requests and bytes of changes that one entry takes.
pub const BATCH_ITEMS_MAX: usize = 4_096;
/// See [`BATCH_ITEMS_MAX`].
pub const BATCH_BYTES_MAX: usize = 4 << 20;

struct Queued<R> {
    /// Nobody, for the region's own.
    to: Option<R>,
    work: Work,
    epoch: pb::RegionEpoch,
    span_ok: bool,
    /// Leases that did not exist when they were asked for on its behalf.
    missing: Vec<i64>,
}

/// Which revision an item has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbering {
    /// The counter before it: it changes nothing.
    Bound,
    /// The next one.
    Own,
    /// It changes keys at a revision that was given elsewhere.
    Known(i64),
    /// It changes no key, and its answer says the counter before it.
    Beside,
    /// It changes no key.
    None,
}

struct Item<R> {
    to: Option<R>,
    response: region_response::Result,
    numbering: Numbering,
    /// Changes and their sub-revisions (empty: in order); the overlay seq, 0 for what takes a bound.
    changes: Vec<pb::Change>,
    subs: Vec<u32>,
    seq: u64,
    /// Rows of locks that it writes. Its own decision's row lacks the revision until that is known.
    locks: Vec<LockRow>,
    /// Records of leases that it writes.
    leases: Vec<LeaseRow>,
    rests_on: Option<u64>,
    bytes: usize,
    /// Overlay entries above this seq may be named by its placeholders.
    floor: u64,
}

struct Batch<R> {
    id: BatchId,
    items: Vec<Item<R>>,
    /// Newest revision heard of before its numbers were asked for.
    heard: i64,
}

struct EntryInFlight<R> {
    id: EntryId,
    term: Term,
    /// Newest seq in it.
    seq: u64,
    /// Lowest revision in it, if it changes keys.
    lowest: Option<i64>,
    /// How many of its revisions were given to it.
    numbers: usize,
    bytes: usize,
    answers: Vec<(R, region_response::Result)>,
}

struct Held<R> {
    to: R,
    term: Term,
    answer: region_response::Result,
}

/// The write path of one region peer. See the module's picture.
pub struct Pipeline<R, W> {
    /// The shell has it too.
    region: Arc<Region>,
    leading: Option<Term>,
    leader: Option<Peer>,
    newest_term: Term,
    next_id: u64,
    /// Newest seq given out. Never goes back, also over terms.
    seq: u64,
    /// Newest seq whose entry is applied. `applied <= seq`.
    applied: u64,
    overlay: Overlay,
    numbers: Numbers,
    queue: VecDeque<Queued<R>>,
    /// Why the head of the queue is not evaluated; cleared by the event it waits for.
    blocked: Option<WaitFor>,
    bound_batch: Option<BatchId>,
    bound_is_fresh: bool,
    ready: VecDeque<Item<R>>,
    batch: Option<Batch<R>>,
    entries: VecDeque<EntryInFlight<R>>,
    held: BTreeMap<u64, Vec<Held<R>>>,
    readers: BTreeMap<u64, Vec<W>>,
    locks: LockTable,
    /// What waits for locks to go, in order of arrival.
    parked: VecDeque<Queued<R>>,
    /// Transactions that this leader has said to be over without ever having had their record: none may come any more.
    denied: Denied,
    /// Readers that wait for a lock to go.
    lock_readers: Vec<(LockToken, W)>,
    leases: LeaseTable,
    waiting: Waiting<R, W>,
    /// Milliseconds of the shell's clock.
    now: u64,
    in_flight_bytes: usize,
    compacted: i64,
    barrier: Option<Barrier>,
    /// Barriers that were begun; the newest is the one that stands.
    barriers: u64,
    /// The region is frozen, and goes into another one unless it is thawed: nothing is served (`merging`).
    frozen: bool,
    /// The term that this peer leads in as far as raft is concerned, while the region is frozen.
    frozen_term: Option<Term>,
    /// Counts how often it has begun to evaluate.
    reigns: u64,
    /// The peer is destroyed, and this is what everybody is told: nothing is served any more.
    gone: Option<Refusal>,
}

/// What a barrier waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nothing is in flight: for a transfer (rule O7).
    Idle,
    /// And no key is locked: for a split (rule S3).
    Unlocked,
    /// And there are no records of transactions either: for a merge (rule S4).
    Empty,
}

/// Names a barrier: whoever began it, and nobody else, ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierId(u64);

/// A stop of evaluation that somebody has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// No new locks, until those that stand are gone.
    Unlocking,
    /// No new locks, until those that there are, and all records, are gone.
    Emptying,
    /// No evaluation.
    Draining,
    /// Nothing is in flight, and who asked has been told.
    Drained,
}

impl<R, W> Pipeline<R, W> {
    /// The pipeline of a peer that does not lead.
    pub fn new(region: impl Into<Arc<Region>>) -> Self {
        Self {
            region: region.into(),
            leading: None,
            leader: None,
            newest_term: Term::default(),
            next_id: 0,
            seq: 0,
            applied: 0,
            overlay: Overlay::default(),
            numbers: Numbers::default(),
            queue: VecDeque::new(),
            blocked: None,
            bound_batch: None,
            bound_is_fresh: false,
            ready: VecDeque::new(),
            batch: None,
            entries: VecDeque::new(),
            held: BTreeMap::new(),
            readers: BTreeMap::new(),
            locks: LockTable::default(),
            parked: VecDeque::new(),
            denied: Denied::default(),
            lock_readers: Vec::new(),
            leases: LeaseTable::default(),
            waiting: Waiting::default(),
            now: 0,
            in_flight_bytes: 0,
            compacted: 0,
            barrier: None,
            barriers: 0,
            frozen: false,
            frozen_term: None,
            reigns: 0,
            gone: None,
        }
    }

    /// The region as last applied here.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The term this peer leads and may evaluate in (rule O2).
    pub fn leading(&self) -> Option<Term> {
        self.leading
    }

    /// The leader as last heard of; `None` while there is none, or it is this peer.
    pub fn leader(&self) -> Option<&Peer> {
        self.leader.as_ref()
    }

    /// Newest compacted revision that an answer of the sequencer carried; 0 if there is none.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Requests and readers that wait here, and entries in flight: what a report shows.
    pub fn depth(&self) -> (usize, usize) {
        let batch = self.batch.as_ref().map_or(0, |batch| batch.items.len());
        let waiting = self.parked.len() + self.waiting.queued();
        (self.queue.len() + waiting + self.ready.len() + batch, self.entries.len())
    }

    /// It is `now`, in milliseconds of a clock that never goes back. To be said before every event.
    pub fn at(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// This peer leads `term` and has applied the term's first entry. `locks`, `leases`: the rows that are applied now
    /// (rule O2).
    pub fn on_leader(
        &mut self,
        term: Term,
        locks: Vec<StoredLock>,
        leases: Vec<(i64, StoredLease)>,
        effects: &mut Vec<Effect<R, W>>,
    ) {
        if term < self.newest_term || self.gone.is_some() {
            return;
        }
        self.newest_term = term;
        self.leader = None;
        if self.frozen {
            self.frozen_term = Some(term);
            return;
        }
        self.leading = Some(term);
        self.reigns += 1;
        self.locks = LockTable::load(locks);
        self.leases = LeaseTable::load(leases, self.now);
        self.carry_all(effects);
        self.revoke_all(effects);
    }

    /// This peer does not lead (any more), as of `term`. What was not proposed is refused, it certainly did not happen;
    /// proposed entries wait for their outcome.
    pub fn on_follower(&mut self, term: Term, leader: Option<Peer>, effects: &mut Vec<Effect<R, W>>) {
        if term < self.newest_term || self.gone.is_some() {
            return;
        }
        self.newest_term = term;
        self.leader = leader;
        self.leading.take_if(|led| *led <= term);
        self.frozen_term.take_if(|led| *led <= term);
        if self.leading.is_none() {
            self.abandon(effects);
        }
    }

    /// The peer is destroyed: what was not proposed is refused by `refusal`, and everything that comes. What was proposed
    /// waits for its outcome.
    pub fn on_destroyed(&mut self, refusal: Refusal, effects: &mut Vec<Effect<R, W>>) {
        self.gone = Some(refusal);
        self.leading = None;
        self.frozen_term = None;
        self.leader = None;
        self.abandon(effects);
    }

    /// Takes work. `span_ok`: everything it touches lies in the region that `epoch` names.
    pub fn submit(
        &mut self,
        to: R,
        work: Work,
        epoch: pb::RegionEpoch,
        span_ok: bool,
        effects: &mut Vec<Effect<R, W>>,
    ) {
        if self.leading.is_none() {
            return self.refuse_work(to, &work, effects);
        }
        if self.queue.len() + self.parked.len() + self.waiting.queued() >= QUEUE_MAX {
            return effects.push(refuse(to, busy("the region's queue is full")));
        }
        self.queue.push_back(Queued { to: Some(to), work, epoch, span_ok, missing: Vec::new() });
    }

    /// Evaluates what can be evaluated and starts numbering if it may. Call after every event.
    /// `heard`: newest revision this process has heard of.
    ///
    /// # Errors
    /// The data under `base` cannot be read; the request that met it is answered with etcd's corruption error.
    pub fn pump(&mut self, base: &dyn BaseView, heard: i64, effects: &mut Vec<Effect<R, W>>) -> Result<(), Damaged> {
        let read = self.evaluate_queue(base, heard, effects);
        self.start_batch(heard, effects);
        self.advance_barrier(effects);
        read
    }

    /// The sequencer answered numbering request `batch`. False: its numbers go unused, because leadership was lost with
    /// them in hand; they are holes, never given to anything else (rules R3, N6).
    #[must_use = "unused numbers are holes, which are counted"]
    pub fn numbered(&mut self, batch: BatchId, block: Block, effects: &mut Vec<Effect<R, W>>) -> bool {
        self.compacted = self.compacted.max(block.compacted);
        if self.bound_batch == Some(batch) {
            self.bound_batch = None;
            self.bound_is_fresh = true;
            self.blocked = None;
            return true;
        }
        if self.batch.as_ref().is_none_or(|waiting| waiting.id != batch) {
            return false;
        }
        let (Some(batch), Some(term)) = (self.batch.take(), self.leading) else { return false };
        self.number(batch, block, term, effects);
        if matches!(self.blocked, Some(WaitFor::Number(seq)) if self.numbers.knows(seq)) {
            self.blocked = None;
        }
        true
    }

    /// The sequencer gave no answer in time: the batch, and what was evaluated after it, certainly did not happen.
    pub fn not_numbered(&mut self, batch: BatchId, why: &str, effects: &mut Vec<Effect<R, W>>) {
        if self.bound_batch == Some(batch) {
            self.bound_batch = None;
            self.blocked = None;
            if let Some(head) = self.queue.pop_front() {
                effects.extend(head.to.map(|to| refuse(to, timed_out(why))));
            }
            return;
        }
        if self.batch.as_ref().is_none_or(|waiting| waiting.id != batch) {
            return;
        }
        let items = self.batch.take().map(|batch| batch.items).unwrap_or_default();
        let first = items.iter().chain(&self.ready).map(|item| item.seq).filter(|seq| *seq > 0).min();
        for item in items.into_iter().chain(std::mem::take(&mut self.ready)) {
            self.in_flight_bytes -= item.bytes;
            effects.extend(item.to.map(|to| refuse(to, timed_out(why))));
        }
        if let Some(first) = first {
            self.overlay.truncate(first);
            self.locks.truncate(first);
            self.truncate_leases(first, effects);
            self.wake_from(first, effects);
            self.schedule_steps();
        }
        if matches!(self.blocked, Some(WaitFor::Number(_) | WaitFor::Applied(_))) {
            self.blocked = None;
        }
    }

    /// A proposed entry ended. Returns how many numbers certainly belong to nothing now: holes.
    #[must_use = "holes are counted"]
    pub fn entry_ended(&mut self, entry: EntryId, end: EntryEnd, effects: &mut Vec<Effect<R, W>>) -> usize {
        let Some(position) = self.entries.iter().position(|e| e.id == entry) else { return 0 };
        let Some(ended) = self.entries.remove(position) else { return 0 };
        self.in_flight_bytes -= ended.bytes;
        let holes = if end == EntryEnd::Dropped { ended.numbers } else { 0 };
        for (to, answer) in ended.answers {
            effects.push(match end {
                EntryEnd::Applied => Effect::Reply { to, answer: RegionResponse { result: Some(answer) } },
                EntryEnd::Dropped => refuse(to, self.not_leader()),
                EntryEnd::Unknown => refuse(to, unknown("the replica that proposed it cannot learn its outcome")),
            });
        }
        match end {
            EntryEnd::Applied => self.applied_up_to(ended.seq, effects),
            // Later work of the same term rests on a write that never happens: the term is over for this pipeline (O3).
            EntryEnd::Dropped | EntryEnd::Unknown if self.leading == Some(ended.term) => {
                self.leading = None;
                self.abandon(effects);
            }
            EntryEnd::Dropped | EntryEnd::Unknown => {}
        }
        holes
    }

    /// The applied region changed. Other peers alone change nothing here: what waits goes on ([`epoch`]).
    pub fn on_region(&mut self, region: impl Into<Arc<Region>>, effects: &mut Vec<Effect<R, W>>) {
        let region = region.into();
        if region.range() == self.region.range() && epoch::serves(&region, self.region.region_epoch()) {
            self.region = region;
            return;
        }
        self.locks.cut(&region.range());
        self.region = region;
        self.cut_leases(effects);
        self.unpark();
    }

    /// Stops evaluation until [`Self::end_barrier`]; [`Effect::Drained`] follows once nothing is in flight (rule S1).
    /// What `until` waits for beside that, it waits for before: until then everything but new locks goes on. `None`: another
    /// barrier stands, or this peer does not lead.
    pub fn begin_barrier(&mut self, until: Until) -> Option<BarrierId> {
        if self.barrier.is_some() || self.leading.is_none() {
            return None;
        }
        self.barrier = Some(match until {
            Until::Idle => Barrier::Draining,
            Until::Unlocked => Barrier::Unlocking,
            Until::Empty => Barrier::Emptying,
        });
        self.barriers += 1;
        Some(BarrierId(self.barriers))
    }

    /// Ends the barrier, if it stands still: it falls with the term, and when the region is frozen.
    pub fn end_barrier(&mut self, id: BarrierId) {
        if id.0 == self.barriers && self.barrier.take().is_some() {
            self.unpark();
        }
    }

    /// A read at `revision` over `range`: the newest in-flight write it must wait for, if there is one (rule Q2).
    pub fn in_flight(&self, range: &KeyRange, revision: i64) -> Option<u64> {
        self.overlay.touches_at(range, revision).filter(|seq| *seq > self.applied)
    }

    /// Wakes `reader` once the write `seq` is applied.
    pub fn wait_applied(&mut self, seq: u64, reader: W, effects: &mut Vec<Effect<R, W>>) {
        if seq <= self.applied {
            return effects.push(Effect::Wake { reader, woken: Woken::Applied });
        }
        self.readers.entry(seq).or_default().push(reader);
    }

    /// Refusal for a request that names another epoch than the region's.
    pub fn epoch_mismatch(&self) -> Refusal {
        if let Some(refusal) = self.unserved() {
            return refusal;
        }
        let current = vec![(*self.region).clone()];
        Refusal { reason: Some(refusal::Reason::EpochMismatch(pb::EpochMismatch { current })) }
    }

    /// Refusal that names the leader, if one is known; of a peer that is destroyed, or whose region is frozen, just that.
    pub fn not_leader(&self) -> Refusal {
        if let Some(refusal) = self.unserved() {
            return refusal;
        }
        Refusal { reason: Some(refusal::Reason::NotLeader(pb::NotLeader { leader: self.leader })) }
    }

    fn evaluate_queue(
        &mut self,
        base: &dyn BaseView,
        heard: i64,
        effects: &mut Vec<Effect<R, W>>,
    ) -> Result<(), Damaged> {
        while !self.is_stopped()
            && self.leading.is_some()
            && self.blocked.is_none()
            && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
        {
            let Some(head) = self.queue.pop_front() else { break };
            if head.to.is_some() && !(head.span_ok && epoch::serves(&self.region, head.epoch)) {
                effects.extend(head.to.map(|to| refuse(to, self.epoch_mismatch())));
                continue;
            }
            let request = match &head.work {
                Work::Evaluate(request) => request,
                Work::Lease { .. } => {
                    self.evaluate_lease(head, base, heard, effects)?;
                    continue;
                }
                _ => {
                    self.evaluate_multi(head, base, heard, effects)?;
                    continue;
                }
            };
            if !self.locks.is_empty() && self.locks.hinder(&request.accesses()) {
                self.parked.push_back(head);
                continue;
            }
            let leases = Leases { attached: Some(self.waiting.attached()), missing: &head.missing };
            let context = Context {
                leases,
                heard,
                heard_is_fresh: std::mem::take(&mut self.bound_is_fresh),
                compacted: self.compacted,
                ..Context::default()
            };
            let view = View { overlay: &self.overlay, base };
            match eval::evaluate(request, &view, &context) {
                Ok(evaluated) => self.evaluated(head, evaluated, heard, effects),
                Err(damaged) => {
                    effects.extend(head.to.map(|to| error(to, braid_proto::error::CORRUPT)));
                    return Err(damaged);
                }
            }
        }
        Ok(())
    }

    /// Whether a barrier holds evaluation up.
    fn is_stopped(&self) -> bool {
        matches!(self.barrier, Some(Barrier::Draining | Barrier::Drained))
    }

    fn evaluated(&mut self, head: Queued<R>, evaluated: Evaluated, heard: i64, effects: &mut Vec<Effect<R, W>>) {
        match evaluated {
            Evaluated::Wait(WaitFor::Lease(lease)) => self.park_unattached(head, lease, effects),
            Evaluated::Wait(wait) => self.block(head, wait, effects),
            Evaluated::TooLarge => {
                let reason = Some(refusal::Reason::TooLarge(pb::TooLarge {}));
                effects.extend(head.to.map(|to| refuse(to, Refusal { reason })));
            }
            Evaluated::Fail { error, rests_on } => {
                self.push_bound(head.to, region_response::Result::Error(error), rests_on);
            }
            Evaluated::Read { response, rests_on } => self.push_bound(head.to, response, rests_on),
            Evaluated::Write { changes, response, rests_on } => {
                let seq = self.next_seq();
                self.overlay.push(seq, heard, &changes);
                let item = Item { numbering: Numbering::Own, changes, rests_on, ..self.item(head.to, response, seq) };
                self.push_item(item);
            }
        }
    }

    /// An item that takes a bound.
    fn push_bound(&mut self, to: Option<R>, response: region_response::Result, rests_on: Option<u64>) {
        let item = Item { numbering: Numbering::Bound, rests_on, ..self.item(to, response, 0) };
        self.push_item(item);
    }

    /// An item that changes nothing, takes no number and rests on nothing.
    fn item(&self, to: Option<R>, response: region_response::Result, seq: u64) -> Item<R> {
        Item {
            to,
            response,
            numbering: Numbering::None,
            changes: Vec::new(),
            subs: Vec::new(),
            seq,
            locks: Vec::new(),
            leases: Vec::new(),
            rests_on: None,
            bytes: 0,
            floor: self.applied,
        }
    }

    fn push_item(&mut self, mut item: Item<R>) {
        let bytes = |change: &pb::Change| change.key.len() + change.value.len() + change.superseded.len() + 64;
        let changes: usize = item.changes.iter().map(bytes).sum();
        let locks: usize = item.locks.iter().map(Message::encoded_len).sum();
        item.bytes = changes + locks + item.leases.iter().map(Message::encoded_len).sum::<usize>();
        self.in_flight_bytes += item.bytes;
        self.ready.push_back(item);
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn block(&mut self, head: Queued<R>, wait: WaitFor, effects: &mut Vec<Effect<R, W>>) {
        let satisfied = match wait {
            WaitFor::Number(seq) => self.numbers.knows(seq) || seq <= self.applied,
            WaitFor::Applied(seq) => seq <= self.applied,
            WaitFor::Bound => false,
            WaitFor::Lease(_) => unreachable!("it is parked, and holds nobody up"),
        };
        assert!(!satisfied, "evaluation waits for {wait:?}, which has already happened");
        if matches!(wait, WaitFor::Bound) {
            let batch = BatchId(self.id());
            self.bound_batch = Some(batch);
            effects.push(Effect::Number { batch, count: 0 });
        }
        self.blocked = Some(wait);
        self.queue.push_front(head);
    }

    fn start_batch(&mut self, heard: i64, effects: &mut Vec<Effect<R, W>>) {
        while self.batch.is_none() && !self.ready.is_empty() && self.entries.len() < ENTRIES_IN_FLIGHT_MAX {
            let Some(term) = self.leading else { return };
            let numberless = |item: &Item<R>| matches!(item.numbering, Numbering::Known(_) | Numbering::None);
            // What needs no number waits for none, unless it comes after something that does.
            let at_once = self.ready.front().is_some_and(numberless);
            let mut items = Vec::with_capacity(self.ready.len().min(BATCH_ITEMS_MAX));
            let mut bytes = 0;
            while let Some(item) = self.ready.front() {
                let full = !items.is_empty() && bytes + item.bytes > BATCH_BYTES_MAX;
                if full || items.len() >= BATCH_ITEMS_MAX || (at_once && !numberless(item)) {
                    break;
                }
                bytes += item.bytes;
                items.extend(self.ready.pop_front());
            }
            let id = BatchId(self.id());
            let batch = Batch { id, items, heard };
            if at_once {
                self.number(batch, Block { base: 0, compacted: 0 }, term, effects);
                continue;
            }
            let count = batch.items.iter().filter(|item| item.numbering == Numbering::Own).count() as u32;
            self.batch = Some(batch);
            effects.push(Effect::Number { batch: id, count });
        }
    }

    /// Gives each item of the batch its number or bound, in order, and proposes the changes as one entry.
    fn number(&mut self, batch: Batch<R>, block: Block, term: Term, effects: &mut Vec<Effect<R, W>>) {
        let mut counter = block.base;
        let version = self.region.region_epoch().version;
        let mut entry = RegionEntry { term: term.0, version, ..RegionEntry::default() };
        let mut in_flight = EntryInFlight {
            id: EntryId(self.id()),
            term,
            seq: 0,
            lowest: None,
            numbers: 0,
            bytes: 0,
            answers: Vec::with_capacity(batch.items.len()),
        };
        for mut item in batch.items {
            let (own, before) = match item.numbering {
                Numbering::Bound => {
                    eval::fill(&mut item.response, &|seq| self.numbers.of(seq), None, counter);
                    self.answer_bound(item, term, effects);
                    continue;
                }
                Numbering::Own => {
                    counter += 1;
                    in_flight.numbers += 1;
                    self.numbers.learn(item.seq, counter);
                    self.overlay.resolve(item.seq, counter);
                    (Some(counter), counter - 1)
                }
                Numbering::Known(revision) => (Some(revision), revision - 1),
                Numbering::Beside | Numbering::None => (None, counter),
            };
            let lookup = |seq| self.numbers.of(seq);
            eval::fill(&mut item.response, &lookup, own, before);
            if let Some(revision) = own {
                eval::fill_changes(&mut item.changes, &lookup, revision);
                for row in item.locks.iter_mut().filter_map(|row| row.lock.as_mut()) {
                    multi::fill_row(row, &lookup, revision);
                }
            }
            self.numbers.forget(item.floor);
            if let Some(revision) = own.filter(|_| !item.changes.is_empty()) {
                in_flight.lowest = Some(in_flight.lowest.map_or(revision, |lowest: i64| lowest.min(revision)));
                entry.txns.push(TxnEffect { revision, changes: item.changes, subs: item.subs });
            }
            self.locks_numbered(item.seq, &item.locks);
            entry.locks.extend(item.locks);
            entry.leases.extend(item.leases);
            in_flight.seq = item.seq;
            in_flight.bytes += item.bytes;
            in_flight.answers.extend(item.to.map(|to| (to, item.response)));
        }
        if in_flight.seq > 0 {
            effects.push(Effect::Propose { entry: in_flight.id, term, data: entry.encode_to_vec().into() });
            self.entries.push_back(in_flight);
        }
    }

    /// What took a bound is answered once the in-flight writes it saw are applied (rule O4).
    fn answer_bound(&mut self, item: Item<R>, term: Term, effects: &mut Vec<Effect<R, W>>) {
        match item.rests_on.filter(|seq| *seq > self.applied) {
            Some(seq) => {
                let held = item.to.map(|to| Held { to, term, answer: item.response });
                self.held.entry(seq).or_default().extend(held);
            }
            None => effects.extend(item.to.map(|to| judge(to, term, item.response))),
        }
    }

    fn applied_up_to(&mut self, seq: u64, effects: &mut Vec<Effect<R, W>>) {
        self.applied = self.applied.max(seq);
        self.overlay.prune(seq);
        self.locks_applied(seq, effects);
        self.leases_applied(seq, effects);
        while let Some(held) = self.held.first_entry().filter(|held| *held.key() <= seq) {
            effects.extend(held.remove().into_iter().map(|held| judge(held.to, held.term, held.answer)));
        }
        while let Some(readers) = self.readers.first_entry().filter(|readers| *readers.key() <= seq) {
            effects.extend(readers.remove().into_iter().map(|reader| Effect::Wake { reader, woken: Woken::Applied }));
        }
        let waited = match self.blocked {
            Some(WaitFor::Applied(wanted) | WaitFor::Number(wanted)) => wanted <= self.applied,
            _ => false,
        };
        if waited {
            self.blocked = None;
        }
    }

    /// Refuses all that was not proposed and forgets what belonged to the term (rule O1).
    fn abandon(&mut self, effects: &mut Vec<Effect<R, W>>) {
        let refusal = self.not_leader();
        let batch = self.batch.take().map(|batch| batch.items).unwrap_or_default();
        for item in batch.into_iter().chain(std::mem::take(&mut self.ready)) {
            self.in_flight_bytes -= item.bytes;
            effects.extend(item.to.map(|to| refuse(to, refusal.clone())));
        }
        for queued in std::mem::take(&mut self.parked).into_iter().chain(std::mem::take(&mut self.queue)) {
            effects.extend(queued.to.map(|to| refuse(to, refusal.clone())));
        }
        let (waiting, revokers, waiters) = self.waiting.abandon();
        effects.extend(waiting.into_iter().filter_map(|queued| queued.to).map(|to| refuse(to, refusal.clone())));
        effects.extend(revokers.into_iter().map(|to| refuse(to, unknown("the lease is going to be gone"))));
        effects.extend(waiters.into_iter().map(|reader| Effect::Wake { reader, woken: Woken::Lost }));
        for held in std::mem::take(&mut self.held).into_values().flatten() {
            effects.push(refuse(held.to, refusal.clone()));
        }
        for reader in std::mem::take(&mut self.readers).into_values().flatten() {
            effects.push(Effect::Wake { reader, woken: Woken::Lost });
        }
        for (_, reader) in std::mem::take(&mut self.lock_readers) {
            effects.push(Effect::Wake { reader, woken: Woken::Lost });
        }
        self.locks = LockTable::default();
        self.leases = LeaseTable::default();
        self.denied = Denied::default();
        self.overlay = Overlay::default();
        self.numbers = Numbers::default();
        self.applied = self.seq;
        self.blocked = None;
        self.bound_batch = None;
        self.bound_is_fresh = false;
        self.barrier = None;
    }

    /// Readers of writes that were taken back look again: what they waited for never happens.
    fn wake_from(&mut self, first: u64, effects: &mut Vec<Effect<R, W>>) {
        for reader in self.readers.split_off(&first).into_values().flatten() {
            effects.push(Effect::Wake { reader, woken: Woken::Again });
        }
    }

    fn advance_barrier(&mut self, effects: &mut Vec<Effect<R, W>>) {
        let clear = match self.barrier {
            Some(Barrier::Unlocking) => !self.locks.any_stands(),
            Some(Barrier::Emptying) => self.locks.is_empty(),
            _ => false,
        };
        if clear {
            self.barrier = Some(Barrier::Draining);
        }
        let idle = self.ready.is_empty() && self.batch.is_none() && self.entries.is_empty();
        if self.barrier == Some(Barrier::Draining) && idle {
            self.barrier = Some(Barrier::Drained);
            effects.push(Effect::Drained);
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
