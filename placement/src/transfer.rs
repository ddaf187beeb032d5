//! The order to hand a region's leadership to a store, from the operator's word to the new leader.

use std::time::{Duration, Instant};

use braid_proto::id::{PeerId, RegionId, StoreId, Term};
use braid_proto::pb::{Region, TransferLeaderRequest, TransferLeaderResponse};

use crate::leader::Shared;
use crate::split::{AT_ONCE_MAX, Failed, Refused, learn_refusal};

/// How long an order is repeated while leaders move.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a store may take for one try: longer than it takes itself to give up.
const ATTEMPT: Duration = Duration::from_secs(12);
/// Longest wait for news before the next try.
const PAUSE: Duration = Duration::from_millis(250);

/// Makes the peer of `region` on store `to` its leader.
///
/// # Errors
/// That cannot be, or was not done in time; says what to do.
pub async fn transfer_leader(shared: &Shared, term: Term, region: RegionId, to: StoreId) -> Result<(), Failed> {
    if shared.store(to).is_none() {
        return Err(format!("there is no store {to}; `braid admin store list` shows the stores"));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut last = format!("no leader of {region} is known");
    let mut at_once = AT_ONCE_MAX;
    loop {
        let news = shared.news.notified();
        let known = shared.memory(term).regions.get(region).cloned();
        let known = known.ok_or_else(|| format!("no region {region}; `braid admin region list` shows the regions"))?;
        check_target(&known.region, to)?;
        if known.leader_store() == to {
            return Ok(());
        }
        let busy = shared.memory(term).scheduling.busy(region);
        if let Some(busy) = busy {
            last = busy;
        } else if let Some(store) = shared.store(known.leader_store()) {
            let request = TransferLeaderRequest { region_id: region.0, epoch: known.region.epoch, to_store: to.0 };
            match shared.orders.transfer_leader(&store, request, ATTEMPT).await {
                Ok(TransferLeaderResponse { refusal: None, failed }) if failed.is_empty() => {
                    if let Some(peer) = known.region.peer_on(to) {
                        shared.memory(term).learn_leader(region, PeerId(peer.id));
                    }
                    return Ok(());
                }
                Ok(TransferLeaderResponse { refusal: None, failed }) => return Err(failed),
                Ok(TransferLeaderResponse { refusal: Some(refusal), .. }) => {
                    match learn_refusal(shared, term, region, &refusal) {
                        Refused::Final(why) => return Err(why),
                        Refused::Learned(_) if at_once > 0 => {
                            at_once -= 1;
                            continue;
                        }
                        Refused::Learned(why) | Refused::Wait(why) => last = why,
                    }
                }
                Err(error) => last = error.to_string(),
            }
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(format!("leadership was not handed over in {} s ({last}); try again", PATIENCE.as_secs()));
        }
        _ = tokio::time::timeout(PAUSE, news).await;
    }
}

fn check_target(region: &Region, to: StoreId) -> Result<(), Failed> {
    match region.peer_on(to) {
        Some(peer) if !peer.learner => Ok(()),
        Some(_) => Err(format!("the peer of {} on {to} is a learner and cannot lead", region.region_id())),
        None => {
            let voters = region.peers.iter().filter(|peer| !peer.learner);
            let stores: Vec<String> = voters.map(|peer| StoreId(peer.store_id).to_string()).collect();
            Err(format!("{to} holds no peer of {}: its peers are on {}", region.region_id(), stores.join(", ")))
        }
    }
}
