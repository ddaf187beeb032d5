//! One order of an operator, from the queue to the region's leader and back.

use std::time::Duration;

use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::pb::change_peers_request::Change;
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::split_region_request::By as SplitBy;
use braid_proto::pb::{
    ChangePeersRequest, ChangeVoters, HoldPeers, MergeRegionRequest, Peer, Refusal, Region, SplitRegionRequest, Store,
    TransferLeaderRequest,
};
use bytes::Bytes;

use crate::leader::Shared;
use crate::orders::NoAnswer;
use crate::schedule::{Order, SplitAt, Step};
use crate::split::{Refused, learn_refusal};

/// How long a store may take for one order: longer than it takes itself to give up.
const ATTEMPT: Duration = Duration::from_secs(12);

/// What an order came to.
enum Came {
    /// It is done, and this is what the region is now.
    Region(Region),
    /// It is cut.
    Halves(Region, Region),
    /// The store leads.
    Leads(StoreId),
    /// Not now; a refusal has taught what it could.
    Waits(String),
    /// Never.
    Failed(String),
}

/// Gives an order, and takes what comes back.
pub async fn carry(shared: &Shared, term: Term, order: Order) {
    let came = give(shared, term, &order).await;
    let id = order.region.region_id();
    let mut guard = shared.memory(term);
    let memory = &mut *guard;
    memory.scheduling.queue.done(order.operator);
    match came {
        Came::Region(region) => _ = memory.learn(region),
        Came::Halves(left, right) => memory.learn_split(left, right),
        Came::Leads(store) => {
            if let Some(peer) = order.region.peer_on(store) {
                memory.learn_leader(id, braid_proto::id::PeerId(peer.id));
            }
        }
        Came::Waits(why) => {
            tracing::debug!(operator = %order.operator, region = %id, why, "an order waits");
            let now_ms = memory.scheduling.now_ms();
            memory.scheduling.driver.not_yet(order.operator, &why, now_ms);
        }
        Came::Failed(why) => {
            tracing::info!(operator = %order.operator, region = %id, step = %order.step, why, "an order is refused");
            let now_ms = memory.scheduling.now_ms();
            memory.scheduling.driver.refused(order.operator, &why, now_ms);
        }
    }
    drop(guard);
    shared.work.notify_one();
    shared.news.notify_waiters();
}

async fn give(shared: &Shared, term: Term, order: &Order) -> Came {
    let Some(leader) = shared.store(order.leader) else {
        return Came::Waits(format!("{} is no store of this cluster any more", order.leader));
    };
    let id = order.region.region_id();
    let given = match &order.step {
        Step::AddLearner { store, peer } => {
            if let Err(why) = mark(shared, term, *store).await {
                return Came::Waits(why);
            }
            change_peers(shared, &leader, order, Change::AddLearner(Peer::learner(peer.0, store.0))).await
        }
        Step::ChangePeers { promote, demote } => {
            let ids = |stores: &[StoreId]| stores.iter().map(|store| store.0).collect();
            let voters = ChangeVoters { promote: ids(promote), demote: ids(demote) };
            change_peers(shared, &leader, order, Change::Voters(voters)).await
        }
        Step::RemovePeer { store } => change_peers(shared, &leader, order, Change::RemoveStore(store.0)).await,
        Step::TransferLeader { store } => transfer(shared, &leader, order, *store).await,
        Step::Split { at, child, child_peers } => {
            let (split_key, by) = match at {
                SplitAt::Key(key) => (key.clone(), SplitBy::Size),
                SplitAt::Size => (Bytes::new(), SplitBy::Size),
                SplitAt::Load => (Bytes::new(), SplitBy::Load),
            };
            let request = SplitRegionRequest {
                region_id: id.0,
                epoch: order.region.epoch,
                split_key,
                by: by as i32,
                child_id: child.0,
                child_peer_ids: child_peers.iter().map(|peer| peer.0).collect(),
            };
            shared.orders.split_region(&leader, request, ATTEMPT).await.map(|answer| {
                match (answer.left, answer.right) {
                    _ if !answer.invalid.is_empty() => Ok(Came::Failed(answer.invalid)),
                    (Some(left), Some(right)) if answer.refusal.is_none() => Ok(Came::Halves(left, right)),
                    _ => Err(answer.refusal),
                }
            })
        }
        Step::Merge { .. } => {
            let (region_id, epoch, target) = (id.0, order.region.epoch, order.target.clone());
            let request = MergeRegionRequest { region_id, epoch, target };
            let answer = shared.orders.merge_region(&leader, request, ATTEMPT).await;
            answer.map(|answer| region_or_refusal(answer.refusal, answer.region, answer.failed))
        }
    };
    judge(shared, term, id, given)
}

/// An answer, or a refusal, or an order that nobody answered.
type Given = Result<Result<Came, Option<Refusal>>, NoAnswer>;

fn judge(shared: &Shared, term: Term, id: RegionId, given: Given) -> Came {
    match given {
        Ok(Ok(came)) => came,
        Ok(Err(Some(refusal))) => match learn_refusal(shared, term, id, &refusal) {
            Refused::Final(why) => Came::Failed(why),
            Refused::Learned(why) | Refused::Wait(why) => Came::Waits(why),
        },
        Ok(Err(None)) => Came::Waits("the store's answer lacks the region".to_owned()),
        Err(error) if error.unknown_order => Came::Failed(error.to_string()),
        Err(error) => Came::Waits(error.to_string()),
    }
}

async fn change_peers(shared: &Shared, leader: &Store, order: &Order, change: Change) -> Given {
    let (region_id, epoch) = (order.region.id, order.region.epoch);
    let request = ChangePeersRequest { region_id, epoch, change: Some(change) };
    let answer = shared.orders.change_peers(leader, request, ATTEMPT).await?;
    Ok(region_or_refusal(answer.refusal, answer.region, answer.failed))
}

async fn transfer(shared: &Shared, leader: &Store, order: &Order, to: StoreId) -> Given {
    let (region_id, epoch) = (order.region.id, order.region.epoch);
    let request = TransferLeaderRequest { region_id, epoch, to_store: to.0 };
    let answer = shared.orders.transfer_leader(leader, request, ATTEMPT).await?;
    Ok(match answer.refusal {
        Some(refusal) => Err(Some(refusal)),
        None if answer.failed.is_empty() => Ok(Came::Leads(to)),
        None => Ok(Came::Failed(answer.failed)),
    })
}

fn region_or_refusal(
    refusal: Option<Refusal>,
    region: Option<Region>,
    failed: String,
) -> Result<Came, Option<Refusal>> {
    match region {
        _ if !failed.is_empty() => Ok(Came::Failed(failed)),
        Some(region) if refusal.is_none() => Ok(Came::Region(region)),
        _ => Err(refusal),
    }
}

/// A store that gets its first peer: its id is spent from now on, so that a store with an empty folder never comes back
/// under it.
async fn mark(shared: &Shared, term: Term, id: StoreId) -> Result<(), String> {
    let held = shared.replica.read(|state| state.store(id).map(|record| record.held_peers));
    match held {
        None => Err(format!("there is no store {id}")),
        Some(true) => Ok(()),
        Some(false) => {
            let hold = Op::HoldPeers(HoldPeers { store_id: id.0 });
            shared.commit(term, hold).await.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}
