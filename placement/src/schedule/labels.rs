//! Label placement: no two replicas of a region in one zone while zones allow, then racks, then hosts.
//!
//! Regions are kept by how crowded their replicas are. Those as good as stores allow are not looked at. One replica
//! moves at a time, and only if the region is less crowded afterwards, so that it ends.

use std::collections::BTreeSet;

use braid_proto::id::{RegionId, StoreId};

use super::choose;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{RegionView, StoreView, around};

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
        let Some(region) = view.region(*id) else { continue };
        let Some((from, to)) = better(pass, region) else { continue };
        if let Some(why) = region.held(pass.now_ms).or_else(|| region.ailment(view, config.replicas)) {
            // What is under way may be just the move.
            if region.goal.is_none() {
                found.take(Err(why), config.plans_per_round);
            }
            continue;
        }
        let Some(plan) = Plan::replace(region, from, to, None) else { continue };
        let why = format!("{from} is closer to its other replicas than {to} would be");
        if found.take(pass.ready(plan, why), config.plans_per_round) {
            break;
        }
    }
    let proposal = found.proposal("region", || idle(pass, &looked_at));
    let crowded = looked_at.iter().filter_map(|id| view.region(*id)).any(|region| region.goal.is_none());
    Proposal { stays: crowded && !proposal.wants(), ..proposal }
}

fn idle(pass: &Pass, crowded: &[RegionId]) -> String {
    let (view, labels) = (pass.view, pass.view.location_labels());
    let has = |label: &String| view.in_service().any(|store| store.labels.contains_key(label));
    let Some(widest) = labels.iter().find(|label| has(label)) else {
        return format!("no store has a label {}", labels.join(" or "));
    };
    let lacking: Vec<String> = view
        .in_service()
        .filter(|store| !store.labels.contains_key(widest))
        .map(|store| store.id.to_string())
        .collect();
    let lacking = match lacking.is_empty() {
        true => String::new(),
        false => format!("; {} without a label {widest} count as one place", lacking.join(", ")),
    };
    if let Some(region) = crowded.iter().filter_map(|id| view.region(*id)).find(|region| region.goal.is_none()) {
        let refused = refused(pass, region).unwrap_or_else(|| "no single move helps".to_owned());
        return format!(
            "no store takes a replica of {} regions that are closer together than need be: {refused}{lacking}",
            crowded.len()
        );
    }
    let places: BTreeSet<Option<&String>> = view.in_service().map(|store| store.labels.get(widest)).collect();
    let few = match places.len() < pass.config.replicas {
        true => format!(" ({} places by {widest} for {} replicas)", places.len(), pass.config.replicas),
        false => String::new(),
    };
    format!("replicas are as far apart by {} as stores allow{few}{lacking}", labels.join(", "))
}

/// A store that would be a better place for one of a region's replicas, and why it does not take it.
fn refused(pass: &Pass, region: &RegionView) -> Option<String> {
    let voters = region.voter_stores();
    let moves = voters.iter().flat_map(|from| {
        let staying: Vec<StoreId> = voters.iter().filter(|store| *store != from).copied().collect();
        let now = pass.view.crowding_added(&staying, *from);
        let less = move |to: &&StoreView| pass.view.crowding_added(&staying, to.id) < now;
        pass.view.in_service().filter(|to| region.news.region.peer_on(to.id).is_none()).filter(less)
    });
    let mut refusals = moves.filter_map(|to| choose::accepts(to, region.news.bytes, pass.config).err());
    refusals.next()
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
