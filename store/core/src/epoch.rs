//! Which part of an epoch a request must name rightly.
//!
//! An epoch has two numbers: `version` counts changes of the region's keys (split, merge), `conf_ver` changes of its peers.
//! Whatever is asked about data names the keys it touches and is evaluated on them: it must be sent to the region as it is
//! cut now, so versions are compared by equality, when the request is taken from the queue and after every wait. Which peers
//! there are decides nothing of that. Who may answer is decided by term and lease, of which a change of peers takes nothing
//! away, and raft itself keeps two sets of voters from deciding past each other. So a request that was routed by an older
//! set of peers is served, entries carry the version only, and promises, watches, locks and what is remembered of leases
//! hold on through a change of peers.
//!
//! Orders that are about the peers themselves (split, transfer, change of peers, merge) compare the whole epoch: they were
//! decided by looking at the list of peers.

use braid_proto::pb::{Region, RegionEpoch};

/// Whether a request about data that was routed by `epoch` may be served by `region`.
pub fn serves(region: &Region, epoch: RegionEpoch) -> bool {
    region.epoch.is_some_and(|current| current.version == epoch.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_must_be_right_and_the_peers_may_be_others() {
        let at = |conf_ver, version| RegionEpoch { conf_ver, version };
        let region = Region { id: 1, epoch: Some(at(4, 2)), ..Region::default() };
        assert!(serves(&region, at(4, 2)) && serves(&region, at(1, 2)) && serves(&region, at(9, 2)));
        assert!(!serves(&region, at(4, 1)) && !serves(&region, at(4, 3)));
        assert!(!serves(&region, RegionEpoch::default()), "a request that names none");
        assert!(!serves(&Region::default(), RegionEpoch::default()), "a region without an epoch");
    }
}
