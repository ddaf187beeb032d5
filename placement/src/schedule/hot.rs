//! Hot regions: the load of the hottest regions moves from the hottest to cooler stores.
//!
//! 1. Operations count at the leader. If the hottest and the coolest store differ by more than the tolerance, a hot
//!    region of the hottest one gets its leader where least is done: on a store that has a replica, otherwise the
//!    replica and the leader move together.
//! 2. A region that moving does not help, with more than half of a store's share, is split where its load is, if its load is
//!    worth two regions: an eighth of what splits any region.
//! 3. Bytes written count at every replica; for these only followers move, which leaves 1 as it is.
//!
//! Other schedulers leave hot regions alone, and this one moves only hot ones and only if that brings two stores clearly
//! closer together, so that nothing goes to and fro.

use braid_proto::id::StoreId;

use super::Config;
use super::choose;
use super::plan::Plan;
use super::replicas::crowds;
use super::scheduler::{Pass, Proposal};
use super::step::SplitAt;
use super::view::{RegionView, StoreView, View};

/// Hot regions looked at in one pass.
const LOOKED_AT_MAX: usize = 128;
/// Stores that are hot tried in one pass.
const SOURCES_MAX: usize = 4;
/// How much more than nothing a move must bring, because loads are measured and change.
const MARGIN: f64 = 1.2;

/// Whether a region is hot, by operations or by bytes written: more than the configured least, and a multiple of the
/// average.
pub fn is_hot(view: &View, config: &Config, region: &RegionView) -> bool {
    let load = region.news.load;
    is_above(view, config, load.ops, config.hot_ops_min, view.index().ops)
        || is_above(view, config, load.written, config.hot_bytes_min, view.index().written)
}

fn is_above(view: &View, config: &Config, amount: u64, least: u64, all: u64) -> bool {
    amount >= least && amount as f64 * view.regions().len() as f64 >= config.hot_factor * all as f64
}

pub(super) fn propose(pass: &Pass) -> Proposal {
    if pass.view.in_service().count() < 2 {
        return Proposal::nothing("there is only one store in service");
    }
    match operations(pass) {
        Ok(plan) => Proposal::one(plan),
        Err(idle) => match written(pass) {
            Ok(plan) => Proposal::one(plan),
            Err(also) if idle.waits || also.waits => Proposal::waits(format!("{}; {}", idle.why, also.why)),
            Err(also) => Proposal::nothing(format!("{}; {}", idle.why, also.why)),
        },
    }
}

/// Why no plan is made for a measure.
struct Idle {
    why: String,
    /// There is one, which cannot be begun now.
    waits: bool,
}

impl Idle {
    fn new(waits: Option<String>, otherwise: &str) -> Self {
        Self { waits: waits.is_some(), why: waits.unwrap_or_else(|| otherwise.to_owned()) }
    }
}

/// A measure of the load of stores.
struct Measure {
    name: &'static str,
    of: fn(&StoreView) -> f64,
    mean: f64,
}

impl Measure {
    fn operations(view: &View) -> Self {
        let mean = choose::mean(view, |store| store.planned.ops);
        Self { name: "operations", of: |store| store.planned.ops as f64 / store.weight, mean }
    }

    fn written(view: &View) -> Self {
        let mean = choose::mean(view, |store| store.planned.written);
        Self { name: "bytes written", of: |store| store.planned.written as f64 / store.weight, mean }
    }

    /// Stores from the hottest on, if they differ by more than is tolerated.
    fn stores<'a>(&self, pass: &Pass<'a>) -> Result<Vec<&'a StoreView>, String> {
        let mut stores: Vec<&StoreView> = pass.view.in_service().collect();
        stores.sort_by(|a, b| (self.of)(b).total_cmp(&(self.of)(a)).then(a.id.cmp(&b.id)));
        let (hottest, coolest) = (stores[0], stores[stores.len() - 1]);
        let (apart, tolerance) = ((self.of)(hottest) - (self.of)(coolest), pass.config.hot_tolerance);
        if apart <= tolerance * self.mean {
            return Err(super::replicas::differ(self.name, hottest.id, coolest.id, apart, self.mean, tolerance));
        }
        Ok(stores)
    }

    /// Whether moving so much brings two stores clearly closer together.
    fn evens(&self, amount: u64, from: &StoreView, to: &StoreView) -> bool {
        let moved = amount as f64 / from.weight + amount as f64 / to.weight;
        (self.of)(from) - (self.of)(to) > moved / 2.0 * MARGIN
    }
}

fn operations(pass: &Pass) -> Result<Plan, Idle> {
    let (view, config) = (pass.view, pass.config);
    let measure = Measure::operations(view);
    let stores = measure.stores(pass).map_err(|why| Idle { why, waits: false })?;
    let mut waits = None;
    let hot = || view.index().by_ops.iter().rev().take(LOOKED_AT_MAX).filter_map(|(_, id)| view.region(*id));
    for source in stores.iter().filter(|store| (measure.of)(store) > measure.mean).take(SOURCES_MAX) {
        for region in hot().filter(|region| region.leader_store() == source.id) {
            let ops = region.news.load.ops;
            if !is_above(view, config, ops, config.hot_ops_min, view.index().ops) || !is_movable(pass, region) {
                continue;
            }
            let cooler: Vec<&StoreView> =
                stores.iter().rev().filter(|to| measure.evens(ops, source, to)).copied().collect();
            let follower = cooler.iter().find(|to| to.is_fresh() && region.can_lead(view, to.id));
            let other = || cooler.iter().find(|to| takes(pass, region, source.id, to));
            let plan = match (follower, other()) {
                (Some(to), _) => Some(Plan::transfer(region, to.id)),
                (None, Some(to)) => Plan::replace(region, source.id, to.id, Some(to.id)),
                (None, None) if is_too_hot(config, region, measure.mean) => Some(Plan::split(region, SplitAt::Load)),
                (None, None) => None,
            };
            let why = || {
                format!("{ops} operations per second, and {} is the hottest store that could be relieved", source.id)
            };
            match plan.map(|plan| pass.ready(plan, why())) {
                Some(Ok(plan)) => return Ok(plan),
                Some(Err(why)) => _ = waits.get_or_insert(why),
                None => {}
            }
        }
    }
    Err(Idle::new(waits, "no hot region makes stores more even in operations"))
}

fn written(pass: &Pass) -> Result<Plan, Idle> {
    let (view, config) = (pass.view, pass.config);
    let measure = Measure::written(view);
    let stores = measure.stores(pass).map_err(|why| Idle { why, waits: false })?;
    let mut waits = None;
    let hot = || view.index().by_written.iter().rev().take(LOOKED_AT_MAX).filter_map(|(_, id)| view.region(*id));
    for source in stores.iter().filter(|store| (measure.of)(store) > measure.mean).take(SOURCES_MAX) {
        let follows =
            |region: &&RegionView| region.leader_store() != source.id && region.voter_stores().contains(&source.id);
        for region in hot().filter(follows) {
            let amount = region.news.load.written;
            if !is_above(view, config, amount, config.hot_bytes_min, view.index().written) || !is_movable(pass, region)
            {
                continue;
            }
            let fits = |to: &&&StoreView| measure.evens(amount, source, to) && takes(pass, region, source.id, to);
            let Some(to) = stores.iter().rev().find(fits) else { continue };
            let Some(plan) = Plan::replace(region, source.id, to.id, None) else { continue };
            let why = format!("{amount} bytes per second are written to it, and {} takes more than others", source.id);
            match pass.ready(plan, why) {
                Ok(plan) => return Ok(plan),
                Err(why) => _ = waits.get_or_insert(why),
            }
        }
    }
    Err(Idle::new(waits, "no hot region makes stores more even in bytes written"))
}

/// Whether its load counts already, and it may move.
fn is_movable(pass: &Pass, region: &RegionView) -> bool {
    let settled = pass.now_ms.saturating_sub(region.range_since_ms) >= pass.config.load_settle_ms;
    settled
        && region.is_free(pass.now_ms)
        && region.is_calm()
        && region.voters_well(pass.view) == region.voters().count()
}

/// Whether a store takes a replica that another one gives.
fn takes(pass: &Pass, region: &RegionView, from: StoreId, to: &StoreView) -> bool {
    region.news.region.peer_on(to.id).is_none()
        && choose::accepts(to, region.news.bytes, pass.config).is_ok()
        && !crowds(pass, region, from, to.id)
}

/// Whether it alone does so much of a store's share that stores cannot be evened out with it in one piece, and so much at
/// all that two regions are worth their cost: stores with little to do need not be even
/// (`docs/decisions/0008-region-size.md`).
fn is_too_hot(config: &Config, region: &RegionView, mean: f64) -> bool {
    let ops = region.news.load.ops;
    ops as f64 > mean / 2.0 && ops >= config.split_ops / 8
}
