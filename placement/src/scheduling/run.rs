//! What runs while a member leads: a look every second, and the orders that come of it.

use braid_proto::id::Term;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;

use super::carry::carry;
use super::meters::Meters;
use super::stock;
use crate::leader::Shared;
use crate::state::State;

/// Orders that are being given at once: each is one call that waits for a store.
const ORDERS_MAX: usize = 64;

/// Runs the schedulers for as long as it is polled.
pub async fn run(shared: &Shared, term: Term) {
    tokio::join!(look(shared, term), give(shared, term));
}

async fn look(shared: &Shared, term: Term) {
    let meters = Meters::new();
    let mut ticks = tokio::time::interval(shared.setup.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Before the cluster has its regions nothing moves.
        if shared.replica.read(State::regions_started)
            && let Err(error) = stock::fill(shared, term, None).await
        {
            tracing::debug!(%error, "no ids for new peers and regions yet");
        }
        let mut guard = shared.memory(term);
        let memory = &mut *guard;
        shared.replica.read(|state| memory.scheduling.sync(state, &memory.presence, &shared.setup.defaults));
        memory.scheduling.tick();
        meters.set(memory);
        drop(guard);
        shared.work.notify_one();
        // Whoever waits for the end of an operator, which may have come by time alone.
        shared.news.notify_waiters();
    }
}

async fn give(shared: &Shared, term: Term) {
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < ORDERS_MAX {
            let Some(order) = shared.memory(term).scheduling.next_order() else { break };
            under_way.push(carry(shared, term, order));
        }
        tokio::select! {
            () = shared.work.notified() => {}
            Some(()) = under_way.next() => {}
        }
    }
}
