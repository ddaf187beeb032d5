//! What freezing, thawing and merging make of regions. Pure; `apply` carries it out, `absorb` knows what of it this host
//! has to keep.
//!
//! ```text
//!  source   freeze(E) ─────────────────────────────► gone, or thaw (proof: the target has left E without it)
//!  target   at epoch E ──► merge(E) or bump(E): whichever comes first in its log makes the other one void
//! ```
//!
//! All of it decides alike on every replica: from the region as applied, and from the entry.

use braid_proto::id::RegionId;
use braid_proto::pb::{Region, RegionEpoch};

use crate::meta::{Bump, Freeze, Merge, Thaw};

/// A frozen region: what it is to go into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The region that is to take it in.
    pub target: RegionId,
    /// The epoch at which that one may do so, and at no other.
    pub epoch: RegionEpoch,
}

/// Regions taken in that a region remembers; the oldest are forgotten. A peer that was left behind by more merges than that
/// has nobody any more whom it could mislead, but is for people to remove.
const ABSORBED_MAX: usize = 4096;

/// What a region has taken in that takes in `source`, with what that one had taken in: oldest first.
pub fn absorbed(mut target: Vec<u64>, mut source: Vec<u64>, id: u64) -> Vec<u64> {
    target.append(&mut source);
    target.push(id);
    target.drain(..target.len().saturating_sub(ABSORBED_MAX));
    target
}

/// Whether a region at `now` will never be at `then` again, having been there or not: neither number goes back.
pub fn is_past(now: RegionEpoch, then: RegionEpoch) -> bool {
    now.version > then.version || now.conf_ver > then.conf_ver
}

/// `region` after `freeze`, and what it is frozen for; or why it cannot be.
pub fn frozen(region: &Region, now: Option<Frozen>, freeze: &Freeze) -> Result<(Region, Frozen), String> {
    let target = freeze.target.as_ref().ok_or("a freeze names its target")?;
    let epoch = region.region_epoch();
    if (epoch.conf_ver, epoch.version) != (freeze.conf_ver, freeze.version) {
        return Err(format!("proposed under e{}.{}, the region is at {epoch}", freeze.conf_ver, freeze.version));
    }
    if let Some(now) = now {
        return Err(format!("the region is frozen for {} already", now.target));
    }
    if !RegionId(target.id).is_valid() || target.epoch.is_none() {
        return Err("the target needs an id and an epoch".to_owned());
    }
    check_pair(target, region)?;
    let frozen = Frozen { target: target.region_id(), epoch: target.region_epoch() };
    Ok((raised(region), frozen))
}

/// `region` after `thaw`, or why it stays frozen.
pub fn thawed(region: &Region, now: Option<Frozen>, thaw: &Thaw) -> Result<Region, String> {
    let proof = thaw.proof.as_ref().ok_or("a thaw names its proof")?;
    let now = now.ok_or("the region is not frozen")?;
    if proof.region_id() != now.target {
        return Err(format!("the region is frozen for {}, not for {}", now.target, proof.region_id()));
    }
    if !is_past(proof.region_epoch(), now.epoch) {
        return Err(format!("the target may still take it in: it is at {}", proof.region_epoch()));
    }
    if proof.range().overlaps(&region.range()) {
        return Err("the target has taken it in".to_owned());
    }
    Ok(raised(region))
}

/// `target` after `merge`, or why that does not happen.
pub fn merged(target: &Region, now: Option<Frozen>, merge: &Merge) -> Result<Region, String> {
    let source = merge.source.as_ref().ok_or("a merge names its source")?;
    let epoch = merge.epoch.unwrap_or_default();
    check_epoch(target, now, epoch)?;
    check_pair(target, source)?;
    let mut region = target.clone();
    if target.end == source.start && !target.end.is_empty() {
        region.end = source.end.clone();
    } else {
        region.start = source.start.clone();
    }
    let version = epoch.version.max(source.region_epoch().version) + 1;
    region.epoch = Some(RegionEpoch { version, ..epoch });
    Ok(region)
}

/// `region` after `bump`, or why that does not happen.
pub fn bumped(region: &Region, now: Option<Frozen>, bump: &Bump) -> Result<Region, String> {
    check_epoch(region, now, bump.epoch.unwrap_or_default())?;
    Ok(raised(region))
}

/// Refuses whatever a frozen region does not do.
pub fn refuse_frozen(now: Option<Frozen>) -> Result<(), String> {
    match now {
        Some(now) => Err(format!("the region is frozen, to go into {}", now.target)),
        None => Ok(()),
    }
}

fn check_epoch(region: &Region, now: Option<Frozen>, wanted: RegionEpoch) -> Result<(), String> {
    let epoch = region.region_epoch();
    if epoch != wanted {
        return Err(format!("meant for {wanted}, the region is at {epoch}"));
    }
    refuse_frozen(now)
}

/// Whether two regions can become one: side by side, and on the same stores with nothing but settled voters.
fn check_pair(target: &Region, source: &Region) -> Result<(), String> {
    if target.id == source.id {
        return Err("a region does not go into itself".to_owned());
    }
    for region in [target, source] {
        if region.is_joint() || region.peers.iter().any(|peer| peer.learner) {
            return Err(format!("{} has learners, or a change of its voters under way", region.region_id()));
        }
    }
    let left = !target.end.is_empty() && target.end == source.start;
    let right = !source.end.is_empty() && source.end == target.start;
    if !(left || right) {
        return Err("the regions do not lie side by side".to_owned());
    }
    let stores = |region: &Region| {
        let mut stores: Vec<u64> = region.peers.iter().map(|peer| peer.store_id).collect();
        stores.sort_unstable();
        stores
    };
    if target.peers.is_empty() || stores(target) != stores(source) {
        return Err("the regions are not on the same stores".to_owned());
    }
    Ok(())
}

fn raised(region: &Region) -> Region {
    let epoch = region.region_epoch();
    Region { epoch: Some(RegionEpoch { version: epoch.version + 1, ..epoch }), ..region.clone() }
}

#[cfg(test)]
mod tests;
