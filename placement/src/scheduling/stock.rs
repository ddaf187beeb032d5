//! Ids for new peers and regions, at hand ahead of need: taken from the replicated counter many at a time.

use braid_proto::id::{RegionId, Term};

use crate::leader::{CommitError, Shared};

/// Sees to it that enough ids are at hand for whatever is begun on any region, or on `region`: its next peers need later ids
/// than those it has.
///
/// # Errors
/// See [`Shared::allocate`].
pub async fn fill(shared: &Shared, term: Term, region: Option<RegionId>) -> Result<(), CommitError> {
    let wanted = {
        let memory = shared.memory(term);
        let driver = &memory.scheduling.driver;
        let known = region.and_then(|region| driver.view().region(region));
        driver.ids_wanted(known.map_or(0, |known| known.newest_peer()))
    };
    if wanted > 0 {
        let first = shared.allocate(term, wanted).await?;
        shared.memory(term).scheduling.driver.feed_ids(first, wanted);
    }
    Ok(())
}

/// So many ids of those at hand, for a region that is cut without an operator: out of the same line as all others, so that
/// later peers of a region have later ids.
///
/// # Errors
/// See [`Shared::allocate`].
pub async fn take(shared: &Shared, term: Term, count: u64) -> Result<Vec<u64>, CommitError> {
    loop {
        if let Some(ids) = shared.memory(term).scheduling.driver.take_ids(count) {
            return Ok(ids);
        }
        fill(shared, term, None).await?;
    }
}
