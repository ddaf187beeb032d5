//! Whether all replicas of a region hold the same: every one of them is asked for its hash at one bound.
//!
//! 1. For each region take a bound and ask the store of every peer, leader or not.
//! 2. A region that has changed meanwhile is looked up again: it may be two by now. A store that has dropped more history
//!    than the bound knew of makes all replicas of the region begin again with a newer one.
//! 3. Judge ([`judge`]). Who has no hash is named with the reason, and the verdict is incomplete.
//!
//! Nothing is repaired: that a replica differs means a fault of the disk, the machine or the program, and a person should
//! look before data is thrown away.

use std::sync::Arc;
use std::time::Duration;

use braid_placement_client::ClientError;
use braid_proto::error;
use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::checked_region::Verdict;
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{
    CheckedRegion, CheckedReplica, HashRequest, HashResponse, Refusal, Region, RegionCheckRequest, RegionCheckResponse,
    RegionListRequest, region_request, region_response,
};
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::NoAnswer;
use braid_store_client::retry;
use braid_store_client::route::Route;
use futures::future::{BoxFuture, join_all};
use futures::stream::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use tonic::Status;

use crate::hash_kv::FANOUT;
use crate::shared::Shared;

/// How long a replica may take to be reached and to have everything up to the bound.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Compares the replicas of one region or all.
///
/// # Errors
/// Nobody says which regions there are.
pub async fn check(
    shared: &Shared,
    request: RegionCheckRequest,
    patience: Patience,
) -> Result<RegionCheckResponse, Status> {
    let only = RegionId(request.region_id);
    let span = match only.is_valid() {
        false => KeyRange::default(),
        true => match range_of(shared, only, patience).await? {
            Some(range) => range,
            None => return Ok(RegionCheckResponse { failed: "there is no such region".to_owned(), regions: vec![] }),
        },
    };
    let mut regions = check_span(shared, span, 0, patience).await?;
    regions.retain(|checked| !only.is_valid() || checked.region.as_ref().is_some_and(|region| region.id == only.0));
    Ok(RegionCheckResponse { regions, failed: String::new() })
}

/// The keys of a region, by placement's word.
async fn range_of(shared: &Shared, region: RegionId, patience: Patience) -> Result<Option<KeyRange>, Status> {
    let list = shared.placement.region_list(RegionListRequest::default(), patience.deadline).await;
    let list = list.map_err(|error| match error {
        ClientError::Refused(status) => status,
        unreachable @ ClientError::Unreachable { .. } => Status::unavailable(format!("braid: {unreachable}")),
    })?;
    let mut regions = list.regions.into_iter().filter_map(|state| state.report?.region);
    Ok(regions.find(|found| found.id == region.0).map(|found| found.range()))
}

/// Compares the replicas of every region of `span`. `attempt` counts how often these keys were looked up again.
fn check_span(
    shared: &Shared,
    span: KeyRange,
    attempt: u32,
    patience: Patience,
) -> BoxFuture<'_, Result<Vec<CheckedRegion>, Status>> {
    Box::pin(async move {
        let pieces = shared.regions.pieces(&span, patience).await?;
        let checks: Vec<_> = pieces
            .into_iter()
            .map(|(route, piece)| async move {
                match check_region(shared, &route, patience).await {
                    Some(checked) => Ok(vec![checked]),
                    None if patience.is_over() => Ok(vec![unchecked(&route, "the region has changed meanwhile")]),
                    None => {
                        tokio::time::sleep(retry::pause(attempt)).await;
                        check_span(shared, piece, attempt + 1, patience).await
                    }
                }
            })
            .collect();
        // A region is checked whole, even where only a part of it was asked for: after a change it may come up twice.
        let mut regions: Vec<CheckedRegion> = futures::stream::iter(checks).buffered(FANOUT).try_concat().await?;
        regions.dedup_by(|next, before| next.region == before.region);
        Ok(regions)
    })
}

/// Compares the replicas of one region. `None`: it has changed meanwhile.
async fn check_region(shared: &Shared, route: &Arc<Route>, patience: Patience) -> Option<CheckedRegion> {
    let mut attempt = 0;
    loop {
        let bound = match bound::take(&shared.numbers, patience).await {
            Ok(bound) => bound,
            Err(error) => return Some(unchecked(route, error.message)),
        };
        let op = region_request::Op::Hash(HashRequest {
            revision: bound.revision,
            boundary: bound.compacted,
            start: Default::default(),
            end: Default::default(),
            catch_up_ms: CATCH_UP.as_millis() as u32,
        });
        let stores = route.peers.iter().map(|peer| StoreId(peer.store_id));
        let said = join_all(stores.map(|store| ask(shared, route, store, &op, patience))).await;
        if said.iter().any(|said| matches!(said, Said::Moved)) {
            return None;
        }
        if said.iter().any(|said| matches!(said, Said::Overtaken)) && !patience.is_over() {
            tokio::time::sleep(retry::pause(attempt)).await;
            attempt += 1;
            continue;
        }
        let replicas = route.peers.iter().zip(said).map(|(peer, said)| {
            let (hash, failed) = match said {
                Said::Hash(hash) => (Some(hash), String::new()),
                Said::Failed(why) => (None, why),
                Said::Overtaken | Said::Moved => (None, "a compaction has overtaken the check".to_owned()),
            };
            CheckedReplica { store_id: peer.store_id, hash, failed }
        });
        let mut replicas: Vec<CheckedReplica> = replicas.collect();
        replicas.sort_by_key(|replica| replica.store_id);
        let (verdict, differing_stores) = judge(&replicas);
        return Some(CheckedRegion {
            region: Some(region_of(route)),
            revision: bound.revision,
            boundary: bound.compacted,
            replicas,
            verdict: verdict.into(),
            differing_stores,
        });
    }
}

/// What a replica says.
enum Said {
    Hash(HashResponse),
    Failed(String),
    /// Its store has dropped more than the bound knew of.
    Overtaken,
    /// The region is another one by now.
    Moved,
}

/// Asks the replica on `store`, again while it may still come round.
async fn ask(shared: &Shared, route: &Arc<Route>, store: StoreId, op: &region_request::Op, patience: Patience) -> Said {
    let give_up = patience.deadline.min(Instant::now() + CATCH_UP);
    let mut attempt = 0;
    loop {
        let refusal = match shared.regions.ask_replica(route, store, op, patience).await {
            Ok(region_response::Result::Hash(hash)) => return Said::Hash(hash),
            Ok(region_response::Result::Error(error)) if error.message == error::COMPACTED.message => {
                return Said::Overtaken;
            }
            Ok(region_response::Result::Error(error)) => return Said::Failed(error.message),
            Ok(region_response::Result::Refusal(refusal)) => refusal,
            Ok(_) => return Said::Failed("it answers another question than it was asked".to_owned()),
            Err(NoAnswer::Failed(_) | NoAnswer::Spread) => {
                return Said::Failed("it does not answer in time".to_owned());
            }
        };
        let why = match explain(refusal) {
            Refused::Failed(why) => return Said::Failed(why),
            Refused::Elsewhere(regions) => {
                shared.regions.router.learn(regions);
                if !shared.regions.router.is_current(route, &route.range.start) {
                    return Said::Moved;
                }
                "it has not heard yet how the region was changed"
            }
            Refused::Absent => {
                if let Err(why) = shared.regions.router.refresh(&route.range.start, give_up).await {
                    tracing::debug!(%why, "no newer route");
                }
                if !shared.regions.router.is_current(route, &route.range.start) {
                    return Said::Moved;
                }
                "the store has no such replica"
            }
            Refused::Unreachable => "the store cannot be reached",
            Refused::Busy => "the store is busy",
        };
        if Instant::now() >= give_up {
            return Said::Failed(why.to_owned());
        }
        tokio::time::sleep(retry::pause(attempt)).await;
        attempt += 1;
    }
}

/// What a refusal means here.
enum Refused {
    /// It has tried as long as it may.
    Failed(String),
    /// These are the regions it knows.
    Elsewhere(Vec<Region>),
    Absent,
    Unreachable,
    Busy,
}

fn explain(refusal: Refusal) -> Refused {
    match refusal.reason {
        Some(Reason::TimedOut(late)) => Refused::Failed(late.what),
        Some(Reason::EpochMismatch(mismatch)) => Refused::Elsewhere(mismatch.current),
        Some(Reason::RegionNotFound(_)) => Refused::Absent,
        Some(Reason::NotLeader(_) | Reason::Unknown(_)) => Refused::Unreachable,
        Some(Reason::Busy(_) | Reason::DiskFull(_) | Reason::TooLarge(_)) | None => Refused::Busy,
    }
}

/// A region whose replicas were not asked.
fn unchecked(route: &Route, why: &str) -> CheckedRegion {
    let replica =
        |peer: &braid_proto::pb::Peer| CheckedReplica { store_id: peer.store_id, hash: None, failed: why.to_owned() };
    CheckedRegion {
        region: Some(region_of(route)),
        replicas: route.peers.iter().map(replica).collect(),
        verdict: Verdict::Incomplete.into(),
        ..CheckedRegion::default()
    }
}

fn region_of(route: &Route) -> Region {
    Region {
        id: route.region.0,
        start: route.range.start.clone(),
        end: route.range.end.clone(),
        epoch: Some(route.epoch),
        peers: route.peers.clone(),
    }
}

/// What follows from the hashes, and the stores that are not with the majority; all of them if there is none.
fn judge(replicas: &[CheckedReplica]) -> (Verdict, Vec<u64>) {
    let hashes = || replicas.iter().filter_map(|replica| Some((replica.store_id, replica.hash?)));
    let votes = |hash: HashResponse| hashes().filter(|(_, other)| *other == hash).count();
    let most = hashes().map(|(_, hash)| votes(hash)).max().unwrap_or(0);
    let mut leading = hashes().filter(|(_, hash)| votes(*hash) == most).map(|(_, hash)| hash);
    let winner = leading.next().filter(|first| leading.all(|other| other == *first));
    let differing: Vec<u64> = hashes().filter(|(_, hash)| winner != Some(*hash)).map(|(store, _)| store).collect();
    match hashes().count() == replicas.len() {
        _ if !differing.is_empty() => (Verdict::Different, differing),
        true => (Verdict::Same, differing),
        false => (Verdict::Incomplete, differing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One replica for each letter, on stores 1, 2, ...: its hash, or '-' for none.
    fn judged(letters: &str) -> (Verdict, Vec<u64>) {
        let replica = |(store_id, letter): (u64, char)| {
            let hash = (letter != '-').then(|| HashResponse { crc: letter.into(), ..HashResponse::default() });
            CheckedReplica { store_id, hash, failed: String::new() }
        };
        judge(&(1..).zip(letters.chars()).map(replica).collect::<Vec<_>>())
    }

    #[test]
    fn the_minority_differs_and_without_a_majority_everybody() {
        let different = |stores: &[u64]| (Verdict::Different, stores.to_vec());
        assert_eq!(judged("aaa"), (Verdict::Same, vec![]));
        assert_eq!(judged("a"), (Verdict::Same, vec![]));
        assert_eq!(judged("aab"), different(&[3]));
        assert_eq!(judged("baa"), different(&[1]));
        assert_eq!(judged("abc"), different(&[1, 2, 3]));
        assert_eq!(judged("ab"), different(&[1, 2]));
        assert_eq!(judged("aabba"), different(&[3, 4]));
        assert_eq!(judged("aabbc"), different(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_missing_answer_leaves_the_verdict_open_unless_others_differ() {
        assert_eq!(judged("aa-"), (Verdict::Incomplete, vec![]));
        assert_eq!(judged("a--"), (Verdict::Incomplete, vec![]));
        assert_eq!(judged("---"), (Verdict::Incomplete, vec![]));
        assert_eq!(judged("ab-"), (Verdict::Different, vec![1, 2]));
        assert_eq!(judged("aab-"), (Verdict::Different, vec![3]));
    }

    #[test]
    fn the_same_checksum_of_another_length_differs() {
        let replica = |store_id, bytes| CheckedReplica {
            store_id,
            hash: Some(HashResponse { crc: 7, bytes, keys: 1, versions: 1 }),
            failed: String::new(),
        };
        assert_eq!(judge(&[replica(1, 5), replica(2, 5), replica(3, 6)]), (Verdict::Different, vec![3]));
    }
}
