//! Balance of bytes: replicas move from full stores to empty ones, by weight, until they differ by less than the
//! tolerance.
//!
//! A move is made only if the giving store stays at least as full as the taking one: then the sum of squares of all
//! stores falls with every move, so that it ends. Of the regions that could move, one that prefers the taking store by
//! the ring goes first, and followers before leaders. Hot regions are left to the hot scheduler, so that the two do not
//! move the same region to and fro.

use std::collections::BTreeMap;

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
    let waits = waits.or_else(|| passing(pass, &stores, tolerated));
    match waits {
        Some(why) => Proposal::waits(format!("{differ}; waits: {why}")),
        None => Proposal::stays(format!("{differ}, and that stays so: {}", stays(pass, full, empty))),
    }
}

/// Why a region that would make stores more even does not move now, if that passes.
fn passing(pass: &Pass, stores: &[&StoreView], tolerated: f64) -> Option<String> {
    for source in stores.iter().take(SOURCES_MAX) {
        let below = stores.iter().rev().filter(|target| source.fill() - target.fill() > tolerated);
        let below: Vec<&&StoreView> = below.take(TARGETS_MAX).collect();
        for region in around(&source.replicas, pass.seed()).take(LOOKED_AT_MAX).filter_map(|id| pass.view.region(id)) {
            let held = region.held(pass.now_ms).or_else(|| region.ailment(pass.view, pass.config.replicas));
            for target in &below {
                match (bar(pass, region, source, target), &held) {
                    (None | Some(Bar::Silent), Some(why)) => return Some(why.clone()),
                    (Some(Bar::Silent), None) => return Some(choose::silent(target)),
                    _ => {}
                }
            }
        }
    }
    None
}

/// Why no region of the fullest store goes to the emptiest one.
fn stays(pass: &Pass, full: &StoreView, empty: &StoreView) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for region in around(&full.replicas, pass.seed()).take(LOOKED_AT_MAX).filter_map(|id| pass.view.region(id)) {
        let reason = match bar(pass, region, full, empty) {
            Some(Bar::Held) => format!("with a replica on {} already", empty.id),
            Some(Bar::Large) => "too large to make it less".to_owned(),
            Some(Bar::Refused(why)) => format!("without room, as {why}"),
            Some(Bar::Crowds) => "whose replicas labels keep apart".to_owned(),
            Some(Bar::Silent) | None => "that is hot and left to the hot scheduler".to_owned(),
        };
        *reasons.entry(reason).or_default() += 1;
    }
    let all: usize = reasons.values().sum();
    let reasons: Vec<String> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("of {all} regions on {} that were looked at, {}", full.id, reasons.join(", "))
}

/// Why a region does not go from one store to another, apart from what it is doing.
enum Bar {
    /// It has a peer there.
    Held,
    /// The two would be no more even afterwards.
    Large,
    /// The store has missed heartbeats.
    Silent,
    /// The store does not take it.
    Refused(String),
    /// Its replicas would be closer together.
    Crowds,
}

fn bar(pass: &Pass, region: &RegionView, source: &StoreView, target: &StoreView) -> Option<Bar> {
    let bytes = region.weight_bytes() as f64;
    if source.fill() - target.fill() < bytes / source.weight + bytes / target.weight {
        return Some(Bar::Large);
    }
    if region.news.region.peer_on(target.id).is_some() {
        return Some(Bar::Held);
    }
    if crowds(pass, region, source.id, target.id) {
        return Some(Bar::Crowds);
    }
    if !target.is_fresh() {
        return Some(Bar::Silent);
    }
    choose::accepts(target, region.news.bytes, pass.config).err().map(Bar::Refused)
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
    let fits = |region: &&&RegionView| bar(pass, region, source, target).is_none();
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
