//! Taking the locks of a transaction, and giving them up.
//!
//! 1. Everything is tried at once. That waits for nobody, so it cannot be part of a deadlock. The primary's lock, the lowest
//!    key's, is the transaction's record; it names the term of the leader that must take it, because somebody who meets
//!    another lock first may ask that leader for the record and be told that there is none, which is final.
//! 2. If somebody is in the way, or that term is not known or over, all is given up and begun again in order: the primary
//!    first (rule M3), then all others at once; and if somebody is still in the way, all is given up once more and locked
//!    one after the other in key order, waiting. Everybody waits in that order, so no circle of waiting can close. Each
//!    time under a new id, so that a release that comes late finds nothing.
//!
//! Meanwhile the primary is told that somebody is still at work.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::RegionId;
use braid_proto::key::KeyRange;
use braid_proto::pb::{
    HoldRequest, LockRequest, LockResponse, LockToken, LockedData, ReleaseRequest, TxnId, region_request,
    region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use bytes::Bytes;
use futures::future::join_all;
use tokio::task::JoinHandle;

use super::plan::Part;
use super::{Failed, too_large};
use crate::kv::unexpected;
use crate::shared::Shared;

/// Between two signs of life: a sixth of what a primary waits for.
const HOLD_INTERVAL: Duration = Duration::from_millis(500);
/// How long giving up is tried; after it the locks are given up by themselves.
const RELEASE_PATIENCE: Duration = Duration::from_secs(3);

/// A lock that was taken, and what lies under it.
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

/// The locks of one attempt. Dropping it gives them up, unless the transaction was decided.
pub struct Locks {
    shared: Arc<Shared>,
    txn: TxnId,
    primary: Bytes,
    /// A key of each region that was asked, the primary first.
    asked: Vec<Bytes>,
    decided: bool,
    holding: Option<JoinHandle<()>>,
}

/// What is asked of each region, beside its ranges.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Only counts are read.
    pub count_only: bool,
    /// The transaction may put keys.
    pub puts: bool,
}

impl Locks {
    /// Locks all `parts`, which are in key order; at least one.
    pub async fn take(
        shared: &Arc<Shared>,
        parts: &[Part],
        wanted: Wanted,
        patience: Patience,
    ) -> Result<(Self, Vec<Taken>), Failed> {
        let region = parts[0].route.region;
        let term = shared.lock_terms.get(&region).map(|term| *term);
        if let Some(term) = term.filter(|_| parts.len() > 1) {
            let mut locks = Self::new(shared, parts);
            locks.asked = parts.iter().map(|part| part.key().clone()).collect();
            let primary = (region.0, term);
            let tries = parts.iter().zip(std::iter::once(primary).chain(std::iter::repeat((0, 0))));
            let tried = join_all(tries.map(|(part, primary)| locks.ask(part, wanted, primary, false, patience))).await;
            let taken: Result<Vec<_>, Failed> = tried.into_iter().collect();
            if let Some(taken) = taken?.into_iter().collect::<Option<Vec<Taken>>>() {
                locks.hold();
                return Ok((locks, taken));
            }
            locks.conflicted(patience).await;
        }
        match Self::take_primary_first(shared, parts, wanted, patience).await? {
            Some(taken) => Ok(taken),
            None => Self::take_in_order(shared, parts, wanted, patience).await,
        }
    }

    /// The primary, and then all others at once. `None`: somebody is in the way, and all is given up.
    async fn take_primary_first(
        shared: &Arc<Shared>,
        parts: &[Part],
        wanted: Wanted,
        patience: Patience,
    ) -> Result<Option<(Self, Vec<Taken>)>, Failed> {
        let mut locks = Self::new(shared, parts);
        let mut taken = Vec::with_capacity(parts.len());
        let primary = locks.wait_for(&parts[0], wanted, patience).await?;
        shared.lock_terms.insert(RegionId(primary.token.region_id), primary.token.term);
        taken.push(primary);
        locks.hold();
        let tries = parts[1..].iter().map(|part| locks.ask(part, wanted, (0, 0), false, patience));
        let tried = join_all(tries).await;
        locks.asked.extend(parts[1..].iter().map(|part| part.key().clone()));
        for answer in tried {
            match answer? {
                Some(lock) => taken.push(lock),
                None => break,
            }
        }
        if taken.len() < parts.len() {
            locks.conflicted(patience).await;
            return Ok(None);
        }
        Ok(Some((locks, taken)))
    }

    /// One after the other, waiting.
    async fn take_in_order(
        shared: &Arc<Shared>,
        parts: &[Part],
        wanted: Wanted,
        patience: Patience,
    ) -> Result<(Self, Vec<Taken>), Failed> {
        let mut locks = Self::new(shared, parts);
        let mut taken = Vec::with_capacity(parts.len());
        for part in parts {
            taken.push(locks.wait_for(part, wanted, patience).await?);
            if taken.len() == 1 {
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

    fn new(shared: &Arc<Shared>, parts: &[Part]) -> Self {
        Self {
            shared: Arc::clone(shared),
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
        release(&self.shared, self.txn, std::mem::take(&mut self.asked), patience).await;
    }

    async fn wait_for(&mut self, part: &Part, wanted: Wanted, patience: Patience) -> Result<Taken, Failed> {
        if !self.asked.contains(part.key()) {
            self.asked.push(part.key().clone());
        }
        self.ask(part, wanted, (0, 0), true, patience).await?.ok_or(Failed::Again("conflict"))
    }

    /// `None`: somebody is in the way. `beside`: region and term in which the primary must be taken, if this is it and the
    /// others do not wait for it; zeros otherwise.
    async fn ask(
        &self,
        part: &Part,
        wanted: Wanted,
        beside: (u64, u64),
        wait: bool,
        patience: Patience,
    ) -> Result<Option<Taken>, Failed> {
        let reads = part.reads(wanted.count_only);
        let op = region_request::Op::Lock(LockRequest {
            txn: Some(self.txn),
            primary: self.primary.clone(),
            ranges: part.ranges.clone(),
            reads,
            wait,
            puts: wanted.puts,
            primary_region: beside.0,
            primary_term: beside.1,
            attaches: Vec::new(),
        });
        let within = |range: &KeyRange| part.lies_in(range);
        // Kind::Write: a second lock of the same transaction would wait for the first.
        let ask = Ask { anchor: part.key(), within, op: &op, kind: Kind::Write, any_replica: false };
        match self.shared.regions.ask(ask, patience).await {
            Ok(region_response::Result::Lock(LockResponse { conflict: true, .. })) => Ok(None),
            Ok(region_response::Result::Lock(LockResponse { token: Some(token), data, .. })) => {
                let range = |r: &braid_proto::pb::LockRange| KeyRange { start: r.start.clone(), end: r.end.clone() };
                let ranges = part.ranges.iter().map(range).collect();
                Ok(Some(Taken { key: part.key().clone(), ranges, token, data }))
            }
            Ok(other) => Err(unexpected(other).into()),
            // The region was split since it was looked up, or there is too much to read.
            Err(NoAnswer::Spread) => match self.shared.regions.find(part.key(), patience).await {
                Ok(route) if part.lies_in(&route.range) => Err(too_large().into()),
                Ok(_) => Err(Failed::Again("split")),
                Err(status) => Err(status.into()),
            },
            Err(NoAnswer::Failed(status)) => Err(status.into()),
        }
    }

    /// Tells the primary now and then that somebody is at work.
    fn hold(&mut self) {
        let (shared, txn, primary) = (Arc::clone(&self.shared), self.txn, self.primary.clone());
        self.holding = Some(tokio::spawn(async move {
            let op = region_request::Op::Hold(HoldRequest { txn: Some(txn) });
            loop {
                tokio::time::sleep(HOLD_INTERVAL).await;
                let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
                let answer = shared.regions.ask(ask, Patience::within(HOLD_INTERVAL)).await;
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
            let (shared, txn, asked) = (Arc::clone(&self.shared), self.txn, std::mem::take(&mut self.asked));
            tokio::spawn(async move { release(&shared, txn, asked, Patience::within(RELEASE_PATIENCE)).await });
        }
    }
}

/// Gives up what `txn` has locked, or is about to, in the regions of `keys`. What cannot be told is left to time.
async fn release(shared: &Shared, txn: TxnId, keys: Vec<Bytes>, patience: Patience) {
    let op = region_request::Op::Release(ReleaseRequest { txn: Some(txn) });
    let op = &op;
    let told = keys.iter().map(|key| async move {
        let ask = Ask { anchor: key, within: |_: &_| true, op, kind: Kind::Read, any_replica: false };
        if let Err(why) = shared.regions.ask(ask, patience).await {
            tracing::debug!(?why, "a region could not be told that a transaction gives up its locks");
        }
    });
    join_all(told).await;
}
