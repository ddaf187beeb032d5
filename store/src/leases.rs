//! Leases, as a store serves them: the calls around the pipeline's rules (`docs/decisions/0006-leases.md`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_proto::id::Term;
use braid_proto::key::{KeyRange, lease_key};
use braid_proto::pb::{
    KeepLeaseResponse, LeaseRange, LeaseStateResponse, ListLeasesResponse, ListedLease, RegionEpoch, RegionResponse,
    RegisterLeaseRequest, region_request, region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::locks::LockTerms;
use braid_store_client::regions::Ask;
use braid_store_client::retry::Kind;
use braid_store_core::pipeline::{Keep, LeaseWork, Pipeline, Registered, Woken};
use tokio::sync::{Semaphore, oneshot};

use crate::read::wrong_region;
use crate::region::{RegionPeer, Reply, Waker, refusal};

pub mod revoke;

/// How long a lease's region may take to say whether there is a lease, before who waits for that is told to come again.
const REGISTER_PATIENCE: Duration = Duration::from_secs(3);
/// How long one attempt to delete the keys of a lease may take.
const REVOKE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause after such an attempt has failed.
const REVOKE_PAUSE: Duration = Duration::from_millis(200);
/// Revocations over regions that one store carries out at once; the others wait their turn.
const REVOCATIONS_MAX: usize = 256;

/// What a store's revocations share.
pub struct Revocations {
    turns: Semaphore,
    terms: LockTerms,
}

impl Default for Revocations {
    fn default() -> Self {
        Self { turns: Semaphore::new(REVOCATIONS_MAX), terms: LockTerms::default() }
    }
}

/// What a look at a lease has found.
enum Seen<T> {
    Answer(T),
    /// It is going to be gone.
    Wait(oneshot::Receiver<Woken>),
    /// Its rest, which the log holds, must be cleared first.
    Clear,
}

/// Keeps a lease alive: answered from memory.
pub async fn keep(region: Arc<RegionPeer>, id: i64, epoch: RegionEpoch) -> RegionResponse {
    loop {
        let seen = look(&region, id, epoch, |pipeline, wait| match pipeline.keep_lease(id) {
            Keep::Alive(ttl) => Seen::Answer(ttl),
            Keep::Gone => Seen::Answer(0),
            Keep::Clear => Seen::Clear,
            Keep::Wait => wait(pipeline),
        });
        let (term, ttl) = match seen {
            Ok((term, Seen::Answer(ttl))) => (term, ttl),
            Ok((_, Seen::Wait(woken))) => {
                _ = woken.await;
                continue;
            }
            Ok((_, Seen::Clear)) => {
                let (reply, written) = oneshot::channel();
                region.work(LeaseWork::Rest(id, 0).into(), epoch, true, reply);
                match written.await.map(|answer| answer.result) {
                    Ok(Some(region_response::Result::KeepLease(_))) => continue,
                    Ok(other) => return RegionResponse { result: other },
                    Err(_) => return region.refuse_not_leader(),
                }
            }
            Err(refused) => return *refused,
        };
        let revision = region.shared().numbers.heard().1;
        let answer = region_response::Result::KeepLease(KeepLeaseResponse { ttl, revision });
        // The deadline was set before: whoever leads next gives at least as much (rule L4).
        if region.handle().lease(term) {
            return RegionResponse { result: Some(answer) };
        }
        return region.judged(term, answer).await;
    }
}

/// What there is of a lease.
pub async fn state(region: Arc<RegionPeer>, id: i64, at_once: bool, epoch: RegionEpoch) -> RegionResponse {
    loop {
        let seen = look(&region, id, epoch, |pipeline, wait| match pipeline.lease_is_ending(id) && !at_once {
            true => wait(pipeline),
            false => Seen::Answer(pipeline.lease_state(id)),
        });
        let (term, found) = match seen {
            Ok((term, Seen::Answer(found))) => (term, found),
            Ok((_, Seen::Wait(woken))) => {
                _ = woken.await;
                continue;
            }
            Ok((_, Seen::Clear)) => continue,
            Err(refused) => return *refused,
        };
        let revision = region.shared().numbers.heard().1;
        let mut answer = LeaseStateResponse { revision, ..LeaseStateResponse::default() };
        if let Some(found) = found {
            answer.granted_ttl = found.row.ttl;
            answer.ttl = found.left_ms.div_euclid(1_000);
            answer.ranges = found.row.ranges;
        }
        return region.judged(term, region_response::Result::LeaseState(answer)).await;
    }
}

/// All leases whose records lie in the region.
pub async fn list(region: Arc<RegionPeer>, epoch: RegionEpoch) -> RegionResponse {
    if let Some(refused) = wrong_region(&region, &region.handle().region().range(), epoch) {
        return refused;
    }
    let found = region.with(|pipeline, _| Some((pipeline.leading()?, pipeline.list_leases())));
    let Some((term, found)) = found else { return region.refuse_not_leader() };
    let leases = found.into_iter().map(|(id, left_ms)| ListedLease { id, left_ms }).collect();
    let revision = region.shared().numbers.heard().1;
    region.judged(term, region_response::Result::ListLeases(ListLeasesResponse { leases, revision })).await
}

type Line<'a, T> = &'a mut dyn FnMut(&mut Pipeline<Reply, Waker>) -> Seen<T>;

/// Looks at a lease, or takes a place in the line of those who wait until it is gone.
fn look<T>(
    region: &RegionPeer,
    id: i64,
    epoch: RegionEpoch,
    see: impl FnOnce(&mut Pipeline<Reply, Waker>, Line<'_, T>) -> Seen<T>,
) -> Result<(Term, Seen<T>), Box<RegionResponse>> {
    if let Some(refused) = wrong_region(region, &KeyRange::single(lease_key(id)), epoch) {
        return Err(refused.into());
    }
    let looked = region.with(|pipeline, effects| {
        let term = pipeline.leading().ok_or_else(|| pipeline.not_leader())?;
        let mut wait = |pipeline: &mut Pipeline<Reply, Waker>| {
            let (wake, woken) = oneshot::channel();
            pipeline.wait_lease(id, wake, effects);
            Seen::Wait(woken)
        };
        Ok((term, see(pipeline, &mut wait)))
    });
    looked.map_err(|refused| refusal(refused).into())
}

/// Asks the region of a lease's record to take `range` into it: what a put with a lease waits for.
pub async fn register(region: Weak<RegionPeer>, question: u64, id: i64, range: KeyRange) {
    let Some(cluster) = region.upgrade().map(|region| Arc::clone(&region.shared().cluster)) else { return };
    metrics::counter!("braid_lease_registrations_total").increment(1);
    let range = LeaseRange { start: range.start, end: range.end };
    let op = region_request::Op::RegisterLease(RegisterLeaseRequest { id, range: Some(range) });
    let anchor = lease_key(id);
    let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
    let registered = match cluster.ask(ask, Patience::within(REGISTER_PATIENCE)).await {
        Ok(region_response::Result::RegisterLease(answer)) if answer.found => Registered::Found,
        Ok(region_response::Result::RegisterLease(_)) => Registered::Missing,
        other => {
            tracing::debug!(?other, lease = id, "the region of a lease has not said whether there is one");
            Registered::Unanswered
        }
    };
    if let Some(region) = region.upgrade() {
        region.with(|pipeline, effects| pipeline.registered(id, question, registered, effects));
    }
}

/// Sees that the keys of a lease that is being revoked go, and then its record, until they are gone or this peer does
/// not lead any more: the next leader goes on.
pub async fn revoke(region: Weak<RegionPeer>, id: i64, ranges: Vec<LeaseRange>) {
    let Some(peer) = region.upgrade() else { return };
    let Some(reign) = peer.with(|pipeline, _| pipeline.reign()) else { return };
    let (cluster, shared) = (Arc::clone(&peer.shared().cluster), Arc::clone(&peer.shared().revocations));
    drop(peer);
    let range = |range: LeaseRange| KeyRange { start: range.start, end: range.end };
    let ranges: Vec<KeyRange> = ranges.into_iter().map(range).collect();
    let Ok(_turn) = shared.turns.acquire().await else { return };
    loop {
        let patience = Patience::within(REVOKE_PATIENCE);
        let ended = revoke::carry_out(&cluster, &shared.terms, id, &ranges, patience).await;
        let Some(peer) = region.upgrade() else { return };
        if peer.with(|pipeline, _| pipeline.reign()) != Some(reign) {
            return;
        }
        match ended {
            Ok(revision) => return peer.with(|pipeline, _| pipeline.lease_keys_gone(id, revision)),
            Err(why) => {
                tracing::warn!(%why, lease = id, region = %peer.id(), "the keys of a lease are not deleted yet");
            }
        }
        drop(peer);
        tokio::time::sleep(REVOKE_PAUSE).await;
    }
}
