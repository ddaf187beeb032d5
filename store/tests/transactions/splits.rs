//! Splits beside locks (rule S3): a region is split when nothing in it is locked, and a record goes with the half that holds
//! its primary.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::pb::SplitRegionResponse;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::coordinator::{Coordinator, LIMIT, Part, Told, absent};
use crate::faults::Carrying;
use crate::witness::{Expect, Witness};

/// A split that waits for nobody takes less.
const SOON: Duration = Duration::from_millis(700);

fn is_done(split: &SplitRegionResponse) -> bool {
    split.invalid.is_empty() && split.refusal.is_none() && split.right.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_waits_for_locks() {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    // One whose coordinator lives and decides while the split waits, and one that has to be given up first.
    let parts = [Part::of('a'), Part::of('n'), Part::of('u')];
    let mut living = Coordinator::seed(&world, "living", 1, &parts).await;
    let mut dead = Coordinator::seed(&world, "dead", 2, &parts).await;
    let mut late = Coordinator::seed(&world, "late", 3, &[Part::of('n')]).await;
    let witnesses = [&living, &dead, &late].map(Witness::watch);
    living.lock().await;
    living.keep_holding();
    living.lock_all().await;
    dead.lock_all().await;
    let at = absent('n', "living");
    let split = cluster.split(&at, 12);
    tokio::pin!(split);
    assert!(timeout(SOON, &mut split).await.is_err(), "keys of the region are locked");
    assert!(late.is_locked(0).await, "no new lock is taken while a split waits");
    let (told, split) = tokio::join!(living.decide(), split);
    assert!(is_done(&split), "{split:?}");
    assert!(matches!(told, Told::Revision(_)), "{told:?}");
    // Who came too early finds the region as it is now.
    late.lock_all().await;
    let late_told = late.decide().await;
    let [first, second, third] = witnesses;
    let dead_told = dead.decide().await;
    tokio::join!(
        first.judge(Expect::Done, told),
        second.judge(Expect::Over, dead_told),
        third.judge(Expect::Done, late_told)
    );
    cluster.forgets_all_locks(LIMIT).await;
}

/// The primary's region is split after the decision and before any share has arrived: at the primary, so that the record
/// is the child's, and behind it, so that it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_arrive_though_the_primarys_region_was_split() {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    for (number, name, child) in [(1, "moves", 21), (2, "remains", 22)] {
        world.faults.carry(Carrying::Fails);
        let mut coordinator = Coordinator::seed(&world, name, number, &[Part::of('a'), Part::of('n')]).await;
        let witness = Witness::watch(&coordinator);
        coordinator.lock_all().await;
        let told = coordinator.decide().await;
        let primary = absent('a', name);
        let at = if name == "moves" { primary } else { format!("{primary}/behind") };
        let split = cluster.split(&at, child).await;
        assert!(is_done(&split), "{name}: {split:?}");
        assert!(cluster.lock_rows() > 0, "{name}: the record is still there");
        world.faults.carry(Carrying::Works);
        witness.judge(Expect::Done, told).await;
        cluster.forgets_all_locks(LIMIT).await;
    }
}
