//! Scatter: an operator wants some regions, for instance those of one prefix, spread over all stores at once.
//!
//! The wish is worked out when it is made: region by region, on the stores with the fewest peers and leaders of this
//! group so far, labels first. Each wish becomes one operator; when that has begun the wish is gone.

use std::collections::BTreeMap;

use braid_proto::id::{RegionId, StoreId};

use super::Config;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{Goal, RegionView, View};

/// What a wish came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scattered {
    /// Regions that are to move.
    pub moving: usize,
    /// What happens to them and to the others, for people.
    pub said: String,
}

/// Wishes for these regions, instead of those that they had.
///
/// # Errors
/// Why they cannot be scattered.
pub fn wish(view: &mut View, config: &Config, regions: &[RegionId]) -> Result<Scattered, String> {
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
    let wished: Vec<RegionId> = wishes.iter().map(|(id, _)| *id).collect();
    view.wishes.extend(wishes);
    tidy(view);
    let moving: Vec<RegionId> = wished.iter().filter(|id| view.wishes.contains_key(*id)).copied().collect();
    let said = told(view, config, &wished, &moving);
    Ok(Scattered { moving: moving.len(), said })
}

/// What happens to regions that are to be scattered.
fn told(view: &View, config: &Config, wished: &[RegionId], moving: &[RegionId]) -> String {
    let stores = view.in_service().count();
    let wish = |id: &RegionId| view.wishes.get(id).zip(view.region(*id));
    let gains =
        |(goal, region): &(&Goal, &RegionView)| goal.stores.iter().any(|store| !region.voter_stores().contains(store));
    let replicas = moving.iter().filter_map(wish).filter(gains).count();
    let mut said = match (wished, moving) {
        ([], _) => return "there is no region in this range".to_owned(),
        ([one], []) => format!("{} stays where it is, {}", one, placed(view, *one)),
        (all, []) => {
            format!("all {} regions stay where they are: they are spread as scattering would spread them", all.len())
        }
        (all, _) => format!(
            "of {} regions {} get replicas on other stores, {} only another leader, {} stay where they are",
            all.len(),
            replicas,
            moving.len() - replicas,
            all.len() - moving.len()
        ),
    };
    if stores == config.replicas {
        said += &format!(
            "; {stores} stores are in service for {} replicas, so that only leaders can move",
            config.replicas
        );
    }
    said
}

/// Where a region is, and why that is as good a place as any.
fn placed(view: &View, id: RegionId) -> String {
    let Some(region) = view.region(id) else { return "as nobody has reported it".to_owned() };
    let stores = super::step::listed(&region.voter_stores());
    format!(
        "on {stores}, led by {}: one region alone is spread by its replicas, and no other stores keep them further apart",
        region.leader_store()
    )
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
        let Some(region) = pass.view.region(*id).filter(|region| region.goal.is_none()) else { continue };
        if let Some(why) = region.held(pass.now_ms).or_else(|| region.ailment(pass.view, region.voters().count())) {
            found.take(Err(why), pass.config.plans_per_round);
            continue;
        }
        let Some(plan) = Plan::towards(region, &goal.stores, goal.leader) else { continue };
        if found.take(pass.ready(plan, "an operator wants it scattered".to_owned()), pass.config.plans_per_round) {
            break;
        }
    }
    found.proposal("region", || match pass.view.wishes.len() {
        0 => "nobody wants regions scattered".to_owned(),
        left => format!("{left} regions are still to be scattered, and operators are under way on them"),
    })
}
