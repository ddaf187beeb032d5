//! Leases, locks and elections on real processes: whatever keys a lease has, in however many regions, they go with it, at
//! one revision, not too early and not never.
//!
//! - `client`: a client over gRPC, one that keeps a lease alive, one that notes what a watch tells it and when.
//! - `ctl`: what an unchanged etcdctl says of leases; its `lock` and `elect` under contention.
//! - `services`: the lock and election services.
//! - `whole`: revocation, expiry and puts that race a revocation, over eight regions.
//! - `faults`: the same while stores are killed and paused.

mod client;
mod ctl;
mod faults;
mod services;
mod whole;

use crate::harness::Cluster;
use crate::kill::wait_whole;

/// One key in each of eight regions that are cut evenly over printable ASCII. The records of leases are in the first one.
const SPREAD: [&str; 8] = ["!a", "/b", ":c", "Fd", "Qe", "^f", "ig", "~h"];

/// Nothing fails here, so that one cluster serves all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_locks_and_elections_over_eight_regions() {
    let cluster = Cluster::split(1, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    ctl::leases_are_told_in_etcds_words(&cluster).await;
    whole::a_revocation_is_one_revision_and_one_response(&cluster).await;
    whole::an_expiry_is_one_revision_and_one_response(&cluster).await;
    whole::a_put_that_races_a_revocation_is_refused_or_goes_with_it(&cluster).await;
    services::a_lock_has_one_holder(&cluster).await;
    services::an_election_has_one_leader(&cluster).await;
    ctl::a_lock_excludes_and_outlives_its_dead_holder(&cluster).await;
    ctl::an_election_passes_on(&cluster).await;
}
