//! The order to split a region at a key, from the operator's word to both halves.
//!
//! 1. Find the region of the key and its leader's store in the region map.
//! 2. Take ids for the child and its peers, once for as long as the region has as many peers.
//! 3. Tell the store. What it refuses teaches the map who leads and how the regions lie now; then from 1 again.
//!
//! An answer that was lost leaves the split possibly done: the next try finds the key at the start of a region that has
//! the ids of this order, and takes that for success.

use std::time::{Duration, Instant};

use braid_proto::id::{PeerId, RegionId, Term};
use braid_proto::key::TAG_USER;
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{Refusal, Region, SplitRegionRequest, SplitRegionResponse};
use bytes::Bytes;

use crate::leader::Shared;
use crate::orders::NoAnswer;
use crate::regions::Taken;
use crate::scheduling::stock;

/// How long an order is repeated while leaders move.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a store may take for one try: longer than it takes itself to give up.
const ATTEMPT: Duration = Duration::from_secs(12);
/// Longest wait for news before the next try.
const PAUSE: Duration = Duration::from_millis(250);
/// Tries without a wait, each because a store named another leader or other regions: stores that name each other must
/// not keep an order spinning.
pub const AT_ONCE_MAX: usize = 4;

/// Why an order was not carried out, for the operator.
pub type Failed = String;

/// Splits the region that holds `key`, so that a new one starts there. Returns both halves.
///
/// # Errors
/// The key cannot be split at, or no leader did it in time; says what to do.
pub async fn split(shared: &Shared, term: Term, key: &Bytes) -> Result<(Region, Region), Failed> {
    check(key)?;
    let deadline = Instant::now() + PATIENCE;
    let mut ids: Vec<u64> = Vec::new();
    let mut last = "no leader of that key's region is known".to_owned();
    let mut at_once = AT_ONCE_MAX;
    loop {
        let news = shared.news.notified();
        let known = shared.memory(term).regions.at(key).cloned();
        let store = known.as_ref().and_then(|known| shared.store(known.leader_store()));
        let region = known.map(|known| known.region);
        let busy = region.as_ref().and_then(|region| shared.memory(term).scheduling.busy(region.region_id()));
        if let Some(region) = region.as_ref().filter(|region| region.start == *key) {
            if ids.first() != Some(&region.id) {
                return Err(format!("{} starts at that key already; there is nothing to split", region.region_id()));
            }
            if let Some(left) = left_of(shared, term, key) {
                return Ok((left, region.clone()));
            }
        } else if let Some(busy) = busy {
            last = busy;
        } else if let (Some(region), Some(store)) = (region, store) {
            if ids.len() != 1 + region.peers.len() {
                let count = 1 + region.peers.len() as u64;
                ids = stock::take(shared, term, count).await.map_err(|error| error.to_string())?;
            }
            let answer = shared.orders.split_region(&store, order(&region, key, &ids), ATTEMPT).await;
            match take(shared, term, RegionId(region.id), answer)? {
                Next::Done(halves) => return Ok(*halves),
                Next::Again(why) => last = why,
                Next::AgainAtOnce(_) if at_once > 0 => {
                    at_once -= 1;
                    continue;
                }
                Next::AgainAtOnce(why) => last = why,
            }
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(format!("nobody has split the region in {} s ({last}); try again", PATIENCE.as_secs()));
        }
        _ = tokio::time::timeout(PAUSE, news).await;
    }
}

enum Next {
    Done(Box<(Region, Region)>),
    /// After a pause, or when something is heard.
    Again(String),
    /// The map knows more now.
    AgainAtOnce(String),
}

fn check(key: &[u8]) -> Result<(), Failed> {
    if key.first() != Some(&TAG_USER) || key.len() < 2 {
        return Err("a region is split at a key of user data; name one with --key".to_owned());
    }
    Ok(())
}

fn order(region: &Region, key: &Bytes, ids: &[u64]) -> SplitRegionRequest {
    SplitRegionRequest {
        region_id: region.id,
        epoch: region.epoch,
        split_key: key.clone(),
        child_id: ids[0],
        child_peer_ids: ids[1..].to_vec(),
        ..SplitRegionRequest::default()
    }
}

/// Takes a store's answer: success, a reason to try again, or one to give up.
fn take(
    shared: &Shared,
    term: Term,
    region: RegionId,
    answer: Result<SplitRegionResponse, NoAnswer>,
) -> Result<Next, Failed> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Ok(Next::Again(error.to_string())),
    };
    match answer {
        SplitRegionResponse { invalid, .. } if !invalid.is_empty() => Err(invalid),
        SplitRegionResponse { refusal: Some(refusal), .. } => match learn_refusal(shared, term, region, &refusal) {
            Refused::Final(why) => Err(why),
            Refused::Learned(why) => Ok(Next::AgainAtOnce(why)),
            Refused::Wait(why) => Ok(Next::Again(why)),
        },
        SplitRegionResponse { left: Some(left), right: Some(right), .. } => {
            tracing::info!(left = %left.region_id(), right = %right.region_id(), "region split");
            shared.memory(term).learn_split(left.clone(), right.clone());
            Ok(Next::Done(Box::new((left, right))))
        }
        _ => Ok(Next::Again("the store's answer lacks a half".to_owned())),
    }
}

/// The region that ends at `key`, if it is known.
fn left_of(shared: &Shared, term: Term, key: &Bytes) -> Option<Region> {
    let states = shared.memory(term).regions.list(&Bytes::new(), key);
    let left = states.into_iter().next_back().and_then(|state| state.report?.region);
    left.filter(|left| left.end == *key)
}

/// What a refusal means for an order.
pub enum Refused {
    /// Trying again cannot help; why.
    Final(String),
    /// The region map knows more now: try again at once.
    Learned(String),
    /// Try again later.
    Wait(String),
}

/// Teaches the region map what a store's refusal of an order for `region` says.
pub fn learn_refusal(shared: &Shared, term: Term, region: RegionId, refusal: &Refusal) -> Refused {
    let mut memory = shared.memory(term);
    match &refusal.reason {
        Some(Reason::NotLeader(not_leader)) => {
            let why = format!("the leader of {region} has changed");
            let known = memory.regions.get(region).map_or(0, |known| known.leader_peer);
            match not_leader.leader.map(|leader| PeerId(leader.id)).filter(|leader| leader.0 != known) {
                Some(leader) => {
                    memory.learn_leader(region, leader);
                    Refused::Learned(why)
                }
                // Whoever is known stays: leaders report changes, and there may be none.
                None => Refused::Wait(why),
            }
        }
        Some(Reason::EpochMismatch(mismatch)) => {
            let taken: Vec<_> = mismatch.current.iter().map(|region| memory.learn(region.clone())).collect();
            let why = format!("{region} has changed");
            // Without anything new in it the same order would be refused again.
            if taken.contains(&Taken::New) { Refused::Learned(why) } else { Refused::Wait(why) }
        }
        Some(Reason::RegionNotFound(_)) => Refused::Wait(format!("the store has no peer of {region}")),
        Some(Reason::Busy(busy)) => Refused::Wait(busy.what.clone()),
        Some(Reason::Unknown(unknown)) => Refused::Wait(unknown.why.clone()),
        Some(Reason::TimedOut(timed_out)) => Refused::Wait(timed_out.what.clone()),
        Some(Reason::DiskFull(_)) => Refused::Final("the store's disk is full; free some space on it first".to_owned()),
        // Orders are never too large.
        Some(Reason::TooLarge(_)) | None => Refused::Wait("the store refuses without a reason".to_owned()),
    }
}
