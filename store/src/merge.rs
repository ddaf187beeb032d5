//! Merging two regions, as stores do it (`docs/decisions/0007-merges.md`): the source's leader sees its merge through, the target's
//! leader takes it in or gives it up, and everybody remembers for a while where the keys of an ended region are.
//!
//! ```text
//!  source's leader          target's leader                      stores of the source
//!    order: freeze
//!    drive ─── absorb ────►   epoch still E? ── frozen? ────────►  every replica
//!                               all are: drain, Merge   ◄────────
//!          ◄── absorbed ──      not all, in time: Bump
//!    thaw  ◄── its region ──
//! ```
//!
//! An answer of the target's is worth what its region says, whoever gives it and however late: `absorbed` if the keys are there,
//! and a reason to thaw if it has left the epoch without them ([`disproves`]).

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_host::{ChangeRefused, Frozen};
use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::key::KeyRange;
use braid_proto::pb::{
    AbsorbRequest, AbsorbResponse, EpochMismatch, FrozenRequest, FrozenResponse, Refusal, Region, RegionEpoch,
    RegionResponse, refusal as refused, region_request, region_response,
};
use braid_store_client::Regions as Cluster;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::Ask;
use braid_store_client::retry::{self, Kind};
use braid_store_core::pipeline::{Until, busy, not_found, unknown};
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::machine::Regions;
use crate::orders::barrier;
use crate::region::{Peers, RegionPeer, refusal};

/// Ended regions that a store remembers. Whoever comes later with the name of one asks placement.
const ENDED_MAX: usize = 1_024;
/// Merges in a row that a remembered region is followed through.
const CHAIN_MAX: usize = 16;
/// How long one attempt to have a region taken in may take.
const ABSORB_PATIENCE: Duration = Duration::from_secs(10);
/// How long the target's leader waits for the source's replicas to be frozen, and for its own work to drain: the source's
/// keys are served by nobody meanwhile.
const TARGET_PATIENCE: Duration = Duration::from_secs(3);
/// How long one replica may take to say whether it is frozen.
const FROZEN_PATIENCE: Duration = Duration::from_millis(500);
/// How long a proposal may take to be applied.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a source that is absorbed waits for its own store to come to that.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Attempts after which pauses are longest.
const LONG_PAUSES: u32 = 8;

/// Where the keys of regions are that have ended.
#[derive(Default)]
pub struct Ended(Mutex<VecDeque<(RegionId, Region)>>);

impl Ended {
    /// `source` has gone into another region, which was `merged` then.
    pub fn insert(&self, source: RegionId, merged: Region) {
        let mut ended = self.0.lock();
        ended.retain(|(id, _)| *id != source);
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back((source, merged));
    }

    /// What whoever asks for `region`, which has no peer here, is told.
    pub fn refusal(&self, peers: &Peers, region: RegionId) -> Refusal {
        let mut found = None;
        let mut id = region;
        for _ in 0..CHAIN_MAX {
            let Some(merged) = self.find(id) else { break };
            id = merged.region_id();
            found = Some(merged);
            if let Some(peer) = peers.get(&id) {
                found = Some((*peer.handle().region()).clone());
                break;
            }
        }
        match found {
            Some(region) => {
                Refusal { reason: Some(refused::Reason::EpochMismatch(EpochMismatch { current: vec![region] })) }
            }
            None => not_found(),
        }
    }

    fn find(&self, region: RegionId) -> Option<Region> {
        self.0.lock().iter().rev().find(|(id, _)| *id == region).map(|(_, merged)| merged.clone())
    }
}

/// Whether two regions are neighbours on the same voters, and nothing about their peers is under way: then one of them can go
/// into the other. Otherwise, why not.
pub fn check(source: &Region, target: &Region) -> Result<(), String> {
    let (id, into) = (source.region_id(), target.region_id());
    if id == into {
        return Err(format!("{id} cannot be merged with itself"));
    }
    let after = |left: &Region, right: &Region| !left.end.is_empty() && left.end == right.start;
    if !after(source, target) && !after(target, source) {
        return Err(format!("{id} and {into} are not neighbours"));
    }
    for region in [source, target] {
        if region.is_joint() || region.peers.iter().any(|peer| peer.learner) {
            return Err(format!("{} has a learner, or a change of its voters is under way", region.region_id()));
        }
    }
    let stores = |region: &Region| {
        let mut stores: Vec<u64> = region.peers.iter().map(|peer| peer.store_id).collect();
        stores.sort_unstable();
        stores
    };
    match stores(source) == stores(target) {
        true => Ok(()),
        false => Err(format!("{id} and {into} have their peers on different stores")),
    }
}

/// Whether `region` has the keys of `source`, which is frozen: something newer has them, so `source` went into that.
fn has_taken(region: &Region, source: &Region) -> bool {
    let newer = region.region_epoch().version > source.region_epoch().version;
    newer && region.id != source.id && region.range().contains_range(&source.range())
}

/// Whether `target`, as it is or was at some time, has left the epoch at which `source`, which is frozen for it, could go into
/// it, and seems to have done so without. Whether that is so, the source's host knows: it looks at the target's peer beside it.
fn disproves(target: &Region, frozen: &Frozen, source: &Region) -> bool {
    let apart = !target.range().overlaps(&source.range());
    target.region_id() == frozen.target && apart && is_past(target, frozen.epoch)
}

// ------------------------------------------------------------ the source's leader

/// Sees the merge of a frozen region through for as long as this peer leads it: until it is absorbed or thawed.
pub async fn drive(source: Weak<RegionPeer>) {
    let mut attempt = 0;
    loop {
        let Some(peer) = source.upgrade() else { return };
        match (peer.frozen_term(), peer.handle().frozen()) {
            (Some(term), Some(frozen)) => {
                let cluster = Arc::clone(&peer.shared().cluster);
                let region = (*peer.handle().region()).clone();
                let local = peer.neighbour(frozen.target).map(|target| (*target.handle().region()).clone());
                drop(peer);
                step(&source, &cluster, (term, frozen), region, local).await;
            }
            (Some(_), None) => drop(peer),
            (None, _) => {
                peer.leave_wheel();
                // It may have been elected since it was asked.
                if !peer.take_wheel() {
                    return;
                }
            }
        }
        tokio::time::sleep(retry::pause(attempt.min(LONG_PAUSES))).await;
        attempt += 1;
    }
}

/// One attempt. `local`: the target as this store has it.
async fn step(
    source: &Weak<RegionPeer>,
    cluster: &Cluster,
    (term, frozen): (Term, Frozen),
    region: Region,
    local: Option<Region>,
) {
    let patience = Patience::within(ABSORB_PATIENCE);
    let said = match anchor(cluster, &region, &frozen, local.as_ref(), patience).await {
        Some(anchor) => {
            let op = region_request::Op::Absorb(AbsorbRequest {
                source: Some(region.clone()),
                target_id: frozen.target.0,
                epoch: Some(frozen.epoch),
            });
            // Kind::Read: the target's epoch lets it count once.
            let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
            cluster.ask(ask, patience).await
        }
        None => {
            return tracing::warn!(source = %region.region_id(), target = %frozen.target, "nobody knows where the target is");
        }
    };
    let asked = match said {
        Ok(region_response::Result::Absorb(AbsorbResponse { target, absorbed: false })) => target,
        Ok(region_response::Result::Absorb(_)) => {
            if let Some(peer) = source.upgrade() {
                _ = timeout(END_PATIENCE, peer.destroyed()).await;
            }
            return;
        }
        other => {
            tracing::warn!(?other, source = %region.region_id(), target = %frozen.target, "a region is not taken in yet");
            None
        }
    };
    let Some(proof) = local.into_iter().chain(asked).find(|target| disproves(target, &frozen, &region)) else { return };
    let Some(peer) = source.upgrade() else { return };
    tracing::info!(source = %region.region_id(), target = %frozen.target, epoch = %proof.region_epoch(), "the merge is off");
    let (tell, told) = oneshot::channel();
    peer.handle().propose_thaw(term, proof, Box::new(move |ended| _ = tell.send(ended)));
    drop(peer);
    match timeout(PROPOSAL_PATIENCE, told).await {
        Ok(Ok(Ok(()))) => metrics::counter!("braid_merges_total", "outcome" => "thawed").increment(1),
        other => tracing::info!(?other, source = %region.region_id(), "a frozen region is not thawed yet"),
    }
}

/// A key of the target's.
async fn anchor(
    cluster: &Cluster,
    source: &Region,
    frozen: &Frozen,
    local: Option<&Region>,
    patience: Patience,
) -> Option<Bytes> {
    if let Some(target) = local {
        return Some(target.start.clone());
    }
    // This store has no replica of it any more, or not yet: it is one of the neighbours.
    if !source.end.is_empty() && cluster.find(&source.end, patience).await.is_ok_and(|r| r.region == frozen.target) {
        return Some(source.end.clone());
    }
    if source.start.is_empty() {
        return None;
    }
    let before = KeyRange { start: Bytes::new(), end: source.start.clone() };
    let (route, piece) = cluster.pieces(&before, patience).await.ok()?.pop()?;
    (route.region == frozen.target).then_some(piece.start)
}

// ------------------------------------------------------------ the target's leader

/// Takes a frozen neighbour in, or sees to it that this never happens.
pub async fn absorb(region: Arc<RegionPeer>, request: AbsorbRequest) -> RegionResponse {
    let source = request.source.unwrap_or_default();
    let epoch = request.epoch.unwrap_or_default();
    let answer = || {
        let target = (*region.handle().region()).clone();
        let absorbed = has_taken(&target, &source);
        RegionResponse {
            result: Some(region_response::Result::Absorb(AbsorbResponse { target: Some(target), absorbed })),
        }
    };
    let current = region.handle().region();
    // Facts, whoever knows them. A replica that lags behind the epoch knows none.
    if current.id != request.target_id || has_taken(&current, &source) || is_past(&current, epoch) {
        return answer();
    }
    let Some(term) = region.with(|pipeline, _| pipeline.leading()) else { return region.refuse_not_leader() };
    if current.region_epoch() != epoch {
        return refusal(busy("the region has not come to the epoch yet that the merge names"));
    }
    let given_up = match check(&source, &current) {
        Err(why) => Some(why),
        Ok(()) => {
            let wanted = (current.region_id(), epoch);
            let stores = source.peers.iter().map(|peer| frozen_on(&region, &source, StoreId(peer.store_id), wanted));
            let frozen = join_all(stores).await.into_iter().zip(&source.peers);
            let missing: Vec<u64> = frozen.filter(|(frozen, _)| !frozen).map(|(_, peer)| peer.store_id).collect();
            (!missing.is_empty()).then(|| format!("not frozen in time on stores {missing:?}"))
        }
    };
    if let Some(why) = given_up {
        return give_up(&region, &source, (term, epoch), &why, answer).await;
    }
    let (term, barrier) = match barrier(&region, Some(epoch), Until::Empty, TARGET_PATIENCE).await {
        Ok(drained) => drained,
        Err(refused) if refused.reason.as_ref().is_some_and(is_slow) => {
            return give_up(&region, &source, (term, epoch), "the target does not drain in time", answer).await;
        }
        Err(refused) if region.handle().region().region_epoch() == epoch => return refusal(refused),
        Err(_) => return answer(),
    };
    let (tell, told) = oneshot::channel();
    region.handle().propose_merge(term, source.clone(), Box::new(move |ended| _ = tell.send(ended)));
    match region.outcome(barrier, told, PROPOSAL_PATIENCE).await {
        Some(Ok(())) => {
            metrics::counter!("braid_merges_total", "outcome" => "merged").increment(1);
            answer()
        }
        Some(Err(ChangeRefused::Epoch)) => answer(),
        Some(Err(ChangeRefused::NotLeader)) => region.refuse_not_leader(),
        Some(Err(ChangeRefused::NotNow(why))) => refusal(busy(&why)),
        Some(Err(ChangeRefused::Invalid(why))) => give_up(&region, &source, (term, epoch), &why, answer).await,
        Some(Err(ChangeRefused::Unknown)) | None => refusal(unknown("the merge was proposed, and may still happen")),
    }
}

/// Whether a region has left `epoch` for a later one.
fn is_past(region: &Region, epoch: RegionEpoch) -> bool {
    let now = region.region_epoch();
    now.version > epoch.version || now.conf_ver > epoch.conf_ver
}

/// Whether a barrier could not be had for want of time.
fn is_slow(reason: &refused::Reason) -> bool {
    matches!(reason, refused::Reason::TimedOut(_))
}

/// Leaves the epoch at which the source could come in.
async fn give_up(
    region: &RegionPeer,
    source: &Region,
    (term, epoch): (Term, RegionEpoch),
    why: &str,
    answer: impl Fn() -> RegionResponse,
) -> RegionResponse {
    tracing::warn!(source = %source.region_id(), target = %region.id(), why, "a merge is given up");
    let (tell, told) = oneshot::channel();
    region.handle().propose_bump(term, epoch, Box::new(move |ended| _ = tell.send(ended)));
    match timeout(PROPOSAL_PATIENCE, told).await {
        Ok(Ok(Ok(()) | Err(ChangeRefused::Epoch))) => answer(),
        Ok(Ok(Err(ChangeRefused::NotLeader))) => region.refuse_not_leader(),
        Ok(Ok(Err(ChangeRefused::NotNow(why) | ChangeRefused::Invalid(why)))) => refusal(busy(&why)),
        Ok(Ok(Err(ChangeRefused::Unknown)) | Err(_)) | Err(_) => {
            refusal(unknown("the merge is being given up, but that is not certain yet"))
        }
    }
}

/// Whether the source's replica on `store` says in time that it is frozen for `wanted`.
async fn frozen_on(target: &RegionPeer, source: &Region, store: StoreId, wanted: (RegionId, RegionEpoch)) -> bool {
    let deadline = Instant::now() + TARGET_PATIENCE;
    let op = region_request::Op::Frozen(FrozenRequest {});
    let mut attempt = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let patience = Patience::within(left.min(FROZEN_PATIENCE));
        let cluster = &target.shared().cluster;
        match cluster.ask_store(store, source, &op, patience).await {
            Ok(region_response::Result::Frozen(said)) if said.frozen => {
                return (RegionId(said.target_id), said.epoch) == (wanted.0, Some(wanted.1));
            }
            other => tracing::debug!(?other, source = %source.region_id(), %store, "not frozen yet"),
        }
        tokio::time::sleep(retry::pause(attempt).min(left)).await;
        attempt += 1;
    }
}

// ------------------------------------------------------------ every replica of the source

/// Whether this replica is frozen.
pub fn frozen(region: &RegionPeer) -> RegionResponse {
    let said = region.handle().frozen().map_or_else(FrozenResponse::default, |frozen| FrozenResponse {
        frozen: true,
        target_id: frozen.target.0,
        epoch: Some(frozen.epoch),
    });
    RegionResponse { result: Some(region_response::Result::Frozen(said)) }
}

/// Whether some region that has a peer here is frozen for `region`.
pub fn is_awaited(regions: &Regions, region: RegionId) -> bool {
    regions.all().iter().any(|peer| peer.handle().frozen().is_some_and(|frozen| frozen.target == region))
}

#[cfg(test)]
mod tests;
