//! Taking the locks of a transaction over several regions, and giving them up.
//!
//! 1. Everything is tried at once. That waits for nobody, so it cannot be part of a deadlock. The primary's lock, the lowest
//!    key's, is the transaction's record; it names the term of the leader that must take it, because somebody who meets
//!    another lock first may ask that leader for the record and be told that there is none, which is final.
//! 2. If somebody is in the way, or that term is not known or over, all is given up and begun again in order: the primary
//!    first (rule M3), then all others at once; and if somebody is still in the way, all is given up once more and locked
//!    one after the other in key order, waiting. Everybody waits in that order, so no circle of waiting can close. Each
//!    time under a new id, so that a release that comes late finds nothing.
//! 3. If a region must learn of a lease first, all is given up and the caller is told: it sees to it and begins anew.
//!
//! Meanwhile the primary is told that somebody is still at work. What is done under the locks is the caller's.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::RegionId;
use braid_proto::key::KeyRange;
use braid_proto::pb::{
    HoldRequest, LockRange, LockRead, LockRequest, LockResponse, LockToken, LockedData, ReleaseRequest, TxnId,
    region_request, region_response,
};
use bytes::Bytes;
use dashmap::DashMap;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::deadline::Patience;
use crate::regions::{Ask, NoAnswer, Regions};
use crate::retry::Kind;

/// Between two signs of life: a sixth of what a primary waits for.
const HOLD_INTERVAL: Duration = Duration::from_millis(500);
/// How long giving up is tried; after it the locks are given up by themselves.
const RELEASE_PATIENCE: Duration = Duration::from_secs(3);

/// The term in which a region's leader has last taken a primary's lock from here, as far as we have heard. A guess: one
/// that is out of date costs a round.
#[derive(Debug, Default)]
pub struct LockTerms(DashMap<RegionId, u64>);

/// What is locked in one region.
#[derive(Clone, Debug)]
pub struct Part {
    /// The region, as far as is known.
    pub region: RegionId,
    /// What is locked, in key order; at least one range.
    pub ranges: Vec<LockRange>,
    /// What is read under the lock; inside the ranges.
    pub reads: Vec<LockRead>,
    /// The transaction may put keys here.
    pub puts: bool,
    /// Leases that it may attach to keys here.
    pub attaches: Vec<i64>,
}

/// A lock that was taken, and what lies under it.
#[derive(Debug)]
pub struct Taken {
    /// Its first key.
    pub key: Bytes,
    /// What is locked.
    pub ranges: Vec<KeyRange>,
    /// Its name.
    pub token: LockToken,
    /// What was read.
    pub data: Vec<LockedData>,
}

/// Leases that a region must learn of before it is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattached {
    /// Place of the region among the parts.
    pub part: usize,
    /// The leases: each is to be attached to the region of this part.
    pub leases: Vec<i64>,
}

/// Why nothing is locked. What was locked meanwhile is given up.
#[derive(Debug)]
pub enum NotLocked {
    /// These leases are to be attached first. Everything is released already.
    Unattached(Vec<Unattached>),
    /// Something has moved meanwhile, and this is what: begin again.
    Again(&'static str),
    /// There is more to read than an answer holds.
    TooLarge,
    /// A region's answer is an error, or one to another question.
    Answer(region_response::Result),
    /// A region cannot be asked.
    Failed(Status),
}

/// The locks of one attempt. Dropping it gives them up, unless the transaction was decided.
pub struct Locks {
    regions: Arc<Regions>,
    txn: TxnId,
    primary: Bytes,
    /// A key of each region that was asked, the primary first.
    asked: Vec<Bytes>,
    decided: bool,
    holding: Option<JoinHandle<()>>,
}

/// What one region says.
enum Said {
    Taken(Taken),
    /// Somebody is in the way.
    Conflict,
    Unattached(Vec<i64>),
}

/// What all regions say.
enum All {
    Taken(Vec<Taken>),
    Conflict,
    Unattached(Vec<Unattached>),
}

/// How a lock is asked for.
#[derive(Clone, Copy)]
enum How {
    /// Wait for whoever is in the way.
    Wait,
    /// Do not wait for anybody.
    Try,
    /// The same, for a primary that the others do not wait for: the term in which it must be taken.
    TryPrimary { term: u64 },
}

impl Locks {
    /// Locks all `parts`, which are in key order; at least one.
    ///
    /// # Errors
    /// See [`NotLocked`].
    pub async fn take(
        regions: &Arc<Regions>,
        terms: &LockTerms,
        parts: &[Part],
        patience: Patience,
    ) -> Result<(Self, Vec<Taken>), NotLocked> {
        let term = terms.0.get(&parts[0].region).map(|term| *term);
        if let Some(term) = term.filter(|_| parts.len() > 1) {
            let mut locks = Self::new(regions, parts);
            locks.asked = parts.iter().map(|part| part.key().clone()).collect();
            let hows = std::iter::once(How::TryPrimary { term }).chain(std::iter::repeat(How::Try));
            let tries = parts.iter().zip(hows).map(|(part, how)| locks.ask(part, how, patience));
            let said: Result<Vec<Said>, NotLocked> = join_all(tries).await.into_iter().collect();
            match gather(0, said?) {
                All::Taken(taken) => {
                    locks.hold();
                    return Ok((locks, taken));
                }
                All::Conflict => locks.conflicted(patience).await,
                All::Unattached(which) => return Err(locks.unattached(which, patience).await),
            }
        }
        match Self::take_primary_first(regions, terms, parts, patience).await? {
            Some(taken) => Ok(taken),
            None => Self::take_in_order(regions, parts, patience).await,
        }
    }

    /// The primary, and then all others at once. `None`: somebody is in the way, and all is given up.
    async fn take_primary_first(
        regions: &Arc<Regions>,
        terms: &LockTerms,
        parts: &[Part],
        patience: Patience,
    ) -> Result<Option<(Self, Vec<Taken>)>, NotLocked> {
        let mut locks = Self::new(regions, parts);
        let primary = match locks.wait_for(&parts[0], patience).await? {
            Ok(primary) => primary,
            Err(leases) => return Err(locks.unattached(vec![Unattached { part: 0, leases }], patience).await),
        };
        terms.0.insert(RegionId(primary.token.region_id), primary.token.term);
        locks.hold();
        let tried = join_all(parts[1..].iter().map(|part| locks.ask(part, How::Try, patience))).await;
        locks.asked.extend(parts[1..].iter().map(|part| part.key().clone()));
        let mut said = Vec::with_capacity(tried.len());
        for answer in tried {
            said.push(answer?);
            if matches!(said.last(), Some(Said::Conflict)) {
                break;
            }
        }
        match gather(1, said) {
            All::Taken(others) => Ok(Some((locks, std::iter::once(primary).chain(others).collect()))),
            All::Conflict => {
                locks.conflicted(patience).await;
                Ok(None)
            }
            All::Unattached(which) => Err(locks.unattached(which, patience).await),
        }
    }

    /// One after the other, waiting.
    async fn take_in_order(
        regions: &Arc<Regions>,
        parts: &[Part],
        patience: Patience,
    ) -> Result<(Self, Vec<Taken>), NotLocked> {
        let mut locks = Self::new(regions, parts);
        let mut taken = Vec::with_capacity(parts.len());
        for (at, part) in parts.iter().enumerate() {
            match locks.wait_for(part, patience).await? {
                Ok(lock) => taken.push(lock),
                Err(leases) => return Err(locks.unattached(vec![Unattached { part: at, leases }], patience).await),
            }
            if at == 0 {
                locks.hold();
            }
        }
        Ok((locks, taken))
    }

    /// Somebody is in the way. What is locked next is locked under another id: a release that comes late must not find
    /// a lock that is needed.
    async fn conflicted(self, patience: Patience) {
        metrics::counter!("braid_proxy_lock_conflicts_total").increment(1);
        self.release(patience).await;
    }

    /// Leases are missing. Whoever attaches them must not wait for these locks.
    async fn unattached(self, which: Vec<Unattached>, patience: Patience) -> NotLocked {
        self.release(patience).await;
        NotLocked::Unattached(which)
    }

    fn new(regions: &Arc<Regions>, parts: &[Part]) -> Self {
        Self {
            regions: Arc::clone(regions),
            txn: TxnId { high: rand::random(), low: rand::random() },
            primary: parts[0].key().clone(),
            asked: Vec::new(),
            decided: false,
            holding: None,
        }
    }

    /// The transaction.
    pub fn txn(&self) -> TxnId {
        self.txn
    }

    /// Its primary.
    pub fn primary(&self) -> &Bytes {
        &self.primary
    }

    /// A decision is on its way: from now on nothing is given up from here.
    pub fn decided(&mut self) {
        self.decided = true;
    }

    /// Gives everything up and waits until it is.
    pub async fn release(mut self, patience: Patience) {
        self.decided = true;
        release(&self.regions, self.txn, std::mem::take(&mut self.asked), patience).await;
    }

    /// The inner error names leases that are missing.
    async fn wait_for(&mut self, part: &Part, patience: Patience) -> Result<Result<Taken, Vec<i64>>, NotLocked> {
        if !self.asked.contains(part.key()) {
            self.asked.push(part.key().clone());
        }
        match self.ask(part, How::Wait, patience).await? {
            Said::Taken(taken) => Ok(Ok(taken)),
            Said::Unattached(leases) => Ok(Err(leases)),
            Said::Conflict => Err(NotLocked::Again("conflict")),
        }
    }

    async fn ask(&self, part: &Part, how: How, patience: Patience) -> Result<Said, NotLocked> {
        let (primary_region, primary_term) = match how {
            How::TryPrimary { term } => (part.region.0, term),
            How::Wait | How::Try => (0, 0),
        };
        let op = region_request::Op::Lock(LockRequest {
            txn: Some(self.txn),
            primary: self.primary.clone(),
            ranges: part.ranges.clone(),
            reads: part.reads.clone(),
            wait: matches!(how, How::Wait),
            puts: part.puts,
            primary_region,
            primary_term,
            attaches: part.attaches.clone(),
        });
        let within = |range: &KeyRange| part.lies_in(range);
        // Kind::Write: a second lock of the same transaction would wait for the first.
        let ask = Ask { anchor: part.key(), within, op: &op, kind: Kind::Write, any_replica: false };
        match self.regions.ask(ask, patience).await {
            Ok(region_response::Result::Lock(LockResponse { conflict: true, .. })) => Ok(Said::Conflict),
            Ok(region_response::Result::Lock(LockResponse { token: Some(token), data, .. })) => {
                let ranges = part.ranges.iter().map(key_range).collect();
                Ok(Said::Taken(Taken { key: part.key().clone(), ranges, token, data }))
            }
            Ok(region_response::Result::Lock(LockResponse { unattached, .. })) if !unattached.is_empty() => {
                Ok(Said::Unattached(unattached))
            }
            Ok(other) => Err(NotLocked::Answer(other)),
            // The region was split since it was looked up, or there is too much to read.
            Err(NoAnswer::Spread) => match self.regions.find(part.key(), patience).await {
                Ok(route) if part.lies_in(&route.range) => Err(NotLocked::TooLarge),
                Ok(_) => Err(NotLocked::Again("split")),
                Err(status) => Err(NotLocked::Failed(status)),
            },
            Err(NoAnswer::Failed(status)) => Err(NotLocked::Failed(status)),
        }
    }

    /// Tells the primary now and then that somebody is at work.
    fn hold(&mut self) {
        let (regions, txn, primary) = (Arc::clone(&self.regions), self.txn, self.primary.clone());
        self.holding = Some(tokio::spawn(async move {
            let op = region_request::Op::Hold(HoldRequest { txn: Some(txn) });
            loop {
                tokio::time::sleep(HOLD_INTERVAL).await;
                let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
                let answer = regions.ask(ask, Patience::within(HOLD_INTERVAL)).await;
                tracing::trace!(?answer, "held a transaction's locks");
            }
        }));
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        if let Some(holding) = self.holding.take() {
            holding.abort();
        }
        if !self.decided && !self.asked.is_empty() {
            let (regions, txn, asked) = (Arc::clone(&self.regions), self.txn, std::mem::take(&mut self.asked));
            tokio::spawn(async move { release(&regions, txn, asked, Patience::within(RELEASE_PATIENCE)).await });
        }
    }
}

impl Part {
    /// The first key locked.
    pub fn key(&self) -> &Bytes {
        &self.ranges[0].start
    }

    /// Whether a region of this range holds all of it.
    fn lies_in(&self, range: &KeyRange) -> bool {
        self.ranges.iter().all(|lock| range.contains_range(&key_range(lock)))
    }
}

/// Puts together what the regions of the parts from `first` on say. Leases that are missing come before somebody in the
/// way: without them nothing is locked however often it is tried.
fn gather(first: usize, said: Vec<Said>) -> All {
    let mut taken = Vec::with_capacity(said.len());
    let (mut missing, mut conflict) = (Vec::new(), false);
    for (part, said) in (first..).zip(said) {
        match said {
            Said::Taken(lock) => taken.push(lock),
            Said::Conflict => conflict = true,
            Said::Unattached(leases) => missing.push(Unattached { part, leases }),
        }
    }
    match (missing.is_empty(), conflict) {
        (false, _) => All::Unattached(missing),
        (true, true) => All::Conflict,
        (true, false) => All::Taken(taken),
    }
}

/// Gives up what `txn` has locked, or is about to, in the regions of `keys`. What cannot be told is left to time.
async fn release(regions: &Regions, txn: TxnId, keys: Vec<Bytes>, patience: Patience) {
    let op = region_request::Op::Release(ReleaseRequest { txn: Some(txn) });
    let op = &op;
    let told = keys.iter().map(|key| async move {
        let ask = Ask { anchor: key, within: |_: &_| true, op, kind: Kind::Read, any_replica: false };
        if let Err(why) = regions.ask(ask, patience).await {
            tracing::debug!(?why, "a region could not be told that a transaction gives up its locks");
        }
    });
    join_all(told).await;
}

fn key_range(range: &LockRange) -> KeyRange {
    KeyRange { start: range.start.clone(), end: range.end.clone() }
}

#[cfg(test)]
mod tests;
