//! Which store a replica goes to. Deciding only; the same for every scheduler.
//!
//! 1. A store must accept it: heard just now, not draining, space left, no peer of the region.
//! 2. The least crowded ones by labels.
//! 3. Of those the ones that hold no more than their share, in the order of the ring; if all hold more, the emptiest.

use braid_proto::id::{RegionId, StoreId};

use super::Config;
use super::view::{RegionView, StoreView, View};

/// Whether a store takes so many bytes more.
///
/// # Errors
/// Why not.
pub fn accepts(store: &StoreView, bytes: u64, config: &Config) -> Result<(), String> {
    if !store.is_up() {
        return Err(format!("{} is not up", store.id));
    }
    if store.draining.is_some() {
        return Err(format!("{} is being drained", store.id));
    }
    if !store.is_fresh() {
        return Err(silent(store));
    }
    if !store.has_space(bytes, config.space_reserve) {
        let reserve = config.space_reserve * 100.0;
        return Err(format!("{} has no space above its reserve of {reserve:.0} %", store.id));
    }
    Ok(())
}

/// That a store has missed heartbeats, in words.
pub fn silent(store: &StoreView) -> String {
    format!("{} has not been heard for {} s", store.id, store.silent_ms / 1_000)
}

/// The store on which a replica of `region` joins those that stay.
///
/// # Errors
/// Why no store takes it, with a reason for each of them.
pub fn target(view: &View, config: &Config, region: &RegionView, staying: &[StoreId]) -> Result<StoreId, String> {
    let mut refused = Vec::new();
    let mut open: Vec<&StoreView> = Vec::new();
    for store in view.stores() {
        let voter = region.news.region.peer_on(store.id).is_some_and(|peer| !peer.learner);
        let learner_ill =
            region.news.region.peer_on(store.id).is_some_and(|peer| peer.learner && !region.is_well(view, peer));
        if voter || learner_ill || staying.contains(&store.id) {
            refused.push(format!("{} has a peer of it", store.id));
        } else if let Err(why) = accepts(store, region.news.bytes, config) {
            refused.push(why);
        } else {
            open.push(store);
        }
    }
    best(view, region.id(), staying, open)
        .ok_or_else(|| format!("no store takes a replica of {}: {}", region.id(), shortened(refused)))
}

/// The store on which a new region's next replica is created. Where nobody accepts it, on anyone: a cluster begins with
/// the stores that it has.
pub fn first(view: &View, config: &Config, region: RegionId, staying: &[StoreId]) -> Option<StoreId> {
    let free = || view.stores().filter(|store| !staying.contains(&store.id));
    let open = free().filter(|store| accepts(store, 0, config).is_ok()).collect();
    best(view, region, staying, open).or_else(|| best(view, region, staying, free().collect()))
}

/// Of stores that take a replica the one that is to have it; `None`: there are none.
fn best(view: &View, region: RegionId, staying: &[StoreId], mut open: Vec<&StoreView>) -> Option<StoreId> {
    let crowding = |store: &&StoreView| view.crowding_added(staying, store.id);
    let least = open.iter().map(crowding).min()?;
    open.retain(|store| crowding(store) == least);
    let mean = mean_fill(view);
    let roomy: Vec<StoreId> = open.iter().filter(|store| store.fill() <= mean).map(|store| store.id).collect();
    let preferred = view.preference().order(region).find(|id| roomy.contains(id));
    preferred.or_else(|| {
        let emptiest = open.iter().min_by(|a, b| a.fill().total_cmp(&b.fill()).then(a.id.cmp(&b.id)));
        emptiest.map(|store| store.id)
    })
}

/// What a store in service would hold for each unit of weight if all were even.
pub fn mean_fill(view: &View) -> f64 {
    mean(view, |store| store.planned.bytes)
}

/// The mean of something over the stores in service, for each unit of weight.
pub fn mean(view: &View, of: impl Fn(&StoreView) -> u64) -> f64 {
    let (sum, weight) = view.in_service().fold((0, 0.0), |(sum, weight), s| (sum + of(s), weight + s.weight));
    if weight > 0.0 { sum as f64 / weight } else { 0.0 }
}

/// The voter, of those that could lead, whose store would lead least.
pub fn next_leader(view: &View, region: &RegionView, not: StoreId) -> Option<StoreId> {
    let open = region.voter_stores().into_iter().filter(|id| *id != not && region.can_lead(view, *id));
    let open = open.filter_map(|id| view.store(id)).filter(|store| store.is_in_service() && store.is_fresh());
    open.min_by(|a, b| a.led().total_cmp(&b.led()).then(a.id.cmp(&b.id))).map(|store| store.id)
}

fn shortened(mut reasons: Vec<String>) -> String {
    const REASONS_MAX: usize = 5;
    if reasons.is_empty() {
        return "no store has joined".to_owned();
    }
    let left_out = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    let listed = reasons.join("; ");
    if left_out == 0 { listed } else { format!("{listed}; and {left_out} more like these") }
}
