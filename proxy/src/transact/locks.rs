//! A transaction's locks: what of its plan is asked of each region, and what the client is told when that fails. How they
//! are taken is [`braid_store_client::locks`].

use std::sync::Arc;

use braid_store_client::deadline::Patience;
use braid_store_client::locks::{self, Locks, NotLocked, Taken};

use super::plan::Part;
use super::{Failed, too_large};
use crate::kv::unexpected;
use crate::shared::Shared;

/// What is asked of each region, beside its ranges.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Only counts are read.
    pub count_only: bool,
    /// The transaction may put keys.
    pub puts: bool,
}

/// Locks all `parts`, which are in key order; at least one.
pub async fn take(
    shared: &Arc<Shared>,
    parts: &[Part],
    wanted: Wanted,
    patience: Patience,
) -> Result<(Locks, Vec<Taken>), Failed> {
    let part = |part: &Part| locks::Part {
        region: part.route.region,
        ranges: part.ranges.clone(),
        reads: part.reads(wanted.count_only),
        puts: wanted.puts,
        attaches: part.attaches.clone(),
    };
    let parts: Vec<locks::Part> = parts.iter().map(part).collect();
    Ok(Locks::take(&shared.regions, &shared.lock_terms, &parts, patience).await?)
}

impl From<NotLocked> for Failed {
    fn from(why: NotLocked) -> Self {
        match why {
            NotLocked::Again(reason) => Self::Again(reason),
            NotLocked::TooLarge => too_large().into(),
            NotLocked::Answer(answer) => unexpected(answer).into(),
            NotLocked::Failed(status) => status.into(),
            // They were attached: that region has another leader, or another range, by now.
            NotLocked::Unattached(_) => Self::Again("unattached"),
        }
    }
}
