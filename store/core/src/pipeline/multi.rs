//! What a region does for transactions over several regions (rules M2 to M8). The whole protocol, step by step with its
//! crash points, is in `docs/decisions/0004-transactions.md`; here is one region's side of it.
//!
//! | Asked by | What | Here |
//! |---|---|---|
//! | coordinator | lock | a row through the log, and what lies under it as answer |
//! | coordinator | decide (primary) | the number, the own share, and a record of everybody else's in one entry |
//! | coordinator | release | undecided locks go |
//! | primary | commit | a share and the unlock in one entry |
//! | itself | step | a large share's next chunk |
//! | itself | forget | records whose shares are done go, many at once |
//! | itself | abort | the coordinator is silent, or the primary knows nothing of the transaction |
//!
//! Shares that wipe ranges are done in chunks of [`WIPE_KEYS`]; the lock keeps half of it from being seen, and its row
//! says how far it is, so that any leader goes on from there.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_proto::pb::{
    self, Change, CommitRequest, CommitResponse, DecideRequest, DecideResponse, LockRequest, LockResponse, LockRow,
    LockToken, LockedData, Refusal, ReleaseResponse, Share, StoredLock, TxnId, Wipe, refusal, region_response,
};
use bytes::Bytes;

use super::locks::{ASK_TICKS, LOCKS_MAX, Lock, SILENT_TICKS_MAX, key_range};
use super::{Effect, Item, Numbering, Pipeline, Queued, Woken, Work, busy, error, judge, refuse, reply};
use crate::eval::{fill_changes, key_value};
use crate::view::{BaseView, Damaged, View};

/// Keys that one entry of a wipe takes: a few milliseconds of apply, which other regions share.
pub const WIPE_KEYS: usize = 256;
/// Records that are forgotten before the next tick does it.
pub const FORGET_AT_ONCE: usize = 64;
/// Bytes that a lock's answer may take.
pub const LOCK_READ_BYTES_MAX: usize = 32 << 20;

/// What became of a transaction, as its primary's leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is no record.
    Over,
    /// Its number was not asked for yet.
    Later,
    /// It has happened.
    Committed(i64),
    /// Ask again once this item is applied.
    Wait(u64),
}

/// Why a read must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// This item is not applied yet.
    InFlight(u64),
    /// A transaction may have happened at or below the revision; its primary knows.
    Lock {
        /// The lock.
        token: LockToken,
        /// Whose it is.
        txn: TxnId,
        /// Where its record lies.
        primary: Bytes,
    },
}

/// Fills a decision's row in, once its revision is known.
pub fn fill_row(row: &mut StoredLock, lookup: &dyn Fn(u64) -> i64, revision: i64) {
    row.revision = revision;
    fill_changes(&mut row.changes, lookup, revision);
    for share in &mut row.shares {
        fill_changes(&mut share.changes, lookup, revision);
    }
}

impl<R, W> Pipeline<R, W> {
    // ------------------------------------------------------------ asked from outside

    /// Whether transactions over several regions hold anything here.
    pub fn has_locks(&self) -> bool {
        !self.locks.is_empty()
    }

    /// Whether there is anything to [`Self::tick`] for.
    pub fn has_ticks(&self) -> bool {
        !self.locks.is_empty() || !self.leases.is_empty()
    }

    /// Time goes on: whoever has been silent for too long is given up, and open questions are asked again.
    pub fn tick(&mut self, effects: &mut Vec<Effect<R, W>>) {
        if self.leading.is_none() {
            return;
        }
        self.tick_leases();
        let mut aborted = Vec::new();
        for lock in self.locks.iter_mut().filter(|lock| lock.is_undecided()) {
            lock.silent += 1;
            if lock.is_record() {
                if lock.silent > SILENT_TICKS_MAX {
                    aborted.push(lock.token());
                }
            } else if lock.silent.is_multiple_of(ASK_TICKS) {
                let (txn, primary) = (lock.row.txn.unwrap_or_default(), lock.row.primary.clone());
                effects.push(Effect::Ask { token: lock.token(), txn, primary });
            }
        }
        aborted.into_iter().for_each(|token| self.push_own(Work::Abort(token)));
        self.schedule_steps();
        if self.locks.iter().any(is_done) {
            self.push_own(Work::Forget);
        }
    }

    /// The coordinator of `txn` is still at work. False: it is over.
    pub fn hold(&mut self, txn: TxnId) -> bool {
        let record = self.locks.iter_mut().find(|lock| lock.row.txn == Some(txn) && lock.is_record());
        record.is_some_and(|record| {
            record.silent = 0;
            true
        })
    }

    /// What became of `txn`, whose primary lies here. Sound only while this peer leads: check that last.
    pub fn outcome(&mut self, txn: TxnId) -> Outcome {
        match self.locks.record(txn) {
            None => {
                self.denied.insert(txn);
                Outcome::Over
            }
            Some(Lock { next: Some((seq, _)), .. } | Lock { ended: Some(seq), .. }) => Outcome::Wait(*seq),
            Some(record) if record.row.revision > 0 => Outcome::Committed(record.row.revision),
            Some(_) => Outcome::Later,
        }
    }

    /// The primary's word about the transaction of a lock; `read_at` is what it was asked about.
    pub fn told(&mut self, token: LockToken, outcome: Outcome, read_at: i64) {
        let Some(lock) = self.locks.get_mut(token) else { return };
        match outcome {
            Outcome::Over if lock.is_undecided() => self.push_own(Work::Abort(token)),
            Outcome::Later => lock.later_than = lock.later_than.max(read_at),
            Outcome::Committed(revision) => lock.known = Some(revision),
            Outcome::Over | Outcome::Wait(_) => {}
        }
    }

    /// The share under the lock `share`, which the record `token` tells of, is done. It does not matter how often this is
    /// said, or by whom: a share may have been carried in several terms at once.
    pub fn carried(&mut self, token: LockToken, share: LockToken) {
        if let Some(record) = self.locks.get_mut(token) {
            record.to_carry.retain(|left| *left != share);
        }
        // A record whose shares are done is in nobody's way: many are forgotten at once.
        let done = self.locks.iter().filter(|lock| is_done(lock)).count();
        if done > 0 && done.is_multiple_of(FORGET_AT_ONCE) {
            self.push_own(Work::Forget);
        }
    }

    /// What a transaction over several regions holds that a read of `range` at `revision` must wait for (rule M7),
    /// beside what is [`Self::in_flight`]; note both at one moment. The revision must be one that the sequencer has given,
    /// and leadership is checked after the read. `masked`: the reader leaves out what is [`Self::wiped`] by itself.
    pub fn locked(&self, range: &KeyRange, revision: i64, masked: bool) -> Option<Blocker> {
        let passes = |lock: &Lock| masked && lock.wiped_at(revision).is_some();
        let hinders = |lock: &&Lock| lock.hinders(range, false) && !passes(lock);
        self.locks.iter().filter(hinders).find_map(|lock| match (lock.known, &lock.next) {
            (Some(known), _) if known > revision => None,
            (None, _) if lock.later_than >= revision => None,
            // The decision's number is on the way.
            (None, Some((seq, _))) if lock.is_record() => Some(Blocker::InFlight(*seq)),
            // Undecided, and decided by nobody but this leader: its number will be greater than all that were given.
            (None, None) if lock.is_record() => None,
            _ => Some(Blocker::Lock {
                token: lock.token(),
                txn: lock.row.txn.unwrap_or_default(),
                primary: lock.row.primary.clone(),
            }),
        })
    }

    /// What is gone at `revision`, although the region still has to wipe it: note it at the moment of [`Self::locked`].
    pub fn wiped(&self, range: &KeyRange, revision: i64) -> Vec<KeyRange> {
        let wipes = self.locks.iter().filter_map(|lock| lock.wiped_at(revision)).flatten();
        let ranges = wipes.map(|wipe| KeyRange { start: wipe.start.clone(), end: wipe.end.clone() });
        ranges.map(|wiped| wiped.intersect(range)).filter(|wiped| !wiped.is_empty()).collect()
    }

    /// Wakes `reader` once the lock is out of the way, or something new is known of it.
    pub fn wait_unlocked(&mut self, token: LockToken, reader: W, effects: &mut Vec<Effect<R, W>>) {
        match self.locks.get(token) {
            Some(lock) if lock.stands() => self.lock_readers.push((token, reader)),
            _ => effects.push(Effect::Wake { reader, woken: Woken::Again }),
        }
    }

    /// The newest revision up to which every event of this region is applied here (rule F1). `heard` was sampled before;
    /// a promise needs the lease, checked after.
    pub fn frontier(&self, heard: i64) -> i64 {
        let asked = self.batch.iter().filter(|batch| batch.items.iter().any(|item| item.seq > 0));
        let floors = asked.map(|batch| batch.heard);
        let numbered = self.entries.iter().filter_map(|entry| entry.lowest).map(|lowest| lowest - 1);
        let locks = self.locks.iter().filter_map(Lock::frontier);
        floors.chain(numbered).chain(locks).fold(heard, i64::min)
    }

    /// Whether it leads and nothing is in flight, locked or held up: until that changes, the frontier is whatever is heard.
    pub fn is_calm(&self) -> bool {
        self.leading().is_some()
            && self.batch.is_none()
            && self.entries.is_empty()
            && self.locks.is_empty()
            && self.barrier.is_none()
    }

    // ------------------------------------------------------------ in the queue

    pub(super) fn evaluate_multi(
        &mut self,
        head: Queued<R>,
        base: &dyn BaseView,
        heard: i64,
        effects: &mut Vec<Effect<R, W>>,
    ) -> Result<(), Damaged> {
        let Queued { to, work, epoch, span_ok, missing } = head;
        match work {
            Work::Evaluate(_) | Work::Lease { .. } => unreachable!("evaluated by the caller"),
            Work::Lock(request) if self.must_wait(&request) => match request.wait {
                true => self.parked.push_back(Queued { to, work: Work::Lock(request), epoch, span_ok, missing }),
                false => {
                    let conflict = LockResponse { conflict: true, ..LockResponse::default() };
                    effects.extend(to.map(|to| reply(to, region_response::Result::Lock(conflict))));
                }
            },
            Work::Lock(request) if self.comes_too_late(&request) => {
                let conflict = LockResponse { conflict: true, ..LockResponse::default() };
                effects.extend(to.map(|to| reply(to, region_response::Result::Lock(conflict))));
            }
            Work::Lock(request) => self.lock(to, request, base, heard, effects)?,
            Work::Decide(request) => self.decide(to, request, heard, effects),
            Work::Release(txn) => self.release(to, txn, effects),
            Work::Commit(request) => self.commit(to, request, effects),
            Work::Step(token) => self.step(token, base)?,
            Work::Abort(token) => self.end_undecided(None, &[token]),
            Work::Forget => self.forget(),
        }
        self.wake_lock_readers(effects);
        Ok(())
    }

    /// Whether somebody's lock is in the way, or somebody who came earlier waits for one: a lock that overtook him could
    /// keep him waiting for ever.
    fn must_wait(&self, request: &LockRequest) -> bool {
        let wanted: Vec<_> = request.ranges.iter().map(|range| (key_range(range), range.exclusive)).collect();
        let overtakes = |queued: &Queued<R>| {
            let theirs = queued.work.accesses();
            wanted.iter().any(|(mine, writes)| theirs.iter().any(|(their, w)| (*writes || *w) && mine.overlaps(their)))
        };
        self.barrier.is_some() || self.locks.hinder(&wanted) || self.parked.iter().any(overtakes)
    }

    /// Whether this is a primary's lock that others did not wait for, and somebody may have been told that there is none.
    fn comes_too_late(&self, request: &LockRequest) -> bool {
        let here = request.primary_region == self.region.id && Some(request.primary_term) == self.leading.map(|t| t.0);
        request.primary_term != 0 && !(here && self.denied.allows(request.txn.unwrap_or_default()))
    }

    fn lock(
        &mut self,
        to: Option<R>,
        request: LockRequest,
        base: &dyn BaseView,
        heard: i64,
        effects: &mut Vec<Effect<R, W>>,
    ) -> Result<(), Damaged> {
        if self.locks.len() >= LOCKS_MAX {
            effects.extend(to.map(|to| refuse(to, busy("the region has too many locks"))));
            return Ok(());
        }
        let unknown = |lease: &&i64| !self.waiting.attached().contains(lease);
        let unattached: Vec<i64> = request.attaches.iter().filter(unknown).copied().collect();
        if !unattached.is_empty() {
            let response = LockResponse { unattached, ..LockResponse::default() };
            effects.extend(to.map(|to| reply(to, region_response::Result::Lock(response))));
            return Ok(());
        }
        let mut data = Vec::with_capacity(request.reads.len());
        let mut bytes = 0;
        for read in &request.reads {
            let range = KeyRange { start: read.start.clone(), end: read.end.clone() };
            match self.read_locked(&range, read.count_only, &mut bytes, base) {
                Ok(Some(read)) => data.push(read),
                Ok(None) => {
                    let reason = Some(refusal::Reason::TooLarge(pb::TooLarge {}));
                    effects.extend(to.map(|to| refuse(to, Refusal { reason })));
                    return Ok(());
                }
                Err(damaged) => {
                    effects.extend(to.map(|to| error(to, braid_proto::error::CORRUPT)));
                    return Err(damaged);
                }
            }
        }
        let seq = self.next_seq();
        let term = self.leading.unwrap_or_default().0;
        let token = LockToken { region_id: self.region.id, term, seq };
        let row = StoredLock {
            txn: request.txn,
            token: Some(token),
            primary: request.primary,
            ranges: request.ranges,
            floor: heard,
            attaches: request.attaches,
            ..StoredLock::default()
        };
        let lock = Lock::new(row.clone(), seq);
        let written = LockRow { key: lock.row_key(), token: Some(token), lock: Some(row) };
        self.locks.insert(lock);
        let response = LockResponse { token: Some(token), data, ..LockResponse::default() };
        let item = self.item(to, region_response::Result::Lock(response), seq);
        self.push_item(Item { locks: vec![written], ..item });
        Ok(())
    }

    /// What lies in `range` now; `None`: more than an answer may hold.
    fn read_locked(
        &self,
        range: &KeyRange,
        count_only: bool,
        bytes: &mut usize,
        base: &dyn BaseView,
    ) -> Result<Option<LockedData>, Damaged> {
        let view = View { overlay: &self.overlay, base };
        if count_only {
            return Ok(Some(LockedData { kvs: Vec::new(), count: view.count(range)? as i64 }));
        }
        let mut kvs = Vec::new();
        view.scan(range, &mut |key, record| {
            *bytes += key.len() + record.value.len() + 32;
            if *bytes > LOCK_READ_BYTES_MAX {
                return ControlFlow::Break(());
            }
            kvs.push(key_value(key, record));
            ControlFlow::Continue(())
        })?;
        Ok((*bytes <= LOCK_READ_BYTES_MAX).then(|| LockedData { count: kvs.len() as i64, kvs }))
    }

    fn decide(&mut self, to: Option<R>, request: DecideRequest, heard: i64, effects: &mut Vec<Effect<R, W>>) {
        let mut shares = request.shares.into_iter();
        let own = shares.next().unwrap_or_default();
        let others: Vec<Share> = shares.collect();
        let mine = |lock: &&Lock| lock.row.txn == request.txn && !lock.is_undecided();
        match own.token.and_then(|token| self.locks.get(token)).filter(mine).map(|lock| lock.row.revision) {
            None => {}
            Some(0) => return effects.extend(to.map(|to| refuse(to, busy("the transaction is being decided")))),
            // A late copy hears what the first one was told, as long as that is known.
            Some(revision) => {
                let again = DecideResponse { over: false, revision };
                return self.push_bound(to, region_response::Result::Decide(again), None);
            }
        }
        let seq = self.seq + 1;
        let found = own.token.and_then(|token| self.locks.get_mut(token));
        let Some(lock) = found.filter(|lock| lock.is_undecided() && lock.row.txn == request.txn) else {
            let over = DecideResponse { over: true, revision: 0 };
            return self.push_bound(to, region_response::Result::Decide(over), None);
        };
        let mut row = StoredLock { shares: others, ..lock.row.clone() };
        let at_once = own.wipes.is_empty();
        if at_once {
            row.ranges.clear();
            lock.ended = Some(seq);
        } else {
            (row.wipes, row.changes, row.subs) = (own.wipes, own.changes.clone(), own.subs.clone());
        }
        let stays = !at_once || !row.shares.is_empty();
        lock.next = stays.then(|| (seq, row.clone()));
        lock.stepping = false;
        let written = LockRow { key: lock.row_key(), token: own.token, lock: stays.then_some(row) };
        let (changes, subs) = if at_once { (own.changes, own.subs) } else { (Vec::new(), Vec::new()) };
        self.seq = seq;
        self.overlay.push(seq, heard, &changes);
        let response = DecideResponse { over: false, revision: crate::placeholder::OWN };
        let item = self.item(to, region_response::Result::Decide(response), seq);
        self.push_item(Item { numbering: Numbering::Own, changes, subs, locks: vec![written], ..item });
        self.unpark();
    }

    fn release(&mut self, to: Option<R>, txn: TxnId, effects: &mut Vec<Effect<R, W>>) {
        let asked = |queued: &Queued<R>| matches!(&queued.work, Work::Lock(lock) if lock.txn == Some(txn));
        for queue in [&mut self.parked, &mut self.queue] {
            let (gone, left): (VecDeque<_>, VecDeque<_>) = std::mem::take(queue).into_iter().partition(asked);
            *queue = left;
            effects.extend(gone.into_iter().filter_map(|queued| queued.to).map(|to| refuse(to, busy("given up"))));
        }
        let tokens: Vec<LockToken> = self
            .locks
            .iter()
            .filter(|lock| lock.row.txn == Some(txn) && lock.is_undecided())
            .map(Lock::token)
            .collect();
        match tokens.is_empty() {
            true => effects.extend(to.map(|to| reply(to, region_response::Result::Release(ReleaseResponse {})))),
            false => self.end_undecided(to, &tokens),
        }
    }

    /// Ends locks whose transaction does nothing here.
    fn end_undecided(&mut self, to: Option<R>, tokens: &[LockToken]) {
        let seq = self.seq + 1;
        let mut rows = Vec::new();
        for token in tokens {
            let Some(lock) = self.locks.get_mut(*token).filter(|lock| lock.is_undecided()) else { continue };
            lock.ended = Some(seq);
            rows.push(LockRow { key: lock.row_key(), token: Some(*token), lock: None });
        }
        if rows.is_empty() && to.is_none() {
            return;
        }
        self.seq = seq;
        let item = self.item(to, region_response::Result::Release(ReleaseResponse {}), seq);
        self.push_item(Item { locks: rows, ..item });
        self.unpark();
    }

    fn commit(&mut self, to: Option<R>, request: CommitRequest, effects: &mut Vec<Effect<R, W>>) {
        let share = request.share.unwrap_or_default();
        let done = region_response::Result::Commit(CommitResponse {});
        let seq = self.seq + 1;
        let Some(lock) = share.token.and_then(|token| self.locks.get_mut(token)) else {
            // Done before, and applied; but a leader that was deposed does not know of locks that came after it.
            let term = self.leading.unwrap_or_default();
            return effects.extend(to.map(|to| judge(to, term, done)));
        };
        if !lock.is_undecided() {
            return effects.extend(to.map(|to| refuse(to, busy("the share is being done"))));
        }
        self.seq = seq;
        lock.known = Some(request.revision);
        let key = lock.row_key();
        if share.wipes.is_empty() {
            lock.ended = Some(seq);
            let row = LockRow { key, token: share.token, lock: None };
            self.overlay.push_known(seq, request.revision, &share.changes);
            let numbering = Numbering::Known(request.revision);
            let item = Item { numbering, changes: share.changes, subs: share.subs, ..self.item(to, done, seq) };
            self.push_item(Item { locks: vec![row], ..item });
            return self.unpark();
        }
        let Share { changes, subs, wipes, .. } = share;
        let row = StoredLock { revision: request.revision, wipes, changes, subs, ..lock.row.clone() };
        lock.next = Some((seq, row.clone()));
        let row = LockRow { key, token: row.token, lock: Some(row) };
        effects.extend(to.map(|to| refuse(to, busy("the share is being done"))));
        let item = self.item(None, done, seq);
        self.push_item(Item { locks: vec![row], ..item });
    }

    /// Removes every record whose shares are done.
    fn forget(&mut self) {
        let seq = self.seq + 1;
        let mut locks = Vec::new();
        for lock in self.locks.iter_mut().filter(|lock| is_done(lock)) {
            lock.ended = Some(seq);
            locks.push(LockRow { key: lock.row_key(), token: Some(lock.token()), lock: None });
        }
        if !locks.is_empty() {
            self.seq = seq;
            let item = self.item(None, region_response::Result::Release(ReleaseResponse {}), seq);
            self.push_item(Item { locks, ..item });
        }
    }

    /// Takes the next step of a transaction that wipes ranges here.
    fn step(&mut self, token: LockToken, base: &dyn BaseView) -> Result<(), Damaged> {
        let seq = self.seq + 1;
        let Some(lock) = self.locks.get(token).filter(|lock| next_step(lock)) else { return Ok(()) };
        let mut row = lock.row.clone();
        let (key, revision) = (lock.row_key(), row.revision);
        let view = View { overlay: &self.overlay, base };
        let (mut changes, mut subs) = wipe(&mut row.wipes, &view)?;
        let last = row.wipes.is_empty();
        if last {
            add_in_order(&mut changes, &mut subs, std::mem::take(&mut row.changes), std::mem::take(&mut row.subs));
            row.ranges.clear();
        }
        let stays = !last || !row.shares.is_empty();
        let lock = self.locks.get_mut(token).expect("just seen");
        lock.next = stays.then(|| (seq, row.clone()));
        if last {
            lock.ended = Some(seq);
            // What is unlocked is seen from now on; until then nobody looks.
            self.overlay.push_known(seq, revision, &changes);
        }
        self.seq = seq;
        let item = self.item(None, region_response::Result::Commit(CommitResponse {}), seq);
        let locks = vec![LockRow { key, token: Some(token), lock: stays.then_some(row) }];
        self.push_item(Item { numbering: Numbering::Known(revision), changes, subs, locks, ..item });
        if last {
            self.unpark();
        }
        Ok(())
    }

    // ------------------------------------------------------------ what follows from it

    /// The rows of item `seq` are final.
    pub(super) fn locks_numbered(&mut self, seq: u64, rows: &[LockRow]) {
        for row in rows {
            let Some(lock) = row.token.and_then(|token| self.locks.get_mut(token)) else { continue };
            if let (Some((by, next)), Some(stored)) = (&mut lock.next, &row.lock)
                && *by == seq
            {
                next.clone_from(stored);
                lock.known = Some(stored.revision);
            }
        }
    }

    /// Everything up to `seq` is applied.
    pub(super) fn locks_applied(&mut self, seq: u64, effects: &mut Vec<Effect<R, W>>) {
        if self.locks.is_empty() {
            return;
        }
        for token in self.locks.applied(seq) {
            if let Some(lock) = self.locks.get(token) {
                carry(lock, effects);
            }
        }
        self.schedule_steps();
        self.wake_lock_readers(effects);
    }

    /// Goes on with everything that was decided when the term began.
    pub(super) fn carry_all(&mut self, effects: &mut Vec<Effect<R, W>>) {
        for lock in self.locks.iter().filter(|lock| lock.row.revision > 0) {
            carry(lock, effects);
        }
        self.schedule_steps();
    }

    /// Queues the next step of every decided transaction whose step is not queued yet.
    pub(super) fn schedule_steps(&mut self) {
        let ready = |lock: &&mut Lock| !lock.stepping && next_step(lock);
        let mut tokens = Vec::new();
        for lock in self.locks.iter_mut().filter(ready) {
            lock.stepping = true;
            tokens.push(lock.token());
        }
        tokens.into_iter().for_each(|token| self.push_own(Work::Step(token)));
    }

    /// What was parked is looked at again, in order of arrival and before everything that came later.
    pub(super) fn unpark(&mut self) {
        let mut parked = std::mem::take(&mut self.parked);
        parked.append(&mut self.queue);
        self.queue = parked;
    }

    /// Bounded by the number of locks, each of which has one step and one abort that a tick may ask for, and by the leases
    /// that may be taken up at once.
    pub(super) fn push_own(&mut self, work: Work) {
        let epoch = self.region.epoch.unwrap_or_default();
        self.queue.push_back(Queued { to: None, work, epoch, span_ok: true, missing: Vec::new() });
    }

    fn wake_lock_readers(&mut self, effects: &mut Vec<Effect<R, W>>) {
        for (token, reader) in std::mem::take(&mut self.lock_readers) {
            match self.locks.get(token) {
                Some(lock) if lock.stands() => self.lock_readers.push((token, reader)),
                _ => effects.push(Effect::Wake { reader, woken: Woken::Again }),
            }
        }
    }
}

impl Work {
    /// What it reads and, where the flag is set, writes, as far as it waits for others.
    fn accesses(&self) -> Vec<(KeyRange, bool)> {
        match self {
            Self::Evaluate(request) => request.accesses(),
            Self::Lease { accesses, .. } => accesses.clone(),
            Self::Lock(lock) => lock.ranges.iter().map(|range| (key_range(range), range.exclusive)).collect(),
            Self::Decide(_) | Self::Release(_) | Self::Commit(_) | Self::Step(_) | Self::Abort(_) | Self::Forget => {
                Vec::new()
            }
        }
    }
}

/// Whether a decided transaction has something left to wipe here.
fn next_step(lock: &Lock) -> bool {
    let idle = lock.row.revision > 0 && lock.next.is_none() && lock.ended.is_none();
    idle && !lock.is_only_record()
}

/// Whether nothing but a record is left, and all its shares are done.
fn is_done(lock: &Lock) -> bool {
    lock.is_only_record() && lock.to_carry.is_empty() && lock.next.is_none() && lock.ended.is_none()
}

fn carry<R, W>(lock: &Lock, effects: &mut Vec<Effect<R, W>>) {
    for share in &lock.row.shares {
        effects.push(Effect::Carry {
            token: lock.token(),
            txn: lock.row.txn.unwrap_or_default(),
            revision: lock.row.revision,
            share: share.clone(),
        });
    }
}

/// The next keys to go; `wipes` is left with what remains.
fn wipe(wipes: &mut Vec<Wipe>, view: &View<'_>) -> Result<(Vec<Change>, Vec<u32>), Damaged> {
    let (mut changes, mut subs) = (Vec::new(), Vec::new());
    let mut done = 0;
    for next in wipes.iter_mut() {
        let range = KeyRange { start: next.start.clone(), end: next.end.clone() };
        let mut more = false;
        view.wiped(next.lease, &range, &mut |key, record| {
            more = changes.len() >= WIPE_KEYS;
            if more {
                next.start = key.clone();
                return ControlFlow::Break(());
            }
            let supersedes = record.mod_revision;
            changes.push(Change { key: key.clone(), supersedes, delete: true, ..Change::default() });
            subs.push(next.first_sub);
            next.first_sub += 1;
            ControlFlow::Continue(())
        })?;
        if more {
            break;
        }
        done += 1;
    }
    wipes.drain(..done);
    Ok((changes, subs))
}

/// Adds changes so that sub-revisions rise.
fn add_in_order(changes: &mut Vec<Change>, subs: &mut Vec<u32>, more: Vec<Change>, more_subs: Vec<u32>) {
    if more.is_empty() {
        return;
    }
    let first = std::mem::take(subs).into_iter().zip(std::mem::take(changes));
    let mut all: Vec<_> = first.chain(more_subs.into_iter().zip(more)).collect();
    all.sort_unstable_by_key(|(sub, _)| *sub);
    (*subs, *changes) = all.into_iter().unzip();
}
