//! One attempt at a transaction: look, attach, lock, decide.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, RangeRequest};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Change, DecideRequest, DecideResponse, Share, region_request, region_response};
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use braid_store_client::locks::{Locks, Taken};
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use braid_store_core::eval::{self, Context, Evaluated, Leases, Request, WaitFor};
use braid_store_core::overlay::Overlay;
use braid_store_core::view::View;
use futures::future::try_join_all;
use tokio::time::Instant;
use tonic::Status;

use super::fetched::Fetched;
use super::leases;
use super::locks::{self, Wanted};
use super::plan::{Part, Plan, by_region, surely_writes};
use super::{BYTES_MAX, CHANGES_MAX, Failed, too_large};
use crate::kv::range::{self, is, overtaken, snapshot, user_range};
use crate::kv::unexpected;
use crate::shared::Shared;

/// How long a guess waits for replicas: without an answer the transaction is looked at as if it did not write.
const GUESS_PATIENCE: Duration = Duration::from_millis(50);

/// What an evaluation without placeholders of others comes to.
enum Outcome {
    /// Nothing changes; headers are to be filled with the bound.
    Read(region_response::Result),
    /// These keys change.
    Write(Vec<Change>, region_response::Result),
    /// It puts a key with a lease of which nothing is known: it writes, or fails.
    Unattached,
}

/// Runs a transaction.
pub async fn run(
    shared: &Arc<Shared>,
    request: &Request,
    patience: Patience,
) -> Result<region_response::Result, Failed> {
    let begun = Instant::now();
    let plan = Plan::of(request);
    let writes = surely_writes(request) || guess(shared, request, &plan).await;
    // A bound is needed before what is read there, and otherwise by the time of the decision.
    let mut past = Fetched::default();
    let mut taken_before = None;
    if !writes || !plan.past.is_empty() || plan.locks.is_empty() {
        let bound = bound::take(&shared.numbers, patience).await?;
        taken_before = Some(bound);
        past = self::past(shared, &plan, bound, patience).await?;
        if !writes || plan.locks.is_empty() {
            let mut state = past;
            let reads = plan.locks.iter().map(|(span, _)| at_bound(shared, span, bound, patience));
            for kvs in try_join_all(reads).await? {
                state.add(kvs);
            }
            if let Outcome::Read(answer) = evaluate(request, &state, bound, Leases::default())? {
                return Ok(filled(answer, None, bound.revision));
            }
            past = Fetched::default().with_past_of(state);
        }
    }
    let looked = begun.elapsed();
    let mut parts = parts(shared, &plan, patience).await?;
    let known = leases::attach(shared, request, &mut parts, patience).await?;
    let wanted = Wanted { count_only: false, puts: request.puts() };
    let bound = async {
        match taken_before {
            Some(bound) => Ok(bound),
            None => bound::take(&shared.numbers, patience).await,
        }
    };
    let (locked, bound) = tokio::join!(locks::take(shared, &parts, wanted, patience), bound);
    let (locks, mut taken) = locked?;
    let bound = match bound {
        Ok(bound) => bound,
        Err(error) => {
            locks.release(patience).await;
            return Err(error.into());
        }
    };
    let mut state = Fetched::default().with_past_of(past);
    for lock in &mut taken {
        for data in std::mem::take(&mut lock.data) {
            state.add(data.kvs);
        }
    }
    match evaluate(request, &state, bound, known.leases()) {
        Ok(Outcome::Write(changes, answer)) => {
            let shares = shares(&taken, changes)?;
            let locked = begun.elapsed();
            let revision = decide(shared, locks, shares, patience).await?;
            let decided = begun.elapsed();
            tracing::debug!(regions = taken.len(), ?looked, ?locked, ?decided, revision, "a transaction over regions");
            Ok(filled(answer, Some(revision), revision - 1))
        }
        // While all is locked nothing that it saw can change, so any revision of now is right (rule M1).
        Ok(Outcome::Read(answer)) => {
            let bound = bound::take(&shared.numbers, patience).await?;
            locks.release(patience).await;
            Ok(filled(answer, None, bound.revision))
        }
        Ok(Outcome::Unattached) => {
            locks.release(patience).await;
            Err(Status::internal("braid: a transaction puts a lease that it has not asked for").into())
        }
        // What was not found may have been granted before the locks were taken.
        Err(Failed::With(status)) if is(&status, error::LEASE_NOT_FOUND) => {
            let changed = known.has_changed(shared, patience).await;
            locks.release(patience).await;
            if changed? { Err(Failed::Again("lease")) } else { Err(status.into()) }
        }
        Err(failed) => {
            locks.release(patience).await;
            Err(failed)
        }
    }
}

/// Whether the transaction will probably change something, going by what any replicas have: the nearest ones, without a
/// bound and without a common moment. A wrong guess costs time and nothing else: what is guessed to write is evaluated
/// under its locks, what is guessed not to is evaluated at a bound.
async fn guess(shared: &Shared, request: &Request, plan: &Plan) -> bool {
    if !plan.past.is_empty() {
        return false;
    }
    let patience = Patience::within(GUESS_PATIENCE);
    let reads = plan.locks.iter().map(|(span, _)| async move {
        let (key, range_end) = user_range(span);
        let stale = RangeRequest { key, range_end, serializable: true, ..RangeRequest::default() };
        range::range(shared, stale, patience).await
    });
    let Ok(answers) = try_join_all(reads).await else { return false };
    let mut state = Fetched::default();
    let heard = shared.numbers.heard().1;
    for answer in answers {
        state.add(answer.kvs);
    }
    let bound = Bound { revision: heard, compacted: 0 };
    matches!(evaluate(request, &state, bound, Leases::default()), Ok(Outcome::Write(..) | Outcome::Unattached))
}

/// The regions' parts of what is to be locked, in key order.
pub async fn parts(shared: &Shared, plan: &Plan, patience: Patience) -> Result<Vec<Part>, Status> {
    let mut pieces = Vec::new();
    for (span, exclusive) in &plan.locks {
        let found = shared.regions.pieces(span, patience).await?;
        pieces.extend(found.into_iter().map(|(route, piece)| (route, piece, *exclusive)));
    }
    Ok(by_region(pieces))
}

/// Hands the decision to the primary. From then on it is the primary's, whatever becomes of the answer.
pub async fn decide(shared: &Shared, mut locks: Locks, shares: Vec<Share>, patience: Patience) -> Result<i64, Failed> {
    let primary = locks.primary().clone();
    let op = region_request::Op::Decide(DecideRequest { txn: Some(locks.txn()), shares });
    let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Write, any_replica: false };
    locks.decided();
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::Decide(DecideResponse { over: false, revision })) => Ok(revision),
        // The primary has given the transaction up, so that it never happens: nobody need wait to find out.
        Ok(region_response::Result::Decide(_)) => {
            locks.release(patience).await;
            Err(Failed::Again("over"))
        }
        Ok(other) => Err(unexpected(other).into()),
        Err(NoAnswer::Failed(status)) => Err(status.into()),
        Err(NoAnswer::Spread) => Err(too_large().into()),
    }
}

/// Cuts changes, whose places are their sub-revisions, into what is done under each lock.
fn shares(taken: &[Taken], changes: Vec<Change>) -> Result<Vec<Share>, Failed> {
    let empty = |lock: &Taken| Share { key: lock.key.clone(), token: Some(lock.token), ..Share::default() };
    let mut shares: Vec<Share> = taken.iter().map(empty).collect();
    for (sub, change) in (0_u32..).zip(changes) {
        let holds = |lock: &Taken| lock.ranges.iter().any(|range: &KeyRange| range.contains(&change.key));
        let Some(at) = taken.iter().position(holds) else {
            return Err(Status::internal("braid: a transaction changes a key that it has not locked").into());
        };
        shares[at].changes.push(change);
        shares[at].subs.push(sub);
    }
    Ok(shares)
}

fn evaluate(request: &Request, state: &Fetched, bound: Bound, leases: Leases<'_>) -> Result<Outcome, Failed> {
    let context = Context {
        heard: bound.revision,
        heard_is_fresh: true,
        compacted: bound.compacted,
        effect_bytes_max: BYTES_MAX,
        effect_changes_max: CHANGES_MAX,
        leases,
    };
    let overlay = Overlay::default();
    match eval::evaluate(request, &View { overlay: &overlay, base: state }, &context) {
        Ok(Evaluated::Read { response, .. }) => Ok(Outcome::Read(response)),
        Ok(Evaluated::Write { changes, response, .. }) => Ok(Outcome::Write(changes, response)),
        Ok(Evaluated::Fail { error, .. }) => Err(error.into()),
        Ok(Evaluated::TooLarge) => Err(too_large().into()),
        Ok(Evaluated::Wait(WaitFor::Lease(_))) => Ok(Outcome::Unattached),
        Ok(Evaluated::Wait(wait)) => {
            Err(Status::internal(format!("braid: nothing is in flight, and yet {wait:?}")).into())
        }
        Err(damaged) => Err(Status::internal(format!("braid: {damaged}")).into()),
    }
}

/// Fills an answer's revisions in.
fn filled(mut answer: region_response::Result, own: Option<i64>, before: i64) -> region_response::Result {
    let nothing = |seq| unreachable!("nothing was in flight, and yet the answer names {seq}");
    eval::fill(&mut answer, &nothing, own, before);
    answer
}

/// Reads the ranges that name a revision of their own. One that cannot be read is left for the evaluation to judge.
async fn past(shared: &Shared, plan: &Plan, bound: Bound, patience: Patience) -> Result<Fetched, Failed> {
    let mut state = Fetched::default();
    for range in &plan.past {
        if bound.read_at(range.revision).is_err() {
            continue;
        }
        let span = KeyRange::user(&range.key, &range.range_end);
        if span.is_empty() {
            state.add_past(range, Vec::new());
            continue;
        }
        let all = RangeRequest {
            key: range.key.clone(),
            range_end: range.range_end.clone(),
            revision: range.revision,
            ..RangeRequest::default()
        };
        let found = snapshot(shared, &all, &span, bound, patience).await?;
        state.add_past(range, found.kvs);
    }
    Ok(state)
}

/// Reads all of `span` at the bound.
pub async fn at_bound(
    shared: &Shared,
    span: &KeyRange,
    bound: Bound,
    patience: Patience,
) -> Result<Vec<braid_proto::etcd::mvccpb::KeyValue>, Failed> {
    let (key, range_end) = user_range(span);
    let all = RangeRequest { key, range_end, ..RangeRequest::default() };
    match snapshot(shared, &all, span, bound, patience).await {
        Ok(answer) => Ok(answer.kvs),
        Err(status) if overtaken(&status, 0) => Err(Failed::Again("compacted")),
        Err(status) => Err(status.into()),
    }
}

/// A DeleteRange of few keys, as a transaction like any other.
pub async fn delete(
    shared: &Arc<Shared>,
    delete: &DeleteRangeRequest,
    patience: Patience,
) -> Result<region_response::Result, Failed> {
    run(shared, &Request::DeleteRange(delete.clone()), patience).await
}
