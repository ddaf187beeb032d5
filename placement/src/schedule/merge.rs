//! Merges: a small region goes into a small neighbour, after it has been brought to that one's stores.
//!
//! Merged regions stay far below what splits them, and nothing is merged that was split lately.

use std::collections::BTreeSet;

use braid_proto::id::RegionId;

use super::hot;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::RegionView;

/// Small regions looked at in one pass.
const LOOKED_AT_MAX: usize = 256;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let (view, config) = (pass.view, pass.config);
    let stores = view.in_service().count();
    let (regions, enough) = (view.regions().len(), stores * config.regions_per_store_min);
    if regions <= enough {
        return Proposal::nothing(format!(
            "{regions} regions on {stores} stores are few enough; from {} on small ones are merged",
            enough + 1
        ));
    }
    let small = view.index().by_bytes.range(..=(config.merge_bytes, RegionId(u64::MAX)));
    // Ids are spread over the smallest sizes, so another part is looked at each time.
    let skip = (pass.seed() % 8) as usize * LOOKED_AT_MAX / 2;
    let smallest: Vec<RegionId> =
        small.clone().skip(skip).chain(small).take(LOOKED_AT_MAX).map(|(_, id)| *id).collect();
    let any_small = !smallest.is_empty();
    let (mut found, mut used) = (Findings::default(), BTreeSet::new());
    let at_once = config.plans_per_round.min(regions - enough);
    for id in smallest {
        let Some(source) = view.region(id).filter(|region| is_mergeable(pass, region)) else { continue };
        let neighbours = [view.previous(source), view.next(source)];
        let fitting = neighbours.into_iter().flatten().filter(|target| fits(pass, source, target));
        // The smaller neighbour; of equals the one that needs fewer moves.
        let moves = |target: &&RegionView| {
            let missing =
                target.voter_stores().iter().filter(|store| source.news.region.peer_on(**store).is_none()).count();
            (missing, target.news.bytes, target.id())
        };
        let Some(target) = fitting.min_by_key(moves) else { continue };
        if used.contains(&source.id()) || used.contains(&target.id()) {
            continue;
        }
        used.extend([source.id(), target.id()]);
        let why = format!("it is small, and so is its neighbour {}", target.id());
        if found.take(pass.ready(Plan::merge(source, target), why), at_once) {
            break;
        }
    }
    found.proposal("region", || match any_small {
        true => "small regions have no small neighbour, or had another range not long ago".to_owned(),
        false => format!("no region is smaller than {} bytes", config.merge_bytes),
    })
}

fn is_mergeable(pass: &Pass, region: &RegionView) -> bool {
    let (config, news) = (pass.config, &region.news);
    news.bytes <= config.merge_bytes
        && news.keys <= config.merge_keys
        && pass.now_ms.saturating_sub(region.range_since_ms) >= config.merge_rest_ms
        && region.is_free(pass.now_ms)
        && region.is_calm()
        && region.voters_well(pass.view) == region.voters().count()
        && region.voters().count() == config.replicas
        && !hot::is_hot(pass.view, config, region)
}

/// Whether two neighbours together stay well below what splits a region, also when they grow.
fn fits(pass: &Pass, source: &RegionView, target: &RegionView) -> bool {
    let config = pass.config;
    let (bytes, keys) = (source.news.bytes + target.news.bytes, source.news.keys + target.news.keys);
    let ops = source.news.load.ops + target.news.load.ops;
    let in_service = target.stores().all(|id| pass.view.store(id).is_some_and(|store| store.is_in_service()));
    in_service
        && is_mergeable(pass, target)
        && bytes <= config.split_bytes / 2
        && keys <= config.split_keys / 2
        && ops <= config.split_ops / 2
}
