//! Balance of bytes: replicas move from full stores to empty ones, by weight, until they differ by less than the
//! tolerance.
//!
//! A move is made only if the giving store stays at least as full as the taking one: then the sum of squares of all
//! stores falls with every move, so that it ends. Of the regions that could move, one that prefers the taking store by
//! the ring goes first, and followers before leaders. Hot regions are left to the hot scheduler, so that the two do not
//! move the same region to and fro.

use braid_proto::id::{RegionId, StoreId};

use super::plan::Plan;
use super::scheduler::{Pass, Proposal};
use super::view::{RegionView, StoreView, around};
use super::{choose, hot};

/// Full stores tried in one pass.
const SOURCES_MAX: usize = 16;
/// Empty stores tried for each of them.
const TARGETS_MAX: usize = 8;
/// Regions of a store looked at in one pass.
const LOOKED_AT_MAX: usize = 48;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let (view, config) = (pass.view, pass.config);
    let mut stores: Vec<&StoreView> = view.in_service().collect();
    stores.sort_by(|a, b| b.fill().total_cmp(&a.fill()).then(a.id.cmp(&b.id)));
    let ([full, ..], [.., empty]) = (&stores[..], &stores[..]) else {
        return Proposal::nothing("no store is in service");
    };
    if full.id == empty.id {
        return Proposal::nothing("there is only one store in service");
    }
    let mean = choose::mean_fill(view);
    let (tolerated, apart) = (config.balance_tolerance * mean, full.fill() - empty.fill());
    let differ = differ("bytes", full.id, empty.id, apart, mean, config.balance_tolerance);
    if apart <= tolerated {
        return Proposal::nothing(differ);
    }
    let mut waits = None;
    for source in stores.iter().take(SOURCES_MAX) {
        let below = stores.iter().rev().filter(|target| source.fill() - target.fill() > tolerated);
        let looked_at: Vec<&RegionView> = movable(pass, source).collect();
        for target in below.take(TARGETS_MAX) {
            let Some(region) = best(pass, &looked_at, source, target) else { continue };
            let leader =
                (region.leader_store() == source.id).then(|| choose::next_leader(view, region, source.id)).flatten();
            let Some(plan) = Plan::replace(region, source.id, target.id, leader) else { continue };
            let why = format!("{} is {} fuller than {}", source.id, percent(source, target, mean), target.id);
            match pass.ready(plan, why) {
                Ok(plan) => return Proposal::one(plan),
                Err(why) => _ = waits.get_or_insert(why),
            }
        }
    }
    match waits {
        Some(why) => Proposal::waits(format!("{differ}; waits: {why}")),
        None => Proposal::nothing(format!("{differ}, but no region that may move now makes it less")),
    }
}

/// How far apart two stores are, in words.
pub(super) fn differ(what: &str, more: StoreId, less: StoreId, apart: f64, mean: f64, tolerance: f64) -> String {
    let (percent, tolerance_percent) = (if mean > 0.0 { apart / mean * 100.0 } else { 0.0 }, tolerance * 100.0);
    let compared = if percent <= tolerance_percent { "less" } else { "more" };
    format!(
        "{more} and {less} differ by {percent:.1} % in {what}, {compared} than the {tolerance_percent:.0} % tolerance"
    )
}

/// By how much of the mean one store holds more than another.
fn percent(more: &StoreView, less: &StoreView, mean: f64) -> String {
    format!("{:.0} %", (more.fill() - less.fill()) / mean * 100.0)
}

/// Regions with a voter on `source` that may move.
fn movable<'a>(pass: &Pass<'a>, source: &'a StoreView) -> impl Iterator<Item = &'a RegionView> {
    let pass = *pass;
    let regions = around(&source.replicas, pass.seed()).filter_map(move |id: RegionId| pass.view.region(id));
    let movable = regions.filter(move |region| {
        region.is_free(pass.now_ms)
            && region.is_calm()
            && region.voters().count() == pass.config.replicas
            && region.voters_well(pass.view) == pass.config.replicas
            && !hot::is_hot(pass.view, pass.config, region)
    });
    movable.take(LOOKED_AT_MAX)
}

fn best<'a>(pass: &Pass, regions: &[&'a RegionView], source: &StoreView, target: &StoreView) -> Option<&'a RegionView> {
    let fits = |region: &&&RegionView| {
        let bytes = region.weight_bytes() as f64;
        let evens = source.fill() - target.fill() >= bytes / source.weight + bytes / target.weight;
        evens
            && region.news.region.peer_on(target.id).is_none()
            && choose::accepts(target, region.news.bytes, pass.config).is_ok()
            && !crowds(pass, region, source.id, target.id)
    };
    let liking = |region: &&&RegionView| {
        let rank = |store| pass.view.preference().rank(region.id(), store) as i64;
        let follower = region.leader_store() != source.id;
        (rank(source.id) - rank(target.id), follower, region.news.bytes)
    };
    regions.iter().filter(fits).max_by_key(liking).copied()
}

/// Whether the region's replicas would be closer together after a move.
pub(super) fn crowds(pass: &Pass, region: &RegionView, from: StoreId, to: StoreId) -> bool {
    let staying: Vec<StoreId> = region.voter_stores().into_iter().filter(|store| *store != from).collect();
    pass.view.crowding_added(&staying, to) > pass.view.crowding_added(&staying, from)
}
