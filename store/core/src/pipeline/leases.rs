//! The leases whose records lie in a led region: what the log says of them, and what only this leader knows, which is when
//! they end (`docs/decisions/0006-leases.md`).
//!
//! The table is the replicated rows as they will be once everything in flight is applied; what is taken back is undone
//! from the list of what is in flight. A lease's time begins when its grant is applied.
//!
//! ```text
//!   granted ──deadline──► due ──┬─ all keys here: one entry ────────────────────────► gone
//!      ▲ │                      └─► revoking ── keys go, in whatever regions ─ remove ─► gone
//!      └─┴ keep-alive
//! ```
//!
//! Every lease that is not due stands in the heap once, at its deadline or an earlier one: a keep-alive costs no more than
//! a look into the map, and what comes up too early goes back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use braid_proto::key::KeyRange;
use braid_proto::pb::{LeaseRange, LeaseRow, StoredLease};
use bytes::Bytes;

/// Milliseconds beside its own time that a new leader gives every lease, one election timeout: for so long the former one
/// may have answered keep-alives that nobody else knows of (rule L4).
pub const EXTENSION_MS: u64 = 1_000;
/// Leases that may be on their way out at once because their time is over. The next come as these are gone, so that a
/// storm of expiries passes between other writes.
pub const EXPIRING_MAX: usize = 128;
/// Milliseconds after which the rest of a lease that was not renewed is written down, as in etcd.
pub const CHECKPOINT_MS: u64 = 5 * 60 * 1_000;
/// Rests that are written down at one tick.
const CHECKPOINTS_MAX: usize = 256;

/// A lease and what this leader knows about it.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its record once everything in flight is applied.
    pub row: StoredLease,
    /// When it ends, in milliseconds of the leader's clock. Means nothing before the grant is applied.
    pub deadline: u64,
    /// Its grant is not applied yet.
    pub new: bool,
    /// It has been taken up: it is not renewed any more.
    pub due: bool,
}

impl Lease {
    /// Whether everything asked about it waits until it is gone.
    pub fn is_ending(&self) -> bool {
        self.due || self.row.revoking
    }
}

/// What has become of a lease when an item is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// There is one.
    Granted,
    /// Its ranges or its rest are others.
    Changed,
    /// It is going, and its keys have to.
    Revoking,
    /// It is no more. The revision at which its keys went, if that is known.
    Gone(Option<i64>),
}

#[derive(Debug)]
struct InFlight {
    seq: u64,
    id: i64,
    /// What it was before.
    before: Option<Lease>,
    became: Became,
}

/// How a keep-alive is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It begins anew: this many seconds. Sound only while this peer leads: check that last (rule L4).
    Alive(i64),
    /// There is none.
    Gone,
    /// It has a rest written down, which must be cleared through the log before.
    Clear,
    /// It is going to be gone: ask again then.
    Wait,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: HashMap<i64, Lease>,
    ends: BinaryHeap<Reverse<(u64, i64)>>,
    in_flight: VecDeque<InFlight>,
    /// Leases that are due, but not gone.
    expiring: usize,
    /// When to look next whether the rest of a lease should be written down; long ones only.
    looks: BinaryHeap<Reverse<(u64, i64)>>,
}

impl LeaseTable {
    /// What is applied when a term begins at `now`.
    pub fn load(rows: Vec<(i64, StoredLease)>, now: u64) -> Self {
        let mut table = Self::default();
        table.absorb(rows, now);
        table
    }

    /// Takes in what is applied of leases that another leader has kept until `now`, as when a term begins (rule L4). Returns
    /// those that are on their way out, with their ranges.
    pub fn absorb(&mut self, rows: Vec<(i64, StoredLease)>, now: u64) -> Vec<(i64, Vec<LeaseRange>)> {
        let mut revoking = Vec::new();
        for (id, row) in rows {
            let left = if row.remaining > 0 { row.remaining } else { row.ttl };
            let deadline = end(now, left).saturating_add(EXTENSION_MS);
            if row.revoking {
                revoking.push((id, row.ranges.clone()));
            } else {
                self.ends.push(Reverse((deadline, id)));
                self.look_later(id, row.ttl, now);
            }
            let before = self.leases.insert(id, Lease { row, deadline, new: false, due: false });
            debug_assert!(before.is_none(), "lease {id} has two records");
        }
        revoking
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none: nothing here costs anything then.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The lease `id`, also one that is only being granted.
    pub fn get(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// The newest item in flight that says something about `id`: what is answered about it rests on that.
    pub fn rests_on(&self, id: i64) -> Option<u64> {
        // Looked at from the newest on; a lease is asked about while little else happens to it.
        self.in_flight.iter().rev().find(|change| change.id == id).map(|change| change.seq)
    }

    /// Item `seq` makes `row` of lease `id`; `None` removes it. Returns the row for the log.
    pub fn set(&mut self, seq: u64, id: i64, row: Option<StoredLease>, became: Became) -> LeaseRow {
        let before = match (row.clone(), self.leases.get_mut(&id)) {
            (Some(row), Some(lease)) => {
                let before = lease.clone();
                lease.row = row;
                Some(before)
            }
            (Some(row), None) => {
                self.leases.insert(id, Lease { row, deadline: u64::MAX, new: true, due: false });
                None
            }
            (None, _) => self.leases.remove(&id),
        };
        self.in_flight.push_back(InFlight { seq, id, before, became });
        LeaseRow { id, lease: row }
    }

    /// Everything up to `seq` is applied, at `now`. Returns what has become of whom, in order.
    pub fn applied(&mut self, seq: u64, now: u64) -> Vec<(i64, Became)> {
        let mut became = Vec::new();
        while self.in_flight.front().is_some_and(|change| change.seq <= seq) {
            let Some(change) = self.in_flight.pop_front() else { break };
            let was_due = change.before.is_some_and(|before| before.due);
            match (change.became, self.leases.get_mut(&change.id)) {
                (Became::Granted, Some(lease)) => {
                    lease.new = false;
                    lease.deadline = end(now, lease.row.ttl);
                    let ttl = lease.row.ttl;
                    self.ends.push(Reverse((lease.deadline, change.id)));
                    self.look_later(change.id, ttl, now);
                }
                (Became::Gone(_), _) => self.expiring -= usize::from(was_due),
                _ => {}
            }
            became.push((change.id, change.became));
        }
        became
    }

    /// Items from `first` on certainly never happen. Returns the leases that do not end now after all.
    pub fn truncate(&mut self, first: u64) -> Vec<i64> {
        let mut live = Vec::new();
        while self.in_flight.back().is_some_and(|change| change.seq >= first) {
            let Some(InFlight { id, before, .. }) = self.in_flight.pop_back() else { break };
            let Some(before) = before else {
                self.leases.remove(&id);
                continue;
            };
            match self.leases.get_mut(&id) {
                // Its time may have been set anew since.
                Some(lease) => lease.row = before.row,
                None => {
                    if !before.due {
                        self.ends.push(Reverse((before.deadline, id)));
                    }
                    self.leases.insert(id, before);
                }
            }
            self.undo_due(id);
            live.push(id);
        }
        live
    }

    /// Keeps `id` alive at `now`. `applied`: a lease whose grant is newer was not promised to anybody yet.
    pub fn keep(&mut self, id: i64, now: u64) -> Keep {
        let Some(lease) = self.leases.get_mut(&id) else {
            // Its removal may be in flight: then nobody knows yet.
            return if self.rests_on(id).is_some() { Keep::Wait } else { Keep::Gone };
        };
        if lease.new {
            return Keep::Gone;
        }
        if lease.is_ending() || lease.deadline <= now {
            return Keep::Wait;
        }
        if lease.row.remaining != 0 {
            return Keep::Clear;
        }
        lease.deadline = end(now, lease.row.ttl);
        Keep::Alive(lease.row.ttl)
    }

    /// Leases that have ended by `now`, as many as may be taken up; they are due from now on.
    pub fn take_due(&mut self, now: u64) -> Vec<i64> {
        let mut due = Vec::new();
        while self.expiring < EXPIRING_MAX {
            let Some(Reverse((at, id))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= now) else {
                break;
            };
            self.ends.pop();
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| !lease.new && !lease.is_ending()) else {
                continue;
            };
            if lease.deadline > at {
                self.ends.push(Reverse((lease.deadline, id)));
            } else {
                lease.due = true;
                self.expiring += 1;
                due.push(id);
            }
        }
        due
    }

    /// Whether [`Self::take_due`] has left some behind because enough were under way.
    pub fn has_due(&self, now: u64) -> bool {
        self.ends.peek().is_some_and(|Reverse((at, _))| *at <= now)
    }

    /// Leases whose rest is to be written down at `now`, and the rest in seconds: those that have lost more than
    /// [`CHECKPOINT_MS`] since it was, or since they were renewed.
    pub fn checkpoints(&mut self, now: u64) -> Vec<(i64, i64)> {
        let mut rests = Vec::new();
        while rests.len() < CHECKPOINTS_MAX {
            let Some(Reverse((_, id))) = self.looks.peek().copied().filter(|Reverse((at, _))| *at <= now) else {
                break;
            };
            self.looks.pop();
            let Some(lease) = self.leases.get(&id).filter(|lease| !lease.is_ending()) else { continue };
            let known = if lease.row.remaining > 0 { lease.row.remaining } else { lease.row.ttl };
            let since = lease.deadline.saturating_sub(end(0, known));
            if now < since.saturating_add(CHECKPOINT_MS) {
                self.looks.push(Reverse((since.saturating_add(CHECKPOINT_MS), id)));
                continue;
            }
            let left = lease.deadline.saturating_sub(now) / 1_000;
            rests.push((id, left.max(1) as i64));
            self.looks.push(Reverse((now + CHECKPOINT_MS, id)));
        }
        rests
    }

    /// Forgets what is not `inside` a region that was split. Nothing is in flight then. Returns who went.
    pub fn cut(&mut self, inside: impl Fn(i64) -> bool) -> Vec<i64> {
        let gone: Vec<i64> = self.leases.keys().copied().filter(|id| !inside(*id)).collect();
        for id in &gone {
            let due = self.leases.remove(id).is_some_and(|lease| lease.due);
            self.expiring -= usize::from(due);
        }
        gone
    }

    fn look_later(&mut self, id: i64, ttl: i64, now: u64) {
        if end(0, ttl) > CHECKPOINT_MS {
            self.looks.push(Reverse((now + CHECKPOINT_MS, id)));
        }
    }

    /// An expiry that was taken up came to nothing.
    pub fn undo_due(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id)
            && std::mem::take(&mut lease.due)
        {
            self.expiring -= 1;
            self.ends.push(Reverse((lease.deadline, id)));
        }
    }
}

/// `seconds` after `now`.
fn end(now: u64, seconds: i64) -> u64 {
    now.saturating_add((seconds.max(0) as u64).saturating_mul(1_000))
}

/// Milliseconds until `deadline`; negative once it has passed.
pub fn left_ms(deadline: u64, now: u64) -> i64 {
    deadline as i64 - now as i64
}

/// The key ranges of a record.
pub fn key_ranges(ranges: &[LeaseRange]) -> impl Iterator<Item = KeyRange> {
    ranges.iter().map(|range| KeyRange { start: range.start.clone(), end: range.end.clone() })
}

/// Whether the ranges of `row` hold all of `range`: they neither overlap nor touch, so one of them does.
pub fn covers(row: &StoredLease, range: &KeyRange) -> bool {
    key_ranges(&row.ranges).any(|held| held.contains_range(range))
}

/// Adds `range` to `ranges`, which stay in order, and neither overlap nor touch.
pub fn add_range(ranges: &mut Vec<LeaseRange>, range: &KeyRange) {
    let (mut start, mut end) = (range.start.clone(), range.end.clone());
    ranges.retain(|held| {
        let apart = (!held.end.is_empty() && held.end < start) || (!end.is_empty() && end < held.start);
        if !apart {
            start = std::mem::take(&mut start).min(held.start.clone());
            end = if end.is_empty() || held.end.is_empty() { Bytes::new() } else { end.clone().max(held.end.clone()) };
        }
        apart
    });
    let at = ranges.partition_point(|held| held.start < start);
    ranges.insert(at, LeaseRange { start, end });
}

/// What of `ranges` lies outside `own`.
pub fn outside(ranges: &[LeaseRange], own: &KeyRange) -> Vec<LeaseRange> {
    let mut left = Vec::new();
    for range in key_ranges(ranges) {
        if !range.overlaps(own) {
            left.push(LeaseRange { start: range.start, end: range.end });
            continue;
        }
        if range.start < own.start {
            left.push(LeaseRange { start: range.start.clone(), end: own.start.clone() });
        }
        if !own.end.is_empty() && (range.end.is_empty() || own.end < range.end) {
            left.push(LeaseRange { start: own.end.clone(), end: range.end });
        }
    }
    left
}

#[cfg(test)]
mod tests;
