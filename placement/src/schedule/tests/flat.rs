//! What a look of the schedulers costs when there is nothing to do: it does not grow with the number of regions.

use std::sync::atomic::Ordering;

use super::sim::{Sim, config};
use crate::schedule::Load;

/// Regions looked at in a tick at rest.
fn looked_at(regions: usize, load: Load) -> u64 {
    const TICKS: u64 = 20;
    let mut sim = Sim::new(config(), 7);
    sim.add_stores(1..=5);
    sim.add_regions(regions, |_, number| {
        let store = |at: usize| ((number + at) % 5) as u64 + 1;
        ((0..3).map(store).collect(), 32 << 20, load)
    });
    sim.run_to_rest(200);
    let before = sim.driver.view().looked_at.load(Ordering::Relaxed);
    (0..TICKS).for_each(|_| sim.tick());
    (sim.driver.view().looked_at.load(Ordering::Relaxed) - before) / TICKS
}

#[test]
fn schedule_looks_at_no_more_regions_in_a_large_cluster_that_is_at_rest() {
    let idle = Load::default();
    let (small, large) = (looked_at(2_000, idle), looked_at(20_000, idle));
    assert!(small < 3_000 && large < 3_000, "{small} and {large} regions looked at in a tick");
    let busy = Load { ops: 100, written: 1_000 };
    let (small, large) = (looked_at(2_000, busy), looked_at(20_000, busy));
    assert!(small < 3_000 && large < 3_000, "{small} and {large} busy regions looked at in a tick");
}
