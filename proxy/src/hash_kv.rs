//! HashKV: one hash of all user keys at a revision, made of the regions' own.
//!
//! 1. Take a bound: the newest revision, and the compaction boundary. Judge the client's revision against it.
//! 2. Ask for every region's hash of what reads from the boundary to the revision show: the replica in this process if
//!    there is one, because whoever asks several endpoints wants to know whether they hold the same.
//! 3. Put them together in key order. Where regions are cut, what leads and what is dropped from the disks changes nothing.
//!
//! If a store has dropped more than the bound knew of, it all begins again with a newer bound.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{HashKvRequest, HashKvResponse, ResponseHeader};
use braid_proto::key::KeyRange;
use braid_proto::pb::{HashRequest, region_request, region_response};
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::{self, Kind};
use braid_store_core::hash::RangeHash;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::kv::unexpected;
use crate::shared::Shared;

use std::time::Duration;

/// How long a client without a timeout of its own waits at most: all data is read.
pub(crate) const HASHING_MAX: Duration = Duration::from_secs(3_600);
/// Regions that are asked at the same time. Stores hash few at once, so this only keeps several of them busy.
pub(crate) const FANOUT: usize = 8;
/// What etcd says where nothing was ever compacted.
const NEVER_COMPACTED: i64 = -1;

/// Serves a HashKV. The header is complete but for the cluster.
///
/// # Errors
/// What etcd would answer.
pub async fn hash_kv(
    shared: &Shared,
    request: HashKvRequest,
    metadata: &MetadataMap,
) -> Result<HashKvResponse, Status> {
    let patience = Patience::of(metadata, HASHING_MAX);
    let mut attempt = 0;
    loop {
        let bound = bound::take(&shared.numbers, shared.patience(metadata)).await?;
        let revision = bound.read_at(request.revision)?;
        match hash(shared, KeyRange::user(b"", &[0]), revision, bound, patience).await {
            Ok(hash) => {
                return Ok(HashKvResponse {
                    header: Some(ResponseHeader { revision: bound.revision, ..ResponseHeader::default() }),
                    hash: hash.crc,
                    compact_revision: if bound.compacted > 0 { bound.compacted } else { NEVER_COMPACTED },
                    hash_revision: revision,
                });
            }
            Err(status) if is_compacted(&status) && !patience.is_over() => {
                tokio::time::sleep(retry::pause(attempt)).await;
                attempt += 1;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Whether a store has dropped more than the bound knew of.
fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message() == error::COMPACTED.message
}

/// The hash of `span` at `revision`.
fn hash(
    shared: &Shared,
    span: KeyRange,
    revision: i64,
    bound: Bound,
    patience: Patience,
) -> BoxFuture<'_, Result<RangeHash, Status>> {
    Box::pin(async move {
        let pieces = shared.regions.pieces(&span, patience).await?;
        let asked: Vec<_> =
            pieces.into_iter().map(|(_, piece)| hash_piece(shared, piece, revision, bound, patience)).collect();
        let hashes = futures::stream::iter(asked).buffered(FANOUT);
        hashes.try_fold(RangeHash::default(), |whole, next| async move { Ok(whole.then(next)) }).await
    })
}

/// The hash of `piece`, which was one region's when it was looked up.
async fn hash_piece(
    shared: &Shared,
    piece: KeyRange,
    revision: i64,
    bound: Bound,
    patience: Patience,
) -> Result<RangeHash, Status> {
    let op = region_request::Op::Hash(HashRequest {
        revision,
        boundary: bound.compacted,
        start: piece.start.clone(),
        end: piece.end.clone(),
        catch_up_ms: 0,
    });
    let within = |range: &KeyRange| range.contains_range(&piece);
    let ask = Ask { anchor: &piece.start, within, op: &op, kind: Kind::Read, any_replica: true };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::Hash(hash)) => Ok(hash.into()),
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => hash(shared, piece, revision, bound, patience).await,
    }
}
