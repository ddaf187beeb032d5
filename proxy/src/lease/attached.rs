//! The keys of a lease: every region that may have some names them.
//!
//! A region with more keys than fit into an answer only says from where to where they are; they are found by reading that
//! part of it.

use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::key::{KeyRange, strip_user};
use braid_proto::pb::{AttachedKeysRequest, AttachedKeysResponse, LeaseRange, region_request, region_response};
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::{self, Kind};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use tonic::Status;

use crate::kv::range::{next_keys, overtaken, user_range};
use crate::kv::unexpected;
use crate::shared::Shared;

/// Regions that are asked at the same time.
const FANOUT: usize = 16;
/// Keys that are read at once where a region has too many to name.
const CHUNK: i64 = 10_000;

/// The etcd keys that lease `id` is attached to, in order; all lie in `ranges`.
///
/// # Errors
/// A region does not answer in time.
pub async fn keys(shared: &Shared, id: i64, ranges: Vec<LeaseRange>, patience: Patience) -> Result<Vec<Bytes>, Status> {
    let asked: Vec<_> = ranges
        .into_iter()
        .map(|range| keys_in(shared, id, KeyRange { start: range.start, end: range.end }, patience))
        .collect();
    let found: Vec<Vec<Bytes>> = futures::stream::iter(asked).buffered(FANOUT).try_collect().await?;
    let mut keys: Vec<Bytes> = found.into_iter().flatten().collect();
    keys.sort_unstable();
    Ok(keys)
}

/// The keys of all regions that hold a part of `span`.
fn keys_in(shared: &Shared, id: i64, span: KeyRange, patience: Patience) -> BoxFuture<'_, Result<Vec<Bytes>, Status>> {
    Box::pin(async move {
        let pieces = shared.regions.pieces(&span, patience).await?;
        let asked: Vec<_> = pieces.into_iter().map(|(_, piece)| keys_of_piece(shared, id, piece, patience)).collect();
        let found: Vec<Vec<Bytes>> = futures::stream::iter(asked).buffered(FANOUT).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    })
}

/// The keys of `piece`, which was one region's when it was looked up.
async fn keys_of_piece(shared: &Shared, id: i64, piece: KeyRange, patience: Patience) -> Result<Vec<Bytes>, Status> {
    let op = region_request::Op::AttachedKeys(AttachedKeysRequest { lease: id, close: false });
    let within = |range: &KeyRange| range.contains_range(&piece);
    let ask = Ask { anchor: &piece.start, within, op: &op, kind: Kind::Read, any_replica: false };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::AttachedKeys(answer)) if answer.keys.is_empty() && answer.count > 0 => {
            let mut attempt = 0;
            loop {
                match read(shared, id, &answer, &piece, patience).await {
                    Err(status) if overtaken(&status, 0) && !patience.is_over() => {
                        tokio::time::sleep(retry::pause(attempt)).await;
                        attempt += 1;
                    }
                    keys => return keys,
                }
            }
        }
        Ok(region_response::Result::AttachedKeys(answer)) => {
            // Other pieces of the same region are asked for by themselves.
            Ok(answer.keys.iter().filter(|key| piece.contains(key)).filter_map(strip_user).collect())
        }
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => keys_in(shared, id, piece, patience).await,
    }
}

/// Reads from the first to the last key of an answer, as far as that lies in `piece`.
async fn read(
    shared: &Shared,
    id: i64,
    answer: &AttachedKeysResponse,
    piece: &KeyRange,
    patience: Patience,
) -> Result<Vec<Bytes>, Status> {
    let mut end = BytesMut::with_capacity(answer.last.len() + 1);
    end.put_slice(&answer.last);
    end.put_u8(0);
    let mut span = KeyRange { start: answer.first.clone(), end: end.freeze() }.intersect(piece);
    let bound = bound::take(&shared.numbers, patience).await?;
    let mut keys = Vec::new();
    while !span.is_empty() {
        let (key, range_end) = user_range(&span);
        let request = RangeRequest {
            key,
            range_end,
            limit: CHUNK,
            revision: bound.revision,
            keys_only: true,
            ..RangeRequest::default()
        };
        let kvs = next_keys(shared, request, &mut span, patience).await?;
        if kvs.is_empty() {
            break;
        }
        keys.extend(kvs.into_iter().filter(|kv| kv.lease == id).map(|kv| kv.key));
    }
    Ok(keys)
}
