//! Range: inside one region the region does it all; over many it is one snapshot.
//!
//! Over many regions:
//!
//! 1. Take a bound R, after the request has arrived (rule Q1). Judge an explicit revision against it.
//! 2. Ask every region for its part at that revision. Order, filters and limit go along, so that no region sends more
//!    than the client may get.
//! 3. A limited request in key order asks the first region for keys and the others for their counts, all at once. If
//!    that is not enough, a second round fetches the missing keys, and by then it is known where they are.
//! 4. Put the parts together ([`braid_proto::range`]); the header says R.
//!
//! A request that named no revision and is overtaken by a compaction starts again with a new R (rule Q5). Serializable
//! requests go their own way (`replicas`).

use std::sync::Arc;

use braid_proto::check;
use braid_proto::error::{self, EtcdStatus};
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, TAG_USER, strip_user, user_key};
use braid_proto::pb::{ReadRequest, region_request, region_response};
use braid_proto::range::{Fetch, fetch, for_each_region, merge};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use tonic::Status;

use super::{replicas, unexpected};
use crate::shared::Shared;
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::{self, Kind};
use braid_store_client::route::Route;

/// Regions that one request asks at the same time.
const FANOUT: usize = 64;

/// A part of a range and the region that holds it.
type Piece = (Arc<Route>, KeyRange);

/// Serves a Range.
///
/// # Errors
/// What etcd would answer.
pub async fn range(shared: &Shared, mut request: RangeRequest, patience: Patience) -> Result<RangeResponse, Status> {
    check::range(&request)?;
    if request.serializable {
        match replicas::range(shared, &request, patience).await {
            // A revision that the replicas have not come to: it is in the future only if the leaders say so. Or they are
            // so far behind that what they could answer is compacted.
            Err(status) if is(&status, error::FUTURE_REVISION) || overtaken(&status, request.revision) => {
                request.serializable = false;
            }
            answer => return answer,
        }
    }
    let span = KeyRange::user(&request.key, &request.range_end);
    if span.is_empty() {
        let bound = bound::take(&shared.numbers, patience).await?;
        bound.read_at(request.revision)?;
        let header = Some(ResponseHeader { revision: bound.revision, ..Default::default() });
        return Ok(RangeResponse { header, ..Default::default() });
    }
    match ask_one(shared, &span, request, 0, patience).await {
        Ok(answer) => Ok(answer),
        Err((NoAnswer::Failed(status), _)) => Err(status),
        Err((NoAnswer::Spread, request)) => at_a_bound(shared, &request, &span, patience).await,
    }
}

/// Whether `status` is this error of etcd's.
pub(crate) fn is(status: &Status, error: EtcdStatus) -> bool {
    status.code() == error.code && status.message() == error.message
}

/// Reads one snapshot of a range over many regions.
async fn at_a_bound(
    shared: &Shared,
    request: &RangeRequest,
    span: &KeyRange,
    patience: Patience,
) -> Result<RangeResponse, Status> {
    let mut attempt = 0;
    loop {
        let bound = bound::take(&shared.numbers, patience).await?;
        match snapshot(shared, request, span, bound, patience).await {
            Err(status) if overtaken(&status, request.revision) && !patience.is_over() => {
                tokio::time::sleep(retry::pause(attempt)).await;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

/// Whether a read at a bound has lost its history to a compaction, though the client named no revision.
pub(crate) fn overtaken(status: &Status, asked: i64) -> bool {
    asked <= 0 && is(status, error::COMPACTED)
}

/// Reads a range at the revision that `request` names, or else at the bound.
///
/// # Errors
/// The revision is not there (yet, any more), or a region did not answer in time.
pub(crate) async fn snapshot(
    shared: &Shared,
    request: &RangeRequest,
    span: &KeyRange,
    bound: Bound,
    patience: Patience,
) -> Result<RangeResponse, Status> {
    let read_at = bound.read_at(request.revision)?;
    let part = RangeRequest { revision: read_at, serializable: false, ..for_each_region(request) };
    let answer = spread_out(shared, part, span.clone(), patience).await?;
    let mut answer = merge(request, [answer]);
    answer.header = Some(ResponseHeader { revision: bound.revision, ..Default::default() });
    Ok(answer)
}

/// Reads the first keys of `span`, at most as many as `request` allows and at the revision it names, and moves the start
/// of `span` behind them. None are left if there are none.
///
/// # Errors
/// The revision is not there any more, or a region did not answer in time.
pub(crate) async fn next_keys(
    shared: &Shared,
    request: RangeRequest,
    span: &mut KeyRange,
    patience: Patience,
) -> Result<Vec<KeyValue>, Status> {
    while !span.is_empty() {
        let route = shared.regions.find(&span.start, patience).await?;
        let piece = span.intersect(&route.range);
        let answer = ask_piece(shared, piece.clone(), request.clone(), patience).await?;
        span.start = match answer.kvs.last() {
            Some(last) if answer.more => KeyRange::single(user_key(&last.key)).end,
            _ => piece.end,
        };
        if !answer.kvs.is_empty() {
            return Ok(answer.kvs);
        }
    }
    Ok(Vec::new())
}

/// Asks every region of `span` for its part of `request`, which names its revision, and puts the parts together.
pub(super) fn spread_out(
    shared: &Shared,
    request: RangeRequest,
    span: KeyRange,
    patience: Patience,
) -> BoxFuture<'_, Result<RangeResponse, Status>> {
    Box::pin(async move {
        let pieces = shared.regions.pieces(&span, patience).await?;
        match (fetch(&request), &pieces[..]) {
            (Fetch::First(_), [first, rest @ ..]) if !rest.is_empty() => {
                limited(shared, &request, first, rest, patience).await
            }
            _ => {
                let all = pieces.iter().map(|piece| (piece, request.clone()));
                Ok(merge(&request, ask_each(shared, all, patience).await?))
            }
        }
    })
}

/// A limited read in key order: `more` and `count` come from the counts, keys only from where they are needed.
async fn limited(
    shared: &Shared,
    request: &RangeRequest,
    first: &Piece,
    rest: &[Piece],
    patience: Patience,
) -> Result<RangeResponse, Status> {
    let count = RangeRequest { count_only: true, ..request.clone() };
    let counts = rest.iter().map(|piece| (piece, count.clone()));
    let asked = std::iter::once((first, request.clone())).chain(counts);
    let mut answers = ask_each(shared, asked, patience).await?.into_iter();
    let mut whole = answers.next().unwrap_or_default();
    let mut wanted = request.limit - whole.kvs.len() as i64;
    let mut missing = Vec::new();
    for (piece, answer) in rest.iter().zip(answers) {
        whole.count += answer.count;
        let limit = wanted.min(answer.count);
        if limit > 0 {
            wanted -= limit;
            missing.push((piece, RangeRequest { limit, ..request.clone() }));
        }
    }
    for answer in ask_each(shared, missing.into_iter(), patience).await? {
        whole.kvs.extend(answer.kvs);
    }
    whole.more = whole.count > request.limit;
    Ok(whole)
}

/// Asks for several pieces at once; answers come in the order of the pieces.
async fn ask_each<'a>(
    shared: &'a Shared,
    asked: impl Iterator<Item = (&'a Piece, RangeRequest)>,
    patience: Patience,
) -> Result<Vec<RangeResponse>, Status> {
    // Collected first: the compiler cannot see that a borrowing iterator inside a boxed future is Send.
    let asked: Vec<_> = asked.map(|(piece, request)| ask_piece(shared, piece.1.clone(), request, patience)).collect();
    futures::stream::iter(asked).buffered(FANOUT).try_collect().await
}

/// Asks for one piece, which may have been cut into several regions meanwhile.
async fn ask_piece(
    shared: &Shared,
    span: KeyRange,
    request: RangeRequest,
    patience: Patience,
) -> Result<RangeResponse, Status> {
    let (key, range_end) = user_range(&span);
    let read_at = request.revision;
    let request = RangeRequest { key, range_end, ..request };
    match ask_one(shared, &span, request, read_at, patience).await {
        Ok(answer) => Ok(answer),
        Err((NoAnswer::Failed(status), _)) => Err(status),
        Err((NoAnswer::Spread, request)) => spread_out(shared, request, span, patience).await,
    }
}

/// Asks one region. Gives the request back if its range, `span`, lies in several.
pub(super) async fn ask_one(
    shared: &Shared,
    span: &KeyRange,
    request: RangeRequest,
    read_at: i64,
    patience: Patience,
) -> Result<RangeResponse, (NoAnswer, RangeRequest)> {
    let any_replica = request.serializable;
    let op = region_request::Op::Read(ReadRequest { range: Some(request), read_at });
    let within = |range: &KeyRange| range.contains_range(span);
    let ask = Ask { anchor: &span.start, within, op: &op, kind: Kind::Read, any_replica };
    let failed = match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::Range(answer)) => return Ok(answer),
        Ok(other) => NoAnswer::Failed(unexpected(other)),
        Err(failed) => failed,
    };
    let region_request::Op::Read(ReadRequest { range: Some(request), .. }) = op else { unreachable!("built above") };
    Err((failed, request))
}

/// etcd's (key, range_end) of internal keys; the opposite of [`KeyRange::user`].
pub(crate) fn user_range(span: &KeyRange) -> (Bytes, Bytes) {
    let key = strip_user(&span.start).unwrap_or_default();
    let range_end = match span.end[..] {
        // One key, which stores read faster than a range.
        [ref start @ .., 0] if *start == span.start[..] => Bytes::new(),
        [TAG_USER, ..] => span.end.slice(1..),
        // Behind all user keys: etcd writes "everything from the key on" so.
        _ => Bytes::from_static(&[0]),
    };
    (key, range_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_asked_for_in_etcds_words() {
        let check = |key: &'static [u8], range_end: &'static [u8]| {
            let span = KeyRange::user(key, range_end);
            assert_eq!(user_range(&span), (Bytes::from_static(key), Bytes::from_static(range_end)));
        };
        check(b"a", b"b");
        check(b"a", b"");
        check(b"a", b"a\0\0");
        check(b"a", b"\0");
        check(b"\0", b"\0");
        check(b"\xff", b"\xff\xff");
    }
}
