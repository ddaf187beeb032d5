//! Scatter: an operator wants some regions, for instance those of one prefix, spread over all stores at once.
//!
//! The wish is worked out when it is made: region by region, on the stores with the fewest peers and leaders of this
//! group so far, labels first. Each wish becomes one operator; when that has begun the wish is gone.

use std::collections::BTreeMap;

use braid_proto::id::{RegionId, StoreId};

use super::Config;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{Goal, View};

/// Wishes for these regions, instead of those that they had. Returns how many regions are to move.
///
/// # Errors
/// Why they cannot be scattered.
pub fn wish(view: &mut View, config: &Config, regions: &[RegionId]) -> Result<usize, String> {
    let stores: Vec<(StoreId, f64)> = view.in_service().map(|store| (store.id, store.weight)).collect();
    if stores.len() < config.replicas {
        return Err(format!("{} stores are in service, {} replicas need as many", stores.len(), config.replicas));
    }
    let mut peers: BTreeMap<StoreId, usize> = BTreeMap::new();
    let mut leaders: BTreeMap<StoreId, usize> = BTreeMap::new();
    let mut wishes = Vec::new();
    for id in regions {
        let Some(region) = view.region(*id) else { return Err(format!("there is no region {id}")) };
        let ranks: Vec<StoreId> = view.preference().order(*id).collect();
        let mut chosen: Vec<StoreId> = Vec::new();
        while chosen.len() < config.replicas {
            let share = |id: &StoreId, weight: f64, of: &BTreeMap<StoreId, usize>| {
                (of.get(id).copied().unwrap_or(0) as f64 * 1_000.0 / weight) as u64
            };
            let open = stores.iter().filter(|(id, _)| !chosen.contains(id));
            let best = open.min_by_key(|(store, weight)| {
                let moves = region.news.region.peer_on(*store).is_none();
                let rank = ranks.iter().position(|other| other == store);
                (view.crowding_added(&chosen, *store), share(store, *weight, &peers), moves, rank)
            });
            chosen.extend(best.map(|(id, _)| *id));
        }
        let fewest =
            |store: &&StoreId| (leaders.get(store).copied().unwrap_or(0), region.leader_store() != **store, **store);
        let leader = *chosen.iter().min_by_key(fewest).expect("at least one replica");
        chosen.iter().for_each(|store| *peers.entry(*store).or_default() += 1);
        *leaders.entry(leader).or_default() += 1;
        wishes.push((*id, Goal { stores: chosen, leader: Some(leader) }));
    }
    let before = view.wishes.len();
    view.wishes.extend(wishes);
    tidy(view);
    Ok(view.wishes.len().saturating_sub(before))
}

/// Forgets wishes that have come true or cannot any more.
pub fn tidy(view: &mut View) {
    let open = |id: &RegionId, goal: &Goal| {
        let Some(region) = view.region(*id) else { return false };
        let serves = |id: &StoreId| view.store(*id).is_some_and(|store| store.is_in_service());
        goal.stores.iter().all(serves) && Plan::towards(region, &goal.stores, goal.leader).is_some()
    };
    let kept = view.wishes.iter().filter(|(id, goal)| open(id, goal)).map(|(id, goal)| (*id, goal.clone())).collect();
    view.wishes = kept;
}

pub(super) fn propose(pass: &Pass) -> Proposal {
    let mut found = Findings::default();
    for (id, goal) in &pass.view.wishes {
        let region = pass.view.region(*id).filter(|region| region.is_free(pass.now_ms) && region.is_calm());
        let Some(plan) = region.and_then(|region| Plan::towards(region, &goal.stores, goal.leader)) else { continue };
        if found.take(pass.ready(plan, "an operator wants it scattered".to_owned()), pass.config.plans_per_round) {
            break;
        }
    }
    found.proposal("region", || match pass.view.wishes.len() {
        0 => "nobody wants regions scattered".to_owned(),
        left => format!("{left} regions are still to be scattered when they are well and free"),
    })
}
