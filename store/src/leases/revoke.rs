//! Carries out a revocation over regions: whatever keys a lease has, they go at one revision.
//!
//! ```text
//!   one region holds all the ranges ──► detach: it closes the lease and deletes the keys, in one entry ──► done
//!                │ no, or too much for an entry
//!                ▼
//!   ┌─► 1. close   every region, all at once: it attaches nothing more, and names the keys ── none ──────► done
//!   │   2. lock    the keys, or from the first to the last where they are many
//!   │   3. decide  what still has the lease under the locks goes ────────────────────────────────────────► done
//!   └────── anything moved, is in the way, or the outcome of 3 is not known
//! ```
//!
//! The lease's record is marked before and removed after, by its region's leader, who also repeats the whole until it is
//! done. Every step may be repeated: from 1 on the set of keys only shrinks, and what has happened is found gone. Dropping
//! the work gives its locks up, unless the decision is on its way.
//!
//! A key is deleted only if it still has the lease under its lock: between 1 and 2 others may have overwritten it, or
//! deleted it. If none is left then, the regions are asked again, because the answer's revision must not be older than what
//! those others were told.

use std::sync::Arc;

use braid_proto::error;
use braid_proto::id::RegionId;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{
    AttachedKeysRequest, AttachedKeysResponse, Change, DecideRequest, DecideResponse, DetachLeaseRequest,
    DetachLeaseResponse, LockRange, LockRead, Share, Wipe, region_request, region_response,
};
use braid_store_client::Regions;
use braid_store_client::deadline::Patience;
use braid_store_client::locks::{LockTerms, Locks, NotLocked, Part, Taken};
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::{self, Kind};
use braid_store_client::route::Route;
use braid_store_core::pipeline::LEASE_KEYS_AT_ONCE;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

/// Keys of one region up to which each is locked for itself: others go on with all the keys between.
pub const LISTED_KEYS_MAX: usize = 4_096;
/// The same over all regions: what is read under the locks is held in memory until the decision, values included.
const LISTED_KEYS_SUM_MAX: usize = 16_384;
/// Bytes of such keys over all regions: they travel with the locks and are written with them.
const LISTED_BYTES_MAX: usize = 4 << 20;
/// Regions that are asked to close a lease at the same time.
const CLOSED_AT_ONCE: usize = 64;

/// The revocation was not carried out in time, or a region answers what it must not. Nothing is lost: the keys that are
/// left are closed, and it may be tried again.
#[derive(Debug, Error)]
#[error("lease {lease:x} is not revoked after {attempts} attempts: {why}")]
pub struct NotDone {
    /// The lease.
    pub lease: i64,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why the last one failed.
    pub why: Status,
}

/// How an attempt failed.
enum Failed {
    /// Begin again: the reason for the metric, and for the caller if there is no time left.
    Again(&'static str, Status),
    /// There is more than can be listed: begin again with ranges.
    TooLarge,
    /// It would fail the same way again.
    With(Status),
}

/// A revocation that is under way.
struct Revocation<'a> {
    cluster: &'a Arc<Regions>,
    terms: &'a LockTerms,
    lease: i64,
    ranges: &'a [KeyRange],
    patience: Patience,
}

/// A region's part of the ranges.
struct Piece {
    region: RegionId,
    /// At least one, in key order.
    ranges: Vec<KeyRange>,
}

/// What a region has closed.
struct Closed {
    region: RegionId,
    keys: AttachedKeysResponse,
}

/// Deletes all keys of `lease`, which lie in `ranges` (in order, not overlapping, none of them empty), at one revision, and
/// answers a revision at which none of them is left: the one they went at, if that is known. 0: there are no ranges, and
/// nobody was asked. The lease's record must say that it is being revoked. `terms`: what this store has heard so far.
///
/// # Errors
/// See [`NotDone`].
pub async fn carry_out(
    cluster: &Arc<Regions>,
    terms: &LockTerms,
    lease: i64,
    ranges: &[KeyRange],
    patience: Patience,
) -> Result<i64, NotDone> {
    let Some(first) = ranges.first() else { return Ok(0) };
    let revocation = Revocation { cluster, terms, lease, ranges, patience };
    let not_done = |attempts, why| NotDone { lease, attempts, why };
    if let Some(revision) = revocation.detach(first).await.map_err(|why| not_done(1, why))? {
        return Ok(revision);
    }
    let (mut attempts, mut wide) = (0, false);
    loop {
        let (reason, why) = match revocation.attempt(wide).await {
            Ok(revision) => return Ok(revision),
            Err(Failed::Again(reason, why)) => (reason, why),
            Err(Failed::TooLarge) if !wide => {
                wide = true;
                ("too_large", Status::resource_exhausted("braid: the lease has more than can be listed"))
            }
            Err(Failed::TooLarge) => {
                let why = Status::resource_exhausted("braid: a region takes no range of the lease's keys");
                return Err(not_done(attempts + 1, why));
            }
            Err(Failed::With(why)) => return Err(not_done(attempts + 1, why)),
        };
        metrics::counter!("braid_store_lease_revocation_retries_total", "reason" => reason).increment(1);
        tracing::debug!(lease, attempts, reason, %why, "the revocation of a lease begins again");
        let pause = retry::pause(attempts);
        attempts += 1;
        if patience.is_over() {
            return Err(not_done(attempts, why));
        }
        sleep_until(patience.deadline.min(Instant::now() + pause)).await;
    }
}

impl Revocation<'_> {
    /// Has one region do it all. `None`: it does not hold all the ranges, or has more keys than one entry takes.
    async fn detach(&self, first: &KeyRange) -> Result<Option<i64>, Status> {
        let op = region_request::Op::DetachLease(DetachLeaseRequest { lease: self.lease });
        let within = |region: &KeyRange| self.ranges.iter().all(|range| region.contains_range(range));
        // Kind::Read: a second time it finds nothing.
        let ask = Ask { anchor: &first.start, within, op: &op, kind: Kind::Read, any_replica: false };
        match self.cluster.ask(ask, self.patience).await {
            Ok(region_response::Result::DetachLease(DetachLeaseResponse { revision })) => Ok(Some(revision)),
            Ok(other) => Err(unexpected(other)),
            Err(NoAnswer::Spread) => Ok(None),
            Err(NoAnswer::Failed(why)) => Err(why),
        }
    }

    /// Once around. `wide`: no keys are listed.
    async fn attempt(&self, wide: bool) -> Result<i64, Failed> {
        let closed = self.close().await?;
        let parts = parts(&closed, wide);
        if parts.is_empty() {
            return Ok(closed.iter().map(|closed| closed.keys.revision).max().unwrap_or_default());
        }
        let (locks, taken) = Locks::take(self.cluster, self.terms, &parts, self.patience).await?;
        let shares = match shares(self.lease, &parts, &taken) {
            Ok(shares) => shares,
            Err(why) => {
                locks.release(self.patience).await;
                return Err(Failed::With(why));
            }
        };
        if shares.iter().all(|share| share.changes.is_empty() && share.wipes.is_empty()) {
            locks.release(self.patience).await;
            return Err(Failed::Again("nothing_left", error::TIMEOUT.into()));
        }
        self.decide(locks, shares).await
    }

    /// Has every region close the lease, and gathers what it has.
    async fn close(&self) -> Result<Vec<Closed>, Failed> {
        let mut pieces = Vec::new();
        for range in self.ranges {
            let found = self.cluster.pieces(range, self.patience).await;
            pieces.extend(found.map_err(|why| Failed::Again("no_route", why))?);
        }
        let answers = by_region(pieces).into_iter().map(|piece| self.close_in(piece));
        let closed: Vec<Closed> = stream::iter(answers).buffered(CLOSED_AT_ONCE).try_collect().await?;
        // Two pieces may have come together in one region, which then answers twice.
        let filled: Vec<&AttachedKeysResponse> = closed.iter().map(|c| &c.keys).filter(|keys| keys.count > 0).collect();
        match filled.windows(2).all(|pair| pair[0].last < pair[1].first) {
            true => Ok(closed),
            false => Err(Failed::Again("moved", error::TIMEOUT.into())),
        }
    }

    async fn close_in(&self, piece: Piece) -> Result<Closed, Failed> {
        let op = region_request::Op::AttachedKeys(AttachedKeysRequest { lease: self.lease, close: true });
        let within = |region: &KeyRange| piece.ranges.iter().all(|range| region.contains_range(range));
        let anchor = &piece.ranges[0].start;
        let ask = Ask { anchor, within, op: &op, kind: Kind::Read, any_replica: false };
        match self.cluster.ask(ask, self.patience).await {
            Ok(region_response::Result::AttachedKeys(keys)) if keys.count <= 0 || bounded(&keys) => {
                Ok(Closed { region: piece.region, keys })
            }
            Ok(other) => Err(Failed::With(unexpected(other))),
            Err(NoAnswer::Spread) => Err(Failed::Again("split", error::TIMEOUT.into())),
            Err(NoAnswer::Failed(why)) => Err(Failed::Again("unanswered", why)),
        }
    }

    /// Hands the decision to the primary. From then on it is the primary's, whatever becomes of the answer.
    async fn decide(&self, mut locks: Locks, shares: Vec<Share>) -> Result<i64, Failed> {
        let primary = locks.primary().clone();
        let op = region_request::Op::Decide(DecideRequest { txn: Some(locks.txn()), shares });
        let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Write, any_replica: false };
        locks.decided();
        match self.cluster.ask(ask, self.patience).await {
            Ok(region_response::Result::Decide(DecideResponse { over: false, revision })) => Ok(revision),
            // The primary has given the transaction up, so that it never happens: nobody need wait to find out.
            Ok(region_response::Result::Decide(_)) => {
                locks.release(self.patience).await;
                Err(Failed::Again("over", error::TIMEOUT.into()))
            }
            Ok(other) => Err(Failed::With(unexpected(other))),
            Err(NoAnswer::Spread) => {
                locks.release(self.patience).await;
                Err(Failed::TooLarge)
            }
            // If it happens after all, what it deletes is found gone, or still locked until it is.
            Err(NoAnswer::Failed(why)) => Err(Failed::Again("unknown", why)),
        }
    }
}

impl From<NotLocked> for Failed {
    fn from(why: NotLocked) -> Self {
        match why {
            NotLocked::Again(reason) => Self::Again(reason, error::TIMEOUT.into()),
            NotLocked::TooLarge => Self::TooLarge,
            NotLocked::Answer(answer) => Self::With(unexpected(answer)),
            NotLocked::Failed(why) => Self::Again("not_locked", why),
            NotLocked::Unattached(leases) => {
                tracing::error!(?leases, "a region asks for leases that a revocation has not named");
                Self::With(Status::internal("braid: a region asks for leases that a revocation has not named"))
            }
        }
    }
}

/// Gathers pieces, which come in key order, by region: each is asked once.
fn by_region(pieces: Vec<(Arc<Route>, KeyRange)>) -> Vec<Piece> {
    let mut regions: Vec<Piece> = Vec::new();
    for (route, range) in pieces {
        match regions.last_mut().filter(|piece| piece.region == route.region) {
            Some(piece) => piece.ranges.push(range),
            None => regions.push(Piece { region: route.region, ranges: vec![range] }),
        }
    }
    regions
}

/// What is locked and read in each region that has keys: these, as long as they are few, and otherwise from the first to
/// the last.
fn parts(closed: &[Closed], wide: bool) -> Vec<Part> {
    let (mut listed, mut bytes) = (0, 0);
    let mut parts = Vec::new();
    for Closed { region, keys } in closed.iter().filter(|closed| closed.keys.count > 0) {
        let all_named = i64::try_from(keys.keys.len()) == Ok(keys.count);
        let count = listed + keys.keys.len();
        let size = bytes + keys.keys.iter().map(Bytes::len).sum::<usize>();
        let few = keys.keys.len() <= LISTED_KEYS_MAX && count <= LISTED_KEYS_SUM_MAX && size <= LISTED_BYTES_MAX;
        let count_only = wide || !all_named || !few;
        let ranges: Vec<KeyRange> = if count_only {
            vec![KeyRange { start: keys.first.clone(), end: KeyRange::single(keys.last.clone()).end }]
        } else {
            (listed, bytes) = (count, size);
            keys.keys.iter().cloned().map(KeyRange::single).collect()
        };
        let read = |range: &KeyRange| LockRead { start: range.start.clone(), end: range.end.clone(), count_only };
        let reads = ranges.iter().map(read).collect();
        let lock = |range: KeyRange| LockRange { start: range.start, end: range.end, exclusive: true };
        let ranges = ranges.into_iter().map(lock).collect();
        parts.push(Part { region: *region, ranges, reads, puts: false, attaches: Vec::new() });
    }
    parts
}

/// What goes under each lock, numbered in key order; many keys of one region go a few at a time. What a range has of other leases' keys, and of keys without one,
/// leaves gaps between the numbers.
fn shares(lease: i64, parts: &[Part], taken: &[Taken]) -> Result<Vec<Share>, Status> {
    let mut next = 0_u32;
    let mut shares = Vec::with_capacity(taken.len());
    for (part, lock) in parts.iter().zip(taken) {
        let mut share = Share { key: lock.key.clone(), token: Some(lock.token), ..Share::default() };
        if part.reads[0].count_only {
            let count: i64 = lock.data.iter().map(|data| data.count).sum();
            let wipe = |range: &KeyRange| {
                let KeyRange { start, end } = range.clone();
                Wipe { start, end, first_sub: next, lease }
            };
            share.wipes = lock.ranges.iter().filter(|_| count > 0).map(wipe).collect();
            next = u32::try_from(count).ok().and_then(|count| next.checked_add(count)).ok_or_else(too_many)?;
        } else {
            let kvs = lock.data.iter().flat_map(|data| &data.kvs).filter(|kv| kv.lease == lease);
            let many = kvs.clone().count() > LEASE_KEYS_AT_ONCE;
            for kv in kvs {
                let (key, supersedes) = (user_key(&kv.key), kv.mod_revision);
                if many {
                    let KeyRange { start, end } = KeyRange::single(key);
                    share.wipes.push(Wipe { start, end, first_sub: next, lease: 0 });
                } else {
                    share.changes.push(Change { key, supersedes, delete: true, ..Change::default() });
                    share.subs.push(next);
                }
                next = next.checked_add(1).ok_or_else(too_many)?;
            }
        }
        shares.push(share);
    }
    Ok(shares)
}

/// Whether an answer says where its keys begin and end.
fn bounded(keys: &AttachedKeysResponse) -> bool {
    !keys.first.is_empty() && keys.first <= keys.last
}

fn too_many() -> Status {
    Status::resource_exhausted("braid: the ranges of one lease hold more than 2^32 keys")
}

/// The error for an answer that does not belong to the question, or is an error itself.
fn unexpected(answer: region_response::Result) -> Status {
    match answer {
        region_response::Result::Error(error) => error.into(),
        other => {
            tracing::error!(?other, "a region answered another question than a revocation asked");
            Status::internal("braid: a region answered another question than it was asked")
        }
    }
}

#[cfg(test)]
mod tests;
