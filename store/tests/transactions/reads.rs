//! Reads beside locks: what passes, what waits, and that nobody reads half of what has happened.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::PutRequest;
use braid_proto::key::user_key;
use braid_proto::pb::{region_request, region_response};
use tokio::time::timeout;

use crate::cluster::{Cluster, World};
use crate::coordinator::{Coordinator, LIMIT, Part, TIME_TO_LIVE, Told, text};
use crate::faults::Carrying;
use crate::witness::{Expect, Witness};

/// Longer than a read takes that waits for nobody, and shorter than any lock lives.
const SOON: Duration = Duration::from_millis(700);

async fn put(world: &World, key: &str) -> Result<i64, region_response::Result> {
    let put = PutRequest { key: text(key), value: text("beside"), ..Default::default() };
    match world.ask_once(&user_key(key.as_bytes()), region_request::Op::Put(put), LIMIT).await {
        region_response::Result::Put(put) => Ok(world.sequencer.uses(put.header.expect("a header").revision)),
        other => Err(other),
    }
}

/// M7: at or below a lock's floor a read passes; above it the primary's word lets it pass, long before the lock goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_coordinators_locks_hold_no_reader_up() {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    let mut coordinator = Coordinator::seed(&world, "read", 1, &[Part::of('a'), Part::of('n')]).await;
    coordinator.lock().await;
    coordinator.keep_holding();
    coordinator.lock_all().await;
    let witness = Witness::watch(&coordinator);
    world.faults.questions(false);
    // The participant's store has heard of this revision before it took the lock.
    let floor = coordinator.seeded[1];
    let below = timeout(SOON, witness.sees_it_at(floor)).await;
    assert_eq!(below, Ok(false), "a read at the floor asks nobody");
    // And of this one it has not heard.
    let above = put(&world, "u/read/elsewhere").await.expect("a put elsewhere");
    let waiting = timeout(SOON, witness.sees_it_at(above)).await;
    assert!(waiting.is_err(), "above the floor only the primary can tell");
    assert!(coordinator.hold().await);
    coordinator.fall_silent();
    world.faults.questions(true);
    let answered = timeout(TIME_TO_LIVE / 2, witness.sees_it_at(above)).await;
    assert_eq!(answered, Ok(false), "the primary says: later");
    assert!(coordinator.is_locked(1).await, "and the lock still stands");
    witness.judge(Expect::Over, Told::Nothing).await;
    cluster.forgets_all_locks(LIMIT).await;
}

/// A share that waits behind a write without a number is taken back with it when no sequencer answers. Whoever waited for
/// the share must not go on as if it were done: its revision was given out long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_is_taken_back_is_not_read_around() {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    let mut coordinator = Coordinator::seed(&world, "back", 1, &[Part::of('a'), Part::of('n')]).await;
    let witness = Witness::watch(&coordinator);
    coordinator.lock_all().await;
    world.faults.carry(Carrying::Fails);
    let told = coordinator.decide().await;
    let Told::Revision(revision) = told else { panic!("{told:?}") };
    world.sequencer.stop();
    // The region of the participant has a write that waits for its number ...
    let unnumbered = tokio::spawn({
        let world = Arc::clone(&world);
        async move { put(&world, "n/back/beside").await }
    });
    world.sequencer.asked_in_vain().await;
    // ... and then the share arrives.
    let arrived = world.faults.arrived();
    world.faults.carry(Carrying::Works);
    timeout(LIMIT, world.faults.arrived_since(arrived)).await.expect("the share is carried");
    assert!(witness.sees_it_at(revision).await, "what has happened at {revision} is there");
    let refused = unnumbered.await.expect("the put ends");
    assert!(matches!(refused, Err(region_response::Result::Refusal(_))), "{refused:?}");
    world.sequencer.restart();
    witness.judge(Expect::Done, told).await;
    cluster.forgets_all_locks(LIMIT).await;
}
