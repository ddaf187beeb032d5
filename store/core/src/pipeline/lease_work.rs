//! What a region does for leases. How it fits together over regions is in `docs/decisions/0006-leases.md`.
//!
//! | Asked by | What | Here |
//! |---|---|---|
//! | proxy | grant | the record |
//! | proxy | keep, state | memory: [`Pipeline::keep_lease`], [`Pipeline::lease_state`] |
//! | proxy, itself | revoke, expire | one entry if all keys are here, else the mark that it is going |
//! | another region | register | its range in the record |
//! | itself | remove, rest | the record goes, or says how much time is left |
//! | coordinator | attach | asks the lease's region, for a lock that names the lease |
//! | the lease's region | attached keys, detach | names, or deletes, what has the lease here |

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use braid_proto::error;
use braid_proto::key::{KeyRange, lease_key};
use braid_proto::pb::{self, Refusal};
use braid_proto::pb::{
    AttachLeaseResponse, AttachedKeysResponse, Change, DetachLeaseResponse, GrantLeaseResponse, KeepLeaseResponse,
    RegisterLeaseResponse, RevokeLeaseResponse, StoredLease, refusal, region_response,
};
use bytes::Bytes;

use super::leases::{Became, Keep, LeaseTable, add_range, covers, left_ms, outside};
use super::{Effect, Item, Numbering, Pipeline, Queued, Woken, Work, busy, judge, refuse, reply, unknown};
use crate::pipeline::multi::WIPE_KEYS;
use crate::placeholder::{BEFORE, OWN};
use crate::view::{BaseView, Damaged, View};

/// Leases that a leader remembers as attached; beyond it all are forgotten, and asked for again.
const ATTACHED_MAX: usize = 1 << 18;
/// Keys of a lease that go in one entry. More take the way of transactions over several regions, whose locks hide them while
/// they go a few at a time: applying them at once would hold up what others write.
pub const LEASE_KEYS_AT_ONCE: usize = WIPE_KEYS;
/// Bytes of keys that one answer names.
const KEYS_BYTES_MAX: usize = 8 << 20;

/// Work on leases.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseWork {
    /// There shall be one.
    Grant {
        /// Its id.
        id: i64,
        /// Its seconds.
        ttl: i64,
    },
    /// A range may have keys with it.
    Register {
        /// Its id.
        id: i64,
        /// The range.
        range: KeyRange,
    },
    /// It shall go, with its keys. Answered when it has.
    Revoke(i64),
    /// The region's own: its time is over.
    Expire(i64),
    /// The region's own: its keys are gone, in whatever regions; the last went at this revision.
    Remove(i64, i64),
    /// The region's own: so many seconds are left, for the next leader; 0: all.
    Rest(i64, i64),
    /// Keys of this region shall be put with it.
    Attach(i64),
    /// The keys of this region that have it.
    Keys {
        /// Its id.
        id: i64,
        /// Nothing may be attached to it here any more.
        close: bool,
    },
    /// Closes it here and deletes the keys of this region that have it.
    Detach(i64),
}

/// What is known of a lease, for those who ask.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseState {
    /// Its record.
    pub row: StoredLease,
    /// Milliseconds left; negative when it is due.
    pub left_ms: i64,
}

/// What the leader of a lease's region has said about a lease that is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It exists, and the range that was named is in its record.
    Found,
    /// It does not exist.
    Missing,
    /// Nobody has answered.
    Unanswered,
}

/// A question about a lease under way, and who waits for it.
struct Question<R> {
    /// What its answer must name.
    name: u64,
    /// Were there when it was asked: a lease that is missing is missing for them.
    asked: Vec<Queued<R>>,
    /// Came later, and will ask again if it is missing.
    later: Vec<Queued<R>>,
    /// The lease was closed meanwhile: the answer does not count (H29).
    void: bool,
}

/// Who waits for leases, and the leases that need not be asked for. All of it belongs to one term. Every replica has one, and
/// nearly all are empty: the maps are of the kind that is small then.
pub(super) struct Waiting<R, W> {
    /// Registered for the whole of this region.
    attached: HashSet<i64>,
    questions: BTreeMap<i64, Question<R>>,
    /// Work that waits until a lease is gone.
    until_gone: BTreeMap<i64, Vec<Queued<R>>>,
    /// Who has revoked a lease whose keys are going.
    revokers: BTreeMap<i64, Vec<R>>,
    /// Others that wait until a lease is gone.
    waiters: BTreeMap<i64, Vec<W>>,
    /// Work that waits here.
    queued: usize,
}

impl<R, W> Default for Waiting<R, W> {
    fn default() -> Self {
        Self {
            attached: HashSet::new(),
            questions: BTreeMap::new(),
            until_gone: BTreeMap::new(),
            revokers: BTreeMap::new(),
            waiters: BTreeMap::new(),
            queued: 0,
        }
    }
}

impl<R, W> Waiting<R, W> {
    pub(super) fn attached(&self) -> &HashSet<i64> {
        &self.attached
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// From now on nothing is attached to `id` here without asking, whatever answer is on its way.
    fn close(&mut self, id: i64) {
        self.attached.remove(&id);
        if let Some(question) = self.questions.get_mut(&id) {
            question.void = true;
        }
    }

    /// The region is another one: what was registered was its former range.
    pub(super) fn close_all(&mut self) {
        self.attached.clear();
        self.questions.values_mut().for_each(|question| question.void = true);
    }

    /// Everything that waits, when the term is over.
    pub(super) fn abandon(&mut self) -> (Vec<Queued<R>>, Vec<R>, Vec<W>) {
        let Self { questions, until_gone, revokers, waiters, .. } = std::mem::take(self);
        let asked = questions.into_values().flat_map(|question| question.asked.into_iter().chain(question.later));
        let queued = asked.chain(until_gone.into_values().flatten()).collect();
        (queued, revokers.into_values().flatten().collect(), waiters.into_values().flatten().collect())
    }
}

/// Keys of a lease that lie here.
#[derive(Default)]
struct Found {
    changes: Vec<Change>,
    /// There are more than may go in one entry.
    too_large: bool,
}

impl<R, W> Pipeline<R, W> {
    // ------------------------------------------------------------ asked from outside

    /// The leases whose records lie here.
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// Keeps a lease alive. What is [`Keep::Alive`] is so only while this peer leads: check that last (rule L4).
    pub fn keep_lease(&mut self, id: i64) -> Keep {
        let kept = self.leases.keep(id, self.now);
        if kept == Keep::Wait {
            self.expire_due();
        }
        kept
    }

    /// What is known of a lease. `None`: there is none, or it is only being granted. Sound only while this peer leads.
    pub fn lease_state(&self, id: i64) -> Option<LeaseState> {
        let lease = self.leases.get(id).filter(|lease| !lease.new)?;
        Some(LeaseState { row: lease.row.clone(), left_ms: left_ms(lease.deadline, self.now) })
    }

    /// Whether what is asked about a lease has to wait until it is gone, or certainly stays.
    pub fn lease_is_ending(&self, id: i64) -> bool {
        match self.leases.get(id) {
            Some(lease) => lease.is_ending(),
            None => self.leases.rests_on(id).is_some(),
        }
    }

    /// Every lease that is granted: its id and the milliseconds it has left.
    pub fn list_leases(&self) -> Vec<(i64, i64)> {
        let granted = self.leases.iter().filter(|(_, lease)| !lease.new);
        granted.map(|(id, lease)| (id, left_ms(lease.deadline, self.now))).collect()
    }

    /// Wakes `waiter` once the lease is gone, or stays after all.
    pub fn wait_lease(&mut self, id: i64, waiter: W, effects: &mut Vec<Effect<R, W>>) {
        match self.lease_is_ending(id) || self.leases.get(id).is_some_and(|lease| lease.deadline <= self.now) {
            true => self.waiting.waiters.entry(id).or_default().push(waiter),
            false => effects.push(Effect::Wake { reader: waiter, woken: Woken::Again }),
        }
    }

    /// The leader of the lease's region has said what there is: answers the [`Effect::Register`] of that name.
    pub fn registered(&mut self, id: i64, name: u64, registered: Registered, effects: &mut Vec<Effect<R, W>>) {
        // An answer to a question of another term knows nothing of what was closed since.
        let Some(question) = self.waiting.questions.remove(&id) else { return };
        if question.name != name {
            self.waiting.questions.insert(id, question);
            return;
        }
        let Question { mut asked, later, void, .. } = question;
        self.waiting.queued -= asked.len() + later.len();
        match registered {
            Registered::Unanswered => {
                let why = "the region of a lease does not answer";
                for queued in asked.into_iter().chain(later) {
                    effects.extend(queued.to.map(|to| refuse(to, busy(why))));
                }
                return;
            }
            Registered::Found if !void => {
                if self.waiting.attached.len() >= ATTACHED_MAX {
                    self.waiting.attached.clear();
                }
                self.waiting.attached.insert(id);
            }
            Registered::Found => {}
            Registered::Missing => asked.iter_mut().for_each(|queued| queued.missing.push(id)),
        }
        self.put_first(asked.into_iter().chain(later).collect());
    }

    /// No key has the lease any more, in whatever regions; the last went at `revision`. Answers [`Effect::Revoke`].
    pub fn lease_keys_gone(&mut self, id: i64, revision: i64) {
        self.push_own(LeaseWork::Remove(id, revision).into());
    }

    // ------------------------------------------------------------ in the queue

    pub(super) fn evaluate_lease(
        &mut self,
        head: Queued<R>,
        base: &dyn BaseView,
        heard: i64,
        effects: &mut Vec<Effect<R, W>>,
    ) -> Result<(), Damaged> {
        let Work::Lease { work, .. } = &head.work else { unreachable!("evaluated by others") };
        match work.clone() {
            LeaseWork::Grant { id, ttl } => self.grant(head, id, ttl, effects),
            LeaseWork::Register { id, range } => self.register(head, id, &range, effects),
            LeaseWork::Revoke(id) if self.lease_is_ending(id) => self.park_until_gone(head, id),
            LeaseWork::Revoke(id) if self.leases.get(id).is_none() => {
                let missing = region_response::Result::Error(error::LEASE_NOT_FOUND.into());
                effects.extend(head.to.map(|to| judge(to, self.leading.unwrap_or_default(), missing)));
            }
            LeaseWork::Revoke(id) => self.revoke(head, id, base, heard)?,
            LeaseWork::Expire(id) if self.leases.get(id).is_some_and(|lease| lease.due && !lease.row.revoking) => {
                self.revoke(head, id, base, heard)?;
            }
            LeaseWork::Expire(_) => {}
            LeaseWork::Remove(id, revision) => {
                if self.leases.get(id).is_some_and(|lease| lease.row.revoking) {
                    self.write_lease(None, id, None, Became::Gone(Some(revision)), written());
                }
            }
            LeaseWork::Rest(id, remaining) => self.rest(head, id, remaining, effects),
            LeaseWork::Attach(id) => self.attach(head, id, effects),
            LeaseWork::Keys { id, close } => self.keys(head, id, close, base)?,
            LeaseWork::Detach(id) => self.detach(head, id, base, heard, effects)?,
        }
        Ok(())
    }

    fn grant(&mut self, head: Queued<R>, id: i64, ttl: i64, effects: &mut Vec<Effect<R, W>>) {
        if self.lease_is_ending(id) {
            return self.park_until_gone(head, id);
        }
        if self.leases.get(id).is_some() {
            let exists = region_response::Result::Error(error::LEASE_EXISTS.into());
            return self.answer_resting(head.to, exists, self.leases.rests_on(id), effects);
        }
        let mut row = StoredLease { ttl, ..StoredLease::default() };
        add_range(&mut row.ranges, &self.region.range());
        let seq = self.next_seq();
        let leases = vec![self.leases.set(seq, id, Some(row), Became::Granted)];
        let response = region_response::Result::GrantLease(GrantLeaseResponse { revision: BEFORE });
        let item = self.item(head.to, response, seq);
        self.push_item(Item { numbering: Numbering::Beside, leases, ..item });
    }

    fn register(&mut self, head: Queued<R>, id: i64, range: &KeyRange, effects: &mut Vec<Effect<R, W>>) {
        if self.lease_is_ending(id) {
            return self.park_until_gone(head, id);
        }
        let answer = |found| region_response::Result::RegisterLease(RegisterLeaseResponse { found });
        let Some(lease) = self.leases.get(id) else {
            return self.answer_resting(head.to, answer(false), None, effects);
        };
        if covers(&lease.row, range) {
            return self.answer_resting(head.to, answer(true), self.leases.rests_on(id), effects);
        }
        let mut row = lease.row.clone();
        add_range(&mut row.ranges, range);
        self.write_lease(head.to, id, Some(row), Became::Changed, answer(true));
    }

    /// Ends a lease that exists and is not ending yet.
    fn revoke(&mut self, head: Queued<R>, id: i64, base: &dyn BaseView, heard: i64) -> Result<(), Damaged> {
        let Some(lease) = self.leases.get(id) else { return Ok(()) };
        let (mut row, own) = (lease.row.clone(), self.region.range());
        let elsewhere = outside(&row.ranges, &own);
        let found = match row.ranges == elsewhere {
            true => Found::default(),
            false => self.find_attached(id, base)?,
        };
        // The mark waits for nobody; those who delete the keys do.
        let marked = !elsewhere.is_empty() || found.too_large;
        let Some(head) = (if marked { Some(head) } else { self.park_if_locked(head, id, &found) }) else {
            return Ok(());
        };
        self.waiting.close(id);
        if elsewhere.is_empty() && !found.too_large {
            let numbering = if found.changes.is_empty() { Numbering::Beside } else { Numbering::Own };
            let revision = if found.changes.is_empty() { BEFORE } else { OWN };
            let seq = self.next_seq();
            self.overlay_push(seq, heard, &found.changes);
            let leases = vec![self.leases.set(seq, id, None, Became::Gone(None))];
            let response = region_response::Result::RevokeLease(RevokeLeaseResponse { revision });
            let item = self.item(head.to, response, seq);
            self.push_item(Item { numbering, changes: found.changes, leases, ..item });
            return Ok(());
        }
        // Whoever leads from now on finds the mark, and goes on.
        row.revoking = true;
        // A transaction over several regions may still attach it here.
        if found.changes.is_empty() && !found.too_large && !self.locks.attaches(id) {
            row.ranges = elsewhere;
        }
        self.waiting.revokers.entry(id).or_default().extend(head.to);
        self.write_lease(None, id, Some(row), Became::Revoking, written());
        Ok(())
    }

    fn rest(&mut self, head: Queued<R>, id: i64, remaining: i64, effects: &mut Vec<Effect<R, W>>) {
        let lease = self.leases.get(id).filter(|lease| !lease.new && !lease.is_ending());
        let Some(lease) = lease.filter(|lease| lease.row.remaining != remaining) else {
            return effects.extend(head.to.map(|to| reply(to, written())));
        };
        let row = StoredLease { remaining, ..lease.row.clone() };
        self.write_lease(head.to, id, Some(row), Became::Changed, written());
    }

    fn attach(&mut self, head: Queued<R>, id: i64, effects: &mut Vec<Effect<R, W>>) {
        let found = self.waiting.attached.contains(&id);
        if found || head.missing.contains(&id) {
            let answer = region_response::Result::AttachLease(AttachLeaseResponse { found });
            let term = self.leading.unwrap_or_default();
            return effects.extend(head.to.map(|to| judge(to, term, answer)));
        }
        self.park_unattached(head, id, effects);
    }

    fn keys(&mut self, head: Queued<R>, id: i64, close: bool, base: &dyn BaseView) -> Result<(), Damaged> {
        let found = self.attached_keys(id, base)?;
        let head = if close {
            self.waiting.close(id);
            self.park_if_locked(head, id, &Found::default())
        } else {
            // A transaction that is decided elsewhere may have changed them.
            let spans = found.keys.iter().map(|key| KeyRange::single(key.clone())).collect();
            self.park_if(head, id, spans, false)
        };
        let Some(head) = head else { return Ok(()) };
        let rests_on = (!self.overlay.is_empty()).then_some(self.seq);
        self.push_bound(head.to, region_response::Result::AttachedKeys(found), rests_on);
        Ok(())
    }

    fn detach(
        &mut self,
        head: Queued<R>,
        id: i64,
        base: &dyn BaseView,
        heard: i64,
        effects: &mut Vec<Effect<R, W>>,
    ) -> Result<(), Damaged> {
        self.waiting.close(id);
        let found = self.find_attached(id, base)?;
        if found.too_large {
            let reason = Some(refusal::Reason::TooLarge(pb::TooLarge {}));
            effects.extend(head.to.map(|to| refuse(to, Refusal { reason })));
            return Ok(());
        }
        let Some(head) = self.park_if_locked(head, id, &found) else { return Ok(()) };
        let response = |revision| region_response::Result::DetachLease(DetachLeaseResponse { revision });
        if found.changes.is_empty() {
            let rests_on = (!self.overlay.is_empty()).then_some(self.seq);
            self.push_bound(head.to, response(BEFORE), rests_on);
            return Ok(());
        }
        let seq = self.next_seq();
        self.overlay.push(seq, heard, &found.changes);
        let item = self.item(head.to, response(OWN), seq);
        self.push_item(Item { numbering: Numbering::Own, changes: found.changes, ..item });
        Ok(())
    }

    // ------------------------------------------------------------ what they share

    /// Writes a record, or removes it, without a number.
    fn write_lease(
        &mut self,
        to: Option<R>,
        id: i64,
        row: Option<StoredLease>,
        became: Became,
        response: region_response::Result,
    ) {
        let seq = self.next_seq();
        let leases = vec![self.leases.set(seq, id, row, became)];
        let item = self.item(to, response, seq);
        self.push_item(Item { leases, ..item });
    }

    fn overlay_push(&mut self, seq: u64, heard: i64, changes: &[Change]) {
        if !changes.is_empty() {
            self.overlay.push(seq, heard, changes);
        }
    }

    /// The deletes of every key that has the lease.
    fn find_attached(&self, id: i64, base: &dyn BaseView) -> Result<Found, Damaged> {
        let view = View { overlay: &self.overlay, base };
        let mut found = Found::default();
        view.attached(id, &self.region.range(), &mut |key, record| {
            found.too_large = found.changes.len() >= LEASE_KEYS_AT_ONCE;
            if found.too_large {
                return ControlFlow::Break(());
            }
            let supersedes = record.mod_revision;
            found.changes.push(Change { key: key.clone(), supersedes, delete: true, ..Change::default() });
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn attached_keys(&self, id: i64, base: &dyn BaseView) -> Result<AttachedKeysResponse, Damaged> {
        let view = View { overlay: &self.overlay, base };
        let mut found = AttachedKeysResponse { revision: BEFORE, ..AttachedKeysResponse::default() };
        let (mut bytes, mut last) = (0, Bytes::new());
        view.attached(id, &self.region.range(), &mut |key, _| {
            if found.count == 0 {
                found.first = key.clone();
            }
            last = key.clone();
            found.count += 1;
            bytes += key.len() + 8;
            if bytes <= KEYS_BYTES_MAX {
                found.keys.push(key.clone());
            }
            ControlFlow::Continue(())
        })?;
        if bytes > KEYS_BYTES_MAX {
            found.keys.clear();
        }
        found.last = last;
        Ok(found)
    }

    /// Gives `head` back, unless a transaction over several regions holds what it would delete, or may still attach
    /// the lease here: then it waits for that.
    fn park_if_locked(&mut self, head: Queued<R>, id: i64, found: &Found) -> Option<Queued<R>> {
        let keys = if self.locks.is_empty() { &[][..] } else { &found.changes };
        let spans = keys.iter().map(|change| KeyRange::single(change.key.clone())).collect();
        self.park_if(head, id, spans, true)
    }

    fn park_if(&mut self, head: Queued<R>, id: i64, spans: Vec<KeyRange>, attaching: bool) -> Option<Queued<R>> {
        if self.locks.is_empty() {
            return Some(head);
        }
        let accesses: Vec<_> = spans.into_iter().map(|span| (span, attaching)).collect();
        let hindered = (attaching && self.locks.attaches(id)) || self.locks.hinder(&accesses);
        if !hindered {
            return Some(head);
        }
        let Work::Lease { work, .. } = head.work else { unreachable!("only leases are evaluated here") };
        self.parked.push_back(Queued { work: Work::Lease { work, accesses }, ..head });
        None
    }

    /// An answer that takes neither number nor bound, and rests on an item in flight.
    fn answer_resting(
        &mut self,
        to: Option<R>,
        response: region_response::Result,
        rests_on: Option<u64>,
        effects: &mut Vec<Effect<R, W>>,
    ) {
        let term = self.leading.unwrap_or_default();
        let item = Item { rests_on, ..self.item(to, response, 0) };
        self.answer_bound(item, term, effects);
    }

    /// `head` needs to know whether the lease `id` exists, and has this region in its record.
    pub(super) fn park_unattached(&mut self, head: Queued<R>, id: i64, effects: &mut Vec<Effect<R, W>>) {
        self.waiting.queued += 1;
        match self.waiting.questions.get_mut(&id) {
            Some(question) => question.later.push(head),
            None => {
                let name = self.id();
                let question = Question { name, asked: vec![head], later: Vec::new(), void: false };
                self.waiting.questions.insert(id, question);
                effects.push(Effect::Register { question: name, lease: id, range: self.region.range() });
            }
        }
    }

    fn park_until_gone(&mut self, head: Queued<R>, id: i64) {
        self.waiting.queued += 1;
        self.waiting.until_gone.entry(id).or_default().push(head);
    }

    /// Puts work before everything that waits in the queue.
    fn put_first(&mut self, work: Vec<Queued<R>>) {
        for queued in work.into_iter().rev() {
            self.queue.push_front(queued);
        }
    }

    // ------------------------------------------------------------ what follows from it

    /// Takes up leases whose time is over.
    pub(super) fn expire_due(&mut self) {
        if self.leading.is_none() || self.barrier.is_some() {
            return;
        }
        for id in self.leases.take_due(self.now) {
            self.push_own(Work::Lease { work: LeaseWork::Expire(id), accesses: Vec::new() });
        }
    }

    /// Time goes on for leases.
    pub(super) fn tick_leases(&mut self) {
        self.expire_due();
        for (id, remaining) in self.leases.checkpoints(self.now) {
            self.push_own(Work::Lease { work: LeaseWork::Rest(id, remaining), accesses: Vec::new() });
        }
    }

    /// Everything up to `seq` is applied.
    pub(super) fn leases_applied(&mut self, seq: u64, effects: &mut Vec<Effect<R, W>>) {
        for (id, became) in self.leases.applied(seq, self.now) {
            match became {
                // Its own region is in its record from the beginning.
                Became::Granted => _ = self.waiting.attached.insert(id),
                Became::Changed => {}
                Became::Revoking => {
                    let ranges = self.leases.get(id).map(|lease| lease.row.ranges.clone()).unwrap_or_default();
                    effects.push(Effect::Revoke { lease: id, ranges });
                }
                Became::Gone(revision) => {
                    let revision = revision.unwrap_or_default();
                    for to in self.waiting.revokers.remove(&id).into_iter().flatten() {
                        let gone = RevokeLeaseResponse { revision };
                        effects.push(reply(to, region_response::Result::RevokeLease(gone)));
                    }
                    self.settle_lease(id, effects);
                }
            }
        }
        if self.leases.has_due(self.now) {
            self.expire_due();
        }
    }

    /// A lease is gone, or is not going after all: whoever waited for that looks again.
    pub(super) fn settle_lease(&mut self, id: i64, effects: &mut Vec<Effect<R, W>>) {
        let waiters = self.waiting.waiters.remove(&id).into_iter().flatten();
        effects.extend(waiters.map(|reader| Effect::Wake { reader, woken: Woken::Again }));
        if let Some(parked) = self.waiting.until_gone.remove(&id) {
            self.waiting.queued -= parked.len();
            self.put_first(parked);
        }
    }

    /// Goes on with every revocation that was under way when the term began.
    pub(super) fn revoke_all(&self, effects: &mut Vec<Effect<R, W>>) {
        let going = self.leases.iter().filter(|(_, lease)| lease.row.revoking);
        effects.extend(going.map(|(id, lease)| Effect::Revoke { lease: id, ranges: lease.row.ranges.clone() }));
    }

    /// Items from `first` on certainly never happen.
    pub(super) fn truncate_leases(&mut self, first: u64, effects: &mut Vec<Effect<R, W>>) {
        for id in self.leases.truncate(first) {
            for to in self.waiting.revokers.remove(&id).into_iter().flatten() {
                effects.push(refuse(to, super::timed_out("no number could be had for a revocation")));
            }
            match self.leases.get(id).filter(|lease| lease.row.revoking) {
                Some(lease) => effects.push(Effect::Revoke { lease: id, ranges: lease.row.ranges.clone() }),
                None => self.settle_lease(id, effects),
            }
        }
    }

    /// The region has another range.
    pub(super) fn cut_leases(&mut self, effects: &mut Vec<Effect<R, W>>) {
        self.waiting.close_all();
        let range = self.region.range();
        for id in self.leases.cut(|id| range.contains(&lease_key(id))) {
            for to in self.waiting.revokers.remove(&id).into_iter().flatten() {
                effects.push(refuse(to, unknown("the region was split while a lease was being revoked")));
            }
            self.settle_lease(id, effects);
        }
    }
}

/// Answer to those who only wait until a record is written.
fn written() -> region_response::Result {
    region_response::Result::KeepLease(KeepLeaseResponse::default())
}
