//! The follows of one region: told what is applied, on the thread that applies it.
//!
//! The lock is held while a batch is written and its events are queued, and while a follow takes the snapshot of its past:
//! so each change is in exactly one of both. Events are queued before the pipeline hears that they are applied, and so
//! before any frontier can cover them (rule F1).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::id::Term;
use braid_proto::key::{KeyRange, strip_user};
use braid_proto::pb::{Change, Refusal, RegionEvent, RegionEvents, TxnEffect};
use braid_store_core::pipeline::busy;
use braid_store_core::record::Record;
use braid_store_core::view::Damaged;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::feed::{Follow, Full, Phase};
use super::ranges::Ranges;
use crate::engine::{RegionData, Snapshot, Superseded, shown};

/// See the module's text.
#[derive(Default)]
pub struct Live {
    state: Mutex<State>,
    count: AtomicUsize,
}

/// The lock of a region's follows.
pub struct Held<'a> {
    state: MutexGuard<'a, State>,
    count: &'a AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Follows of one key, by that key.
    singles: HashMap<Bytes, Vec<Arc<Follow>>>,
    /// The others, by their range.
    ranges: Ranges<Vec<Arc<Follow>>>,
    /// How many want what was there before.
    prev_kv: usize,
}

/// Follows of one feed that want the same events of a transaction.
type Group = (u64, bool, Vec<usize>);

impl Live {
    /// Whether anybody follows the region.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Takes the lock.
    pub fn lock(&self) -> Held<'_> {
        Held { state: self.state.lock(), count: &self.count }
    }

    /// Takes a follow off the list.
    pub fn remove(&self, follow: &Follow) {
        self.lock().remove(follow);
    }

    /// Ends all follows that began in `term` or before, with word to their proxies.
    pub fn leave(&self, term: Term, refusal: &Refusal) {
        let mut held = self.lock();
        let gone: Vec<Arc<Follow>> = held.state.all().filter(|follow| follow.term <= term).map(Arc::clone).collect();
        for follow in &gone {
            follow.leave(Some(refusal.clone()), 0);
            held.remove(follow);
            follow.feed.forget(follow);
        }
    }
}

impl Held<'_> {
    /// Adds a follow.
    pub fn add(&mut self, follow: Arc<Follow>) {
        self.state.add(follow);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// The moment at which `follow` begins to keep what happens; `None`: it has ended.
    pub fn join(&mut self, follow: &Follow, data: &RegionData) -> Result<Option<Snapshot>, Damaged> {
        let (snapshot, _) = data.moment()?;
        let mut out = follow.out.lock();
        if matches!(*out, Phase::Gone) {
            return Ok(None);
        }
        *out = Phase::Joining { waiting: Vec::new(), bytes: 0 };
        Ok(Some(snapshot))
    }

    /// The past of `follow` is queued: queues what has happened since, and the follow is live. `Full`: no room for it.
    pub fn go_live(&mut self, follow: &Follow) -> Result<(), Full> {
        let mut out = follow.out.lock();
        if let Phase::Joining { waiting, .. } = &mut *out {
            for events in std::mem::take(waiting) {
                follow.feed.push_past(events)?;
            }
            *out = Phase::Live;
            follow.progress.store(i64::MAX, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether somebody wants to know what `key` was before it changes.
    pub fn wants_before(&self, key: &[u8]) -> bool {
        let mut wanted = false;
        if self.state.prev_kv > 0 {
            self.state.at(key, |follow| wanted |= follow.prev_kv);
        }
        wanted
    }

    /// Tells the follows what was just applied. `before`: what that has superseded, as far as it is wanted.
    ///
    /// # Errors
    /// What was there before cannot be read; the follows have ended.
    pub fn publish(&mut self, data: &RegionData, txns: &[TxnEffect], before: &Superseded) -> Result<(), Damaged> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let mut slow = Vec::new();
        for txn in txns {
            self.state.publish(data, txn, before, &mut slow)?;
        }
        for follow in slow {
            self.remove(&follow);
            follow.feed.forget(&follow);
        }
        Ok(())
    }

    fn remove(&mut self, follow: &Follow) {
        if self.state.remove(follow) {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl State {
    fn all(&self) -> impl Iterator<Item = &Arc<Follow>> {
        self.ranges.values().chain(self.singles.values()).flatten()
    }

    /// Shows all follows of `key`.
    fn at<'s>(&'s self, key: &[u8], mut visit: impl FnMut(&'s Arc<Follow>)) {
        self.singles.get(key).into_iter().flatten().for_each(&mut visit);
        self.ranges.at(key, &mut |follows| follows.iter().for_each(&mut visit));
    }

    fn add(&mut self, follow: Arc<Follow>) {
        self.prev_kv += usize::from(follow.prev_kv);
        match single(&follow.range) {
            Some(key) => self.singles.entry(key).or_default().push(follow),
            None => match self.ranges.get_mut(&follow.range) {
                Some(follows) => follows.push(follow),
                None => self.ranges.insert(follow.range.clone(), vec![follow]),
            },
        }
    }

    fn remove(&mut self, follow: &Follow) -> bool {
        let key = single(&follow.range);
        let list = match &key {
            Some(key) => self.singles.get_mut(key),
            None => self.ranges.get_mut(&follow.range),
        };
        let Some(list) = list else { return false };
        let Some(at) = list.iter().position(|other| std::ptr::eq(Arc::as_ptr(other), follow)) else { return false };
        list.swap_remove(at);
        let is_last = list.is_empty();
        match key {
            Some(key) if is_last => _ = self.singles.remove(&key),
            None if is_last => _ = self.ranges.remove(&follow.range),
            _ => {}
        }
        self.prev_kv -= usize::from(follow.prev_kv);
        true
    }

    /// Queues the events of one transaction, built once for everybody. Who has no room is left, and put on `slow`.
    fn publish(
        &self,
        data: &RegionData,
        txn: &TxnEffect,
        before: &Superseded,
        slow: &mut Vec<Arc<Follow>>,
    ) -> Result<(), Damaged> {
        let mut wanted: HashMap<*const Follow, (&Arc<Follow>, Vec<usize>)> = HashMap::new();
        let mut events: Vec<Option<RegionEvent>> = Vec::new();
        for (at, change) in txn.changes.iter().enumerate() {
            let (mut any, mut prev_kv) = (false, false);
            self.at(&change.key, |follow| {
                (any, prev_kv) = (true, prev_kv || follow.prev_kv);
                wanted.entry(Arc::as_ptr(follow)).or_insert_with(|| (follow, Vec::new())).1.push(at);
            });
            let sub = txn.subs.get(at).copied().unwrap_or(at as u32);
            let before = Before { data, superseded: before, wanted: prev_kv };
            events.push(if any { event(&before, change, txn.revision, sub)? } else { None });
        }
        let mut groups: HashMap<Group, Vec<&Arc<Follow>>> = HashMap::new();
        let message = |ids: Vec<u64>, prev_kv: bool, places: &[usize]| {
            let events = places.iter().filter_map(|at| events[*at].clone());
            let shown = events.map(|mut shown| {
                if let Some(event) = shown.event.as_mut().filter(|_| !prev_kv) {
                    event.prev_kv = None;
                }
                shown
            });
            RegionEvents { ids, revision: txn.revision, events: shown.collect() }
        };
        for (follow, places) in wanted.into_values() {
            if places.iter().all(|at| events[*at].is_none()) || txn.revision <= follow.after {
                continue;
            }
            match &mut *follow.out.lock() {
                Phase::Past | Phase::Gone => continue,
                Phase::Live => {
                    groups.entry((follow.feed.id, follow.prev_kv, places)).or_default().push(follow);
                    continue;
                }
                Phase::Joining { waiting, bytes } => {
                    if Follow::keep(waiting, bytes, message(vec![follow.id], follow.prev_kv, &places)).is_ok() {
                        continue;
                    }
                }
            }
            fell_behind(follow);
            slow.push(Arc::clone(follow));
        }
        for ((_, prev_kv, places), follows) in groups {
            let ids = follows.iter().map(|follow| follow.id).collect();
            let Some(first) = follows.first() else { continue };
            if first.feed.push_live(message(ids, prev_kv, &places)).is_err() {
                for follow in follows {
                    fell_behind(follow);
                    slow.push(Arc::clone(follow));
                }
            }
        }
        Ok(())
    }
}

/// Ends a follow because its proxy does not take what it is told; the caller takes it off the lists.
pub fn fell_behind(follow: &Follow) {
    metrics::counter!("braid_watch_overflows_total").increment(1);
    follow.leave(Some(busy("the proxy fell behind")), 0);
}

/// Where an event finds what was there before.
struct Before<'a> {
    data: &'a RegionData,
    superseded: &'a Superseded,
    wanted: bool,
}

impl Before<'_> {
    /// What `change` has superseded; `None` if nobody wants it, there was nothing, or that is compacted.
    fn of(&self, change: &Change, revision: i64, sub: u32) -> Result<Option<Record>, Damaged> {
        if !self.wanted || change.supersedes == 0 || revision - 1 < self.data.boundary() {
            return Ok(None);
        }
        match self.superseded.get(revision, sub) {
            // What the same transaction put there is not what was there before it.
            Some(record) if record.mod_revision < revision => Ok(Some(record.clone())),
            _ => self.data.before(&change.key, revision),
        }
    }
}

/// The event of a change that was just applied; `None` if it is none of user data.
fn event(before: &Before<'_>, change: &Change, revision: i64, sub: u32) -> Result<Option<RegionEvent>, Damaged> {
    let Some(key) = strip_user(&change.key) else { return Ok(None) };
    let before = before.of(change, revision, sub)?;
    let (kind, kv) = if change.delete {
        (EventType::Delete, KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() })
    } else {
        let Change { create_revision, version, lease, ref value, .. } = *change;
        let value = value.clone();
        (EventType::Put, KeyValue { key: key.clone(), create_revision, mod_revision: revision, version, value, lease })
    };
    let prev_kv = before.map(|record| shown(key, record));
    Ok(Some(RegionEvent { sub, event: Some(Event { r#type: kind.into(), kv: Some(kv), prev_kv }) }))
}

/// The key, if `range` holds no other.
fn single(range: &KeyRange) -> Option<Bytes> {
    let (start, end) = (&range.start, &range.end);
    let one = end.len() == start.len() + 1 && end.starts_with(start) && end.ends_with(&[0]);
    one.then(|| start.clone())
}
