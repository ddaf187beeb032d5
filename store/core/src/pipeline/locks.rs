//! The locks of a led region: what transactions over several regions hold here, and the records of those whose primary
//! lies here.
//!
//! The table is the replicated rows as they will be once everything in flight is applied, and beside each row what only
//! this leader knows. A lock counts from its evaluation on, because whatever is evaluated later comes later in the log;
//! it stops counting with the evaluation of what ends it, because the overlay then shows what it did (rule M6).
//!
//! ```text
//!   undecided ──decide, commit──► decided ──wiped──► record only ──all shares carried──► gone
//!       └───────release, abort────────────────────────────────────────────────────────► gone
//! ```

use std::collections::HashSet;

use braid_proto::key::KeyRange;
use braid_proto::pb::{LockRange, LockToken, StoredLock, TxnId, Wipe};
use bytes::Bytes;

/// Ticks without a word from its coordinator after which an undecided transaction is aborted by its primary.
pub const SILENT_TICKS_MAX: u32 = 6;
/// Ticks after which a participant asks the primary what became of a transaction, and between two such questions.
pub const ASK_TICKS: u32 = 2;
/// Locks of one region; beyond it a lock is refused as busy.
pub const LOCKS_MAX: usize = 4_096;

/// A lock and what this leader knows about it.
#[derive(Debug)]
pub struct Lock {
    /// The replicated row as it is applied, or will be by the item that makes it.
    pub row: StoredLock,
    /// Seq of the item that made it; 0: it was there before this term.
    pub made: u64,
    /// Seq of the item in flight that ends it: from its evaluation on the overlay shows what it does.
    pub ended: Option<u64>,
    /// The row that an item in flight leaves, and its seq. A decision's revision is filled in when it arrives.
    pub next: Option<(u64, StoredLock)>,
    /// Its next step, a wipe or a removal, is queued or in flight.
    pub stepping: bool,
    /// The transaction's number is greater than this: the floor, or a later word of the primary's (rule M7).
    pub later_than: i64,
    /// Its number, by the primary's word.
    pub known: Option<i64>,
    /// Locks of others whose shares are not known to be done.
    pub to_carry: Vec<LockToken>,
    /// Ticks since the coordinator was last heard of, or since the lock was made.
    pub silent: u32,
}

impl Lock {
    /// A lock that is made by the item `made`.
    pub fn new(row: StoredLock, made: u64) -> Self {
        let (later_than, to_carry) = (row.floor, to_carry(&row));
        let known = (row.revision > 0).then_some(row.revision);
        Self { row, made, ended: None, next: None, stepping: false, later_than, known, to_carry, silent: 0 }
    }

    /// Whether this row is the transaction's record.
    pub fn is_record(&self) -> bool {
        let primary = &self.row.primary;
        self.is_only_record() || self.ranges().any(|(range, _)| range.contains(primary))
    }

    /// Whether nothing is locked any more: what is left says that the transaction has happened.
    pub fn is_only_record(&self) -> bool {
        self.row.ranges.is_empty()
    }

    /// Whether its transaction may still be aborted.
    pub fn is_undecided(&self) -> bool {
        self.row.revision == 0 && self.ended.is_none() && self.next.is_none()
    }

    /// Whether evaluations meet it.
    pub fn stands(&self) -> bool {
        self.ended.is_none() && !self.row.ranges.is_empty()
    }

    /// Whether it stands in the way of somebody who reads, or writes, in `span`.
    pub fn hinders(&self, span: &KeyRange, writes: bool) -> bool {
        self.stands() && self.ranges().any(|(range, exclusive)| (exclusive || writes) && range.overlaps(span))
    }

    /// What is locked, and whether exclusively.
    pub fn ranges(&self) -> impl Iterator<Item = (KeyRange, bool)> + '_ {
        self.row.ranges.iter().map(|range| (key_range(range), range.exclusive))
    }

    /// What a transaction that has happened at or below `revision` still has to wipe, if that is all that its lock hides:
    /// to a read there these keys are gone.
    pub fn wiped_at(&self, revision: i64) -> Option<&[Wipe]> {
        let row = &self.row;
        let whole = row.wipes.iter().all(|wipe| wipe.lease == 0);
        let only_wipes = row.revision > 0 && row.revision <= revision && row.changes.is_empty() && whole;
        (only_wipes && self.stands()).then_some(&row.wipes)
    }

    /// What the region's frontier must stay at or below for this lock's sake, if anything (rule F1). A record that is
    /// undecided holds nothing back: its number will be asked for by this very leader, later than whatever is heard now.
    pub fn frontier(&self) -> Option<i64> {
        let writes = self.row.ranges.iter().any(|range| range.exclusive);
        match self.known {
            _ if !writes => None,
            Some(known) => Some(known - 1),
            None if self.is_record() => None,
            None => Some(self.later_than),
        }
    }

    /// Its token.
    pub fn token(&self) -> LockToken {
        self.row.token.unwrap_or_default()
    }

    /// Where its row lies: a key of the region, and the token.
    pub fn row_key(&self) -> Bytes {
        match self.row.ranges.first() {
            Some(range) if !self.is_record() => range.start.clone(),
            _ => self.row.primary.clone(),
        }
    }
}

fn to_carry(record: &StoredLock) -> Vec<LockToken> {
    record.shares.iter().map(|share| share.token.unwrap_or_default()).collect()
}

/// The keys of a range in a message.
pub fn key_range(range: &LockRange) -> KeyRange {
    KeyRange { start: range.start.clone(), end: range.end.clone() }
}

/// Transactions that were asked about and are not known here, as long as this leader's term lasts.
///
/// A coordinator that locks the primary and the others at the same time may be asked about before the primary's lock is
/// there. "Over" is final, so the lock must not come after it: it names the term it may be taken in, and in that term the
/// leader remembers what it has said. A lock that names another term, or another region, is refused.
#[derive(Debug, Default)]
pub struct Denied {
    txns: HashSet<TxnId>,
    full: bool,
}

/// Transactions that are remembered; once they are more, no primary of this term is locked beside the others.
const DENIED_MAX: usize = 65_536;

impl Denied {
    /// `txn` is said to be over.
    pub fn insert(&mut self, txn: TxnId) {
        self.full |= self.txns.len() >= DENIED_MAX;
        if !self.full {
            self.txns.insert(txn);
        }
    }

    /// Whether a record of `txn` may still be made.
    pub fn allows(&self, txn: TxnId) -> bool {
        !self.full && !self.txns.contains(&txn)
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct LockTable {
    locks: Vec<Lock>,
}

impl LockTable {
    /// What is applied when a term begins.
    pub fn load(rows: Vec<StoredLock>) -> Self {
        Self { locks: rows.into_iter().map(|row| Lock::new(row, 0)).collect() }
    }

    /// Whether there are none: nothing here costs anything then.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// How many there are, records included.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// All locks.
    pub fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.locks.iter()
    }

    /// All locks.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lock> {
        self.locks.iter_mut()
    }

    /// The lock that `token` names.
    pub fn get(&self, token: LockToken) -> Option<&Lock> {
        self.locks.iter().find(|lock| lock.token() == token)
    }

    /// The lock that `token` names.
    pub fn get_mut(&mut self, token: LockToken) -> Option<&mut Lock> {
        self.locks.iter_mut().find(|lock| lock.token() == token)
    }

    /// The record of `txn`, if its primary lies here. A late copy of the lock request may have made another one since
    /// (rule M5); what became of the transaction, the oldest one knows.
    pub fn record(&self, txn: TxnId) -> Option<&Lock> {
        let records = self.locks.iter().filter(|lock| lock.row.txn == Some(txn) && lock.is_record());
        records.min_by_key(|lock| {
            let LockToken { region_id, term, seq } = lock.token();
            (region_id, term, seq)
        })
    }

    /// Adds a lock.
    pub fn insert(&mut self, lock: Lock) {
        self.locks.push(lock);
    }

    /// Whether somebody who touches `spans` (true: writes) has to wait.
    pub fn hinder(&self, spans: &[(KeyRange, bool)]) -> bool {
        self.locks.iter().any(|lock| spans.iter().any(|(span, writes)| lock.hinders(span, *writes)))
    }

    /// Whether a transaction may still attach `lease` to keys here.
    pub fn attaches(&self, lease: i64) -> bool {
        self.locks.iter().any(|lock| lock.stands() && lock.row.attaches.contains(&lease))
    }

    /// Whether any keys are locked.
    pub fn any_stands(&self) -> bool {
        self.locks.iter().any(Lock::stands)
    }

    /// Everything up to `seq` is applied: what it ended is gone or a record, what it decided is decided. Returns the
    /// tokens of what is decided now.
    pub fn applied(&mut self, seq: u64) -> Vec<LockToken> {
        let mut decided = Vec::new();
        self.locks.retain_mut(|lock| {
            if let Some((_, row)) = lock.next.take_if(|(by, _)| *by <= seq) {
                let first = lock.row.revision == 0;
                lock.known = Some(row.revision);
                if first {
                    lock.to_carry = to_carry(&row);
                }
                lock.row = row;
                lock.ended = None;
                lock.stepping = false;
                if first {
                    decided.push(lock.token());
                }
                return true;
            }
            lock.ended.is_none_or(|ended| ended > seq)
        });
        decided
    }

    /// Items from `first` on certainly never happen.
    pub fn truncate(&mut self, first: u64) {
        self.locks.retain(|lock| lock.made < first);
        for lock in &mut self.locks {
            lock.ended.take_if(|ended| *ended >= first);
            lock.next.take_if(|(by, _)| *by >= first);
            // Whether its step was among them is not known here: it is taken again, and a step too many finds nothing
            // to do.
            lock.stepping = false;
        }
    }

    /// Forgets what lies outside the region, which was split. Nothing is locked then: only records can be cut off.
    pub fn cut(&mut self, range: &KeyRange) {
        self.locks.retain(|lock| range.contains(&lock.row.primary) || !lock.is_only_record());
    }
}
