//! Serves the hash of what this replica holds ([`crate::engine::Snapshot::hash`]), whether it leads or not.
//!
//! 1. Wait until everything up to the revision is applied here ([`crate::frontier::reach`]).
//! 2. Wait for a place: a few scans at a time, because each reads all of its range and others want the disk too.
//! 3. Take a snapshot, scan it on a thread for blocking work. Whoever gives up, or whose time is up, ends the scan.
//!
//! A replica that is behind, whose region has changed, or whose store has dropped more than the caller knows, says so
//! instead: what it could say would not be comparable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use braid_proto::error;
use braid_proto::key::KeyRange;
use braid_proto::pb::{HashRequest, RegionEpoch, RegionResponse, region_response};
use braid_store_client::deadline::Patience;
use braid_store_core::hash::RangeHash;
use braid_store_core::pipeline::{busy, timed_out};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::engine::Unhashed;
use crate::frontier;
use crate::machine::Regions;
use crate::read::wrong_region;
use crate::region::{RegionPeer, etcd_error, refusal};

/// Scans that run at the same time, over all stores of a process; the others wait. Two keep the disk busy.
const SCANS_MAX: usize = 2;

static SCANS: Semaphore = Semaphore::const_new(SCANS_MAX);

/// Serves one question. `timeout` is how long the caller waits.
pub async fn serve(
    regions: Arc<Regions>,
    region: Arc<RegionPeer>,
    request: HashRequest,
    epoch: RegionEpoch,
    timeout: Duration,
) -> RegionResponse {
    let patience = Patience::within(timeout);
    let id = region.id();
    let catch_up = match request.catch_up_ms {
        0 => patience,
        ms => Patience::within(timeout.min(Duration::from_millis(ms.into()))),
    };
    if let Err(refused) = span(&region, &request, epoch) {
        return *refused;
    }
    if !frontier::reach(&region, request.revision, catch_up).await {
        if region.is_gone() {
            return refusal(region.ended());
        }
        return refusal(timed_out("this replica does not have everything up to the revision yet"));
    }
    let Ok(Ok(place)) = timeout_at(patience.deadline, SCANS.acquire()).await else {
        return refusal(timed_out("too many ranges are being hashed"));
    };
    // A raft snapshot may have put another peer into the place of the one that has waited.
    let Some(region) = regions.get(id) else { return refusal(regions.missing(id)) };
    let asked = Asked::default();
    let still_asked = Arc::clone(&asked.0);
    let scanning = Arc::clone(&region);
    let scan = move || {
        let _place = place;
        let go_on = || still_asked.load(Ordering::Relaxed) && Instant::now() < patience.deadline;
        scan(&scanning, &request, epoch, &go_on)
    };
    match tokio::task::spawn_blocking(scan).await {
        Ok(answer) => answer,
        Err(error) => refusal(timed_out(&format!("the scan was given up: {error}"))),
    }
}

fn scan(region: &RegionPeer, request: &HashRequest, epoch: RegionEpoch, go_on: &dyn Fn() -> bool) -> RegionResponse {
    let moved = || Box::new(refusal(busy("the replica's data is being replaced")));
    let Some(replacements) = region.handle().replacements() else { return *moved() };
    let hash = region.data().snapshot().map_err(Unhashed::from).and_then(|snapshot| {
        // Checked behind the snapshot: epochs never come back, so it is of this one, and not half of a raft snapshot.
        let span = match span(region, request, epoch) {
            Ok(span) if snapshot.range().contains_range(&span) => span,
            Ok(_) => return Ok(Err(moved())),
            Err(refused) => return Ok(Err(refused)),
        };
        if region.handle().replacements() != Some(replacements) {
            return Ok(Err(moved()));
        }
        snapshot.hash(&span, request.boundary, request.revision, go_on).map(Ok)
    });
    match hash {
        // What was hashed may have been half deleted.
        _ if region.is_gone() => refusal(region.ended()),
        Ok(Ok(hash)) => answer(hash),
        Ok(Err(refused)) => *refused,
        Err(Unhashed::Compacted) => etcd_error(error::COMPACTED),
        Err(Unhashed::GivenUp) => refusal(timed_out("the range was not hashed in time")),
        Err(Unhashed::Damaged(damage)) => {
            region.poison(&damage.0);
            etcd_error(error::CORRUPT)
        }
    }
}

/// The keys that are asked for, if this replica is the one to ask.
fn span(region: &RegionPeer, request: &HashRequest, epoch: RegionEpoch) -> Result<KeyRange, Box<RegionResponse>> {
    if region.is_damaged() {
        return Err(Box::new(etcd_error(error::CORRUPT)));
    }
    let span = match request.start.is_empty() && request.end.is_empty() {
        true => region.handle().region().range(),
        false => KeyRange { start: request.start.clone(), end: request.end.clone() },
    };
    match wrong_region(region, &span, epoch) {
        Some(refused) => Err(Box::new(refused)),
        None => Ok(span),
    }
}

fn answer(hash: RangeHash) -> RegionResponse {
    RegionResponse { result: Some(region_response::Result::Hash(hash.into())) }
}

/// True until it is dropped: with the request's future when the caller gives up.
struct Asked(Arc<AtomicBool>);

impl Default for Asked {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
