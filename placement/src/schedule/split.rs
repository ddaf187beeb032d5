//! Splits: regions that have become large, by bytes or keys, or that do more than one region should.

use std::collections::BTreeSet;

use braid_proto::id::RegionId;

use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::step::SplitAt;
use super::view::RegionView;

/// Regions looked at in one pass, for each measure.
const LOOKED_AT_MAX: usize = 64;
/// A region is split by load only this many settling times after it got its range: where writes go to ever higher keys
/// all load follows the right half, and splits would chase it.
const LOAD_SPLIT_REST: u64 = 3;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let (view, config) = (pass.view, pass.config);
    let mut found = Findings::default();
    let mut seen = BTreeSet::new();
    let measures = [
        (&view.index().by_bytes, config.split_bytes, SplitAt::Size, "bytes"),
        (&view.index().by_keys, config.split_keys, SplitAt::Size, "keys"),
        (&view.index().by_ops, config.split_ops, SplitAt::Load, "operations per second"),
    ];
    for (order, limit, at, unit) in measures {
        for (amount, id) in order.range((limit, RegionId::INVALID)..).rev().take(LOOKED_AT_MAX) {
            let Some(region) = view.region(*id).filter(|region| is_splittable(pass, region, &at)) else { continue };
            if !seen.insert(*id) {
                continue;
            }
            let why = format!("{amount} {unit}, more than {limit}");
            if found.take(pass.ready(Plan::split(region, at.clone()), why), config.plans_per_round) {
                break;
            }
        }
    }
    found.proposal("region", || idle(pass))
}

fn idle(pass: &Pass) -> String {
    let (config, index) = (pass.config, pass.view.index());
    let largest = index.by_bytes.last().map_or(0, |(bytes, _)| *bytes);
    let fullest = index.by_keys.last().map_or(0, |(keys, _)| *keys);
    let busiest = index.by_ops.last().map_or(0, |(ops, _)| *ops);
    if largest >= config.split_bytes || fullest >= config.split_keys || busiest >= config.split_ops {
        return "the regions that are too large were split lately, or operators work on them".to_owned();
    }
    format!(
        "no region is too large: the largest has {largest} of {} bytes, {fullest} of {} keys, {busiest} of {} operations per second",
        config.split_bytes, config.split_keys, config.split_ops
    )
}

/// Whether it may be split now: after a split, sizes and loads are measured anew first.
fn is_splittable(pass: &Pass, region: &RegionView, at: &SplitAt) -> bool {
    let settling = pass.config.load_settle_ms;
    let rest = if *at == SplitAt::Load { settling * LOAD_SPLIT_REST } else { settling };
    let rested = pass.now_ms.saturating_sub(region.range_since_ms) >= rest;
    rested && region.is_free(pass.now_ms) && region.voters_well(pass.view) >= region.quorum()
}
