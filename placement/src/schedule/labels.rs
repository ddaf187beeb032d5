//! Label placement: no two replicas of a region in one zone while zones allow, then racks, then hosts.
//!
//! Regions are kept by how crowded their replicas are. Those as good as stores allow are not looked at. One replica
//! moves at a time, and only if the region is less crowded afterwards, so that it ends.

use braid_proto::id::{RegionId, StoreId};

use super::choose;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{RegionView, around};

/// Regions looked at in one pass.
const LOOKED_AT_MAX: usize = 128;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let (view, config) = (pass.view, pass.config);
    if view.location_labels().is_empty() {
        return Proposal::nothing("no location labels are configured");
    }
    let best = best_possible(pass);
    let crowded = view.index().by_crowding.range(best + 1..).rev();
    let seed = pass.seed();
    let looked_at: Vec<RegionId> = crowded.flat_map(|(_, set)| around(set, seed)).take(LOOKED_AT_MAX).collect();
    let mut found = Findings::default();
    for id in &looked_at {
        let Some(region) = view.region(*id).filter(|region| region.is_free(pass.now_ms) && region.is_calm()) else {
            continue;
        };
        if region.voters().count() != config.replicas {
            continue;
        }
        let Some((from, to)) = better(pass, region) else { continue };
        let Some(plan) = Plan::replace(region, from, to, None) else { continue };
        let why = format!("{from} is closer to its other replicas than {to} would be");
        if found.take(pass.ready(plan, why), config.plans_per_round) {
            break;
        }
    }
    found.proposal("region", || idle(pass, looked_at.len()))
}

fn idle(pass: &Pass, crowded: usize) -> String {
    let labels = pass.view.location_labels();
    let is_labelled = |label: &String| pass.view.in_service().any(|store| store.labels.contains_key(label));
    if !labels.iter().any(is_labelled) {
        return format!("no store has a label {}", labels.join(" or "));
    }
    match crowded {
        0 => format!("replicas are as far apart by {} as stores allow", labels.join(", ")),
        _ => "no store takes a replica of the regions that are closer than need be".to_owned(),
    }
}

/// The move of one replica after which a region is least crowded; `None` if none helps.
fn better(pass: &Pass, region: &RegionView) -> Option<(StoreId, StoreId)> {
    let voters = region.voter_stores();
    let moves = voters.iter().filter_map(|from| {
        let staying: Vec<StoreId> = voters.iter().filter(|store| *store != from).copied().collect();
        let now = pass.view.crowding_added(&staying, *from);
        let to = choose::target(pass.view, pass.config, region, &staying).ok()?;
        let then = pass.view.crowding_added(&staying, to);
        (then < now).then(|| (now - then, *from, to))
    });
    moves.max_by_key(|(gain, from, _)| (*gain, *from)).map(|(_, from, to)| (from, to))
}

/// How crowded a region is at least, on the stores in service.
fn best_possible(pass: &Pass) -> u64 {
    let view = pass.view;
    let open: Vec<StoreId> = view.in_service().map(|store| store.id).collect();
    let mut chosen: Vec<StoreId> = Vec::new();
    while chosen.len() < pass.config.replicas.min(open.len()) {
        let left = open.iter().filter(|id| !chosen.contains(id));
        chosen.extend(left.min_by_key(|id| view.crowding_added(&chosen, **id)));
    }
    view.crowding(&chosen)
}
