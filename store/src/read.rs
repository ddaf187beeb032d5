//! Reads of one region (rules Q1, Q2).
//!
//! 1. Take a bound R after the request has arrived, unless the caller brought one for a read over many regions.
//! 2. Note which in-flight writes at or below R touch the range, and wait until they are applied. What a transaction over
//!    several regions holds is waited for too, or its primary is asked whether it may have happened at or below R.
//! 3. Read at R (or at the older revision the client named).
//! 4. Check that compaction has not overtaken R meanwhile; if it has, and the client named no revision, begin again with a
//!    new R (rule Q5).
//! 5. Check the lease of the term in which all that happened; without a lease, ask a quorum.
//!
//! A serializable read takes none of these steps: it answers at the frontier of this replica ([`crate::frontier`]).

use std::sync::Arc;
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use braid_proto::id::Term;
use braid_proto::key::KeyRange;
use braid_proto::pb::{ReadRequest, RegionEpoch, RegionResponse, region_response};
use braid_store_core::epoch;
use braid_store_core::pipeline::{Blocker, Woken, busy, timed_out};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::engine::Unread;
use crate::frontier;
use crate::multi;
use crate::region::{RegionPeer, etcd_error, refusal};

/// Keys a read may return before it moves off the thread that serves connections.
const INLINE_KEYS_MAX: i64 = 256;

/// How long a read waits for a lock to go before it asks the primary: most are gone by then.
const LOCK_PATIENCE: Duration = Duration::from_millis(10);

/// Serves one read.
pub async fn read(region: Arc<RegionPeer>, request: ReadRequest, epoch: RegionEpoch) -> RegionResponse {
    let ReadRequest { range: Some(range), read_at } = request else {
        return etcd_error(error::EMPTY_KEY);
    };
    if region.is_damaged() {
        return etcd_error(error::CORRUPT);
    }
    let span = KeyRange::user(&range.key, &range.range_end);
    if let Some(refused) = wrong_region(&region, &span, epoch) {
        return refused;
    }
    if range.serializable {
        return serializable(region, range, read_at, span).await;
    }
    loop {
        match linearizable(&region, &range, read_at, &span, epoch).await {
            Answer::Done(answer) => return answer,
            // A bound of its own that was overtaken. Taking the next one ends it sooner or later: compaction never gets
            // ahead of the revisions that are given out.
            Answer::Overtaken if range.revision == 0 && read_at == 0 => {}
            Answer::Overtaken => return etcd_error(error::COMPACTED),
        }
    }
}

/// How an attempt at a read ended.
enum Answer {
    Done(RegionResponse),
    /// What it needed may be compacted.
    Overtaken,
}

impl From<RegionResponse> for Answer {
    fn from(answer: RegionResponse) -> Self {
        Self::Done(answer)
    }
}

async fn linearizable(
    region: &Arc<RegionPeer>,
    range: &RangeRequest,
    read_at: i64,
    span: &KeyRange,
    epoch: RegionEpoch,
) -> Answer {
    let Some(term) = region.with(|pipeline, _| pipeline.leading()) else {
        return region.refuse_not_leader().into();
    };
    let (bound, compacted) = match read_at {
        0 => match bound(region).await {
            Ok(bound) => bound,
            Err(refused) => return refused.into(),
        },
        given => (given, 0),
    };
    let revision = if range.revision > 0 { range.revision } else { bound };
    if revision > bound {
        return etcd_error(error::FUTURE_REVISION).into();
    }
    if range.revision > 0 && range.revision < compacted.max(region.data().boundary()) {
        return Answer::Overtaken;
    }
    let Some(wiped) = out_of_the_way(region, span, (revision, term), true).await else {
        return region.refuse_not_leader().into();
    };
    if let Some(refused) = wrong_region(region, span, epoch) {
        return refused.into();
    }
    match collect(region, range, span, (revision, bound), wiped).await {
        Ok(answer) => judged(region, term, answer).await.into(),
        Err(answer) => answer,
    }
}

/// The refusal, if `span` does not lie in the region, the region is cut otherwise than at `epoch`, or it is frozen.
pub fn wrong_region(region: &RegionPeer, span: &KeyRange, epoch: RegionEpoch) -> Option<RegionResponse> {
    if let Some(refused) = region.unserved() {
        return Some(refusal(refused));
    }
    let current = region.handle().region();
    let right = epoch::serves(&current, epoch) && current.range().contains_range(span);
    // A merge gives the region its name before its data.
    if right && !region.data().covers(span) {
        return Some(refusal(busy("the region is just being merged")));
    }
    (!right).then(|| refusal(region.with(|pipeline, _| pipeline.epoch_mismatch())))
}

async fn bound(region: &RegionPeer) -> Result<(i64, i64), RegionResponse> {
    let (tell, told) = oneshot::channel();
    region.shared().numbers.request(0, Box::new(move |answer| _ = tell.send(answer)));
    match told.await {
        Ok(Ok(block)) => Ok((block.base, block.compacted)),
        Ok(Err(error)) => Err(refusal(timed_out(&error.to_string()))),
        Err(_) => Err(refusal(timed_out("the sequencer's client has stopped"))),
    }
}

/// Waits until nothing that may have happened at or below `revision` is under way in `span`. Returns what is gone at that
/// revision and not wiped yet, which nobody waits for if `masked`; `None`: leadership was lost.
///
/// What is in flight and what is locked are noted at one moment. Without a lock that is all: whatever comes later has a
/// greater revision. A lock that goes may leave something in flight that was not noted, so after one all is noted again;
/// locks that come later have a floor that is not below the revision, so this ends.
pub async fn out_of_the_way(
    region: &Arc<RegionPeer>,
    span: &KeyRange,
    (revision, term): (i64, Term),
    masked: bool,
) -> Option<Vec<KeyRange>> {
    loop {
        let noted = region.with(|pipeline, effects| {
            if pipeline.leading() != Some(term) {
                return Err(());
            }
            let locked = pipeline.locked(span, revision, masked);
            let wiped = pipeline.wiped(span, revision);
            let (tell, told) = oneshot::channel();
            match (&locked, pipeline.in_flight(span, revision)) {
                (None, None) => return Ok((wiped, None)),
                (Some(Blocker::InFlight(seq)), _) => pipeline.wait_applied(*seq, tell, effects),
                (None, Some(seq)) => pipeline.wait_applied(seq, tell, effects),
                (Some(Blocker::Lock { token, .. }), _) => pipeline.wait_unlocked(*token, tell, effects),
            }
            Ok((wiped, Some((locked, told))))
        });
        let (wiped, locked, told) = match noted {
            Err(()) => return None,
            Ok((wiped, None)) => return Some(wiped),
            Ok((wiped, Some((locked, told)))) => (wiped, locked, told),
        };
        match locked {
            None | Some(Blocker::InFlight(_)) => match told.await.unwrap_or(Woken::Lost) {
                Woken::Applied if locked.is_none() => return Some(wiped),
                Woken::Applied | Woken::Again => {}
                Woken::Lost => return None,
            },
            Some(Blocker::Lock { token, txn, primary }) => match timeout(LOCK_PATIENCE, told).await {
                Ok(Ok(Woken::Applied | Woken::Again)) => {}
                Ok(Ok(Woken::Lost) | Err(_)) => return None,
                Err(_) => multi::ask(region, multi::Question { token, txn, primary, read_at: revision }).await,
            },
        }
    }
}

async fn serializable(region: Arc<RegionPeer>, range: RangeRequest, read_at: i64, span: KeyRange) -> RegionResponse {
    loop {
        // A raft snapshot replaces the data step by step: what is read meanwhile is neither the old nor the new.
        let Some(replaced) = region.handle().replacements() else {
            return refusal(busy("this replica's data is being replaced"));
        };
        let applied = frontier::here(&region);
        let asked = range.revision.max(read_at);
        if asked > applied {
            // Who asked goes on to the leader before the client hears this.
            return etcd_error(error::FUTURE_REVISION);
        }
        if range.revision > 0 && range.revision < region.data().boundary() {
            return etcd_error(error::COMPACTED);
        }
        let revision = match range.revision {
            named if named > 0 => named,
            _ if read_at > 0 => read_at,
            _ => applied,
        };
        match collect(&region, &range, &span, (revision, applied), Vec::new()).await {
            // What was read may have been half deleted.
            _ if region.is_gone() => return refusal(region.ended()),
            Ok(_) if region.handle().replacements() != Some(replaced) => {}
            Ok(answer) => return RegionResponse { result: Some(region_response::Result::Range(answer)) },
            Err(Answer::Done(refused)) => return refused,
            Err(Answer::Overtaken) if asked > 0 => return etcd_error(error::COMPACTED),
            // What was applied since lets the next one read at a newer revision. A replica that stands still below the
            // boundary, behind a lock or with nothing to apply, cannot serve this (rule Q4): its caller comes again.
            Err(Answer::Overtaken) if frontier::here(&region) > applied => {}
            Err(Answer::Overtaken) => return refusal(busy("this replica is behind what has been compacted")),
        }
    }
}

/// Reads at `revision`, without the keys of `gone`; `now` is what the header says.
async fn collect(
    region: &Arc<RegionPeer>,
    range: &RangeRequest,
    span: &KeyRange,
    (revision, now): (i64, i64),
    gone: Vec<KeyRange>,
) -> Result<RangeResponse, Answer> {
    let single = range.range_end.is_empty();
    let small = range.limit > 0 && range.limit <= INLINE_KEYS_MAX;
    let read = if single || small {
        region.data().read_range(range, span, revision, &gone)
    } else {
        let (region, range, span) = (Arc::clone(region), range.clone(), span.clone());
        let read = tokio::task::spawn_blocking(move || region.data().read_range(&range, &span, revision, &gone)).await;
        read.map_err(|error| refusal(timed_out(&format!("the read was given up: {error}"))))?
    };
    match read {
        Ok(mut answer) => {
            answer.header = Some(ResponseHeader { revision: now, ..Default::default() });
            Ok(answer)
        }
        Err(Unread::Compacted) => Err(Answer::Overtaken),
        Err(Unread::Damaged(damage)) => {
            region.poison(&damage.0);
            Err(etcd_error(error::CORRUPT).into())
        }
    }
}

/// The answer, if this peer still leads `term` (rule Q2: lease and term last).
async fn judged(region: &RegionPeer, term: Term, answer: RangeResponse) -> RegionResponse {
    region.judged(term, region_response::Result::Range(answer)).await
}
