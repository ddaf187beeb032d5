//! Up to which revision a replica has everything: what serializable reads go by (rules F1, Q4).
//!
//! Any replica knows its own frontier from what it has applied: the newest revision of the region, or less where a
//! transaction over several regions holds a lock. A region that nobody writes to stays behind the rest of the cluster,
//! so a replica asks its leader how far the region is when somebody wants to know, and not more often than every
//! [`PROMISE_AGE`]. The leader's word names a log index, and counts once that is applied here.
//!
//! Who needs everything up to a revision ([`reach`]) waits: the leader until what may be at or below it is out of the
//! way, another replica for the leader's word and then for its index.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::Term;
use braid_proto::pb::{
    FrontierRequest, FrontierResponse, RegionEpoch, RegionResponse, region_request, region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::Ask;
use braid_store_client::retry::{self, Kind};
use braid_store_core::epoch;
use braid_store_core::pipeline::timed_out;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::read;
use crate::region::{RegionPeer, refusal};

/// How old a leader's word may be before it is asked again.
const PROMISE_AGE: Duration = Duration::from_millis(100);
/// How long a replica waits for its leader. A serializable read must work without one: it then sees what is here.
const LEADER_PATIENCE: Duration = Duration::from_millis(100);

/// What a leader has said.
#[derive(Default)]
pub struct Promise {
    words: Mutex<Words>,
}

#[derive(Default)]
struct Words {
    revision: i64,
    index: u64,
    /// Counts already: its index was seen to be applied.
    counted: i64,
    asked: Option<Instant>,
}

/// The frontier of this replica as far as it knows by itself.
pub fn here(region: &RegionPeer) -> i64 {
    let mut words = region.promise().words.lock();
    if words.index <= region.handle().applied_index() {
        words.counted = words.counted.max(words.revision);
    }
    words.counted.max(region.data().frontier())
}

/// Serves a question for the frontier.
pub async fn serve(
    region: Arc<RegionPeer>,
    request: FrontierRequest,
    epoch: RegionEpoch,
    timeout: Duration,
) -> RegionResponse {
    if let Some(refused) = region.unserved() {
        return refusal(refused);
    }
    if !epoch::serves(&region.handle().region(), epoch) {
        return refusal(region.with(|pipeline, _| pipeline.epoch_mismatch()));
    }
    let leads = region.with(|pipeline, _| pipeline.leading());
    let wanted = request.at_least;
    match leads {
        Some(_) if wanted <= 0 => promise(&region).await,
        Some(term) => match timeout_at(Instant::now() + timeout, promise_at(&region, wanted, term)).await {
            Ok(promised) => promised,
            Err(_) => refusal(timed_out("writes at or below the revision are still under way")),
        },
        None if request.leader => region.refuse_not_leader(),
        None if wanted > 0 => match reach(&region, wanted, Patience::within(timeout)).await {
            true => answer(here(&region), 0),
            false if region.is_gone() => refusal(region.ended()),
            false => refusal(timed_out("this replica does not have everything up to the revision yet")),
        },
        None => {
            ask_leader(&region).await;
            answer(here(&region), 0)
        }
    }
}

/// The leader's word. What it knows is sampled first, leadership checked last (rule F1).
async fn promise(region: &RegionPeer) -> RegionResponse {
    let heard = region.shared().numbers.heard().1;
    let Some((term, revision)) = region.with(|pipeline, _| Some((pipeline.leading()?, pipeline.frontier(heard))))
    else {
        return region.refuse_not_leader();
    };
    let index = region.handle().applied_index();
    region.judged(term, region_response::Result::Frontier(FrontierResponse { revision, index })).await
}

/// The leader's word that its frontier covers `wanted`, which the sequencer has given out: as soon as that is true.
async fn promise_at(region: &Arc<RegionPeer>, wanted: i64, term: Term) -> RegionResponse {
    // Whatever comes after this asks for its number later than `wanted` was given out.
    let span = region.handle().region().range();
    if read::out_of_the_way(region, &span, (wanted, term), false).await.is_none() {
        return region.refuse_not_leader();
    }
    let index = region.handle().applied_index();
    region.judged(term, region_response::Result::Frontier(FrontierResponse { revision: wanted, index })).await
}

/// Waits until this replica has everything up to `wanted`, which the sequencer has given out. False: not in time, or it is
/// destroyed.
pub async fn reach(region: &Arc<RegionPeer>, wanted: i64, patience: Patience) -> bool {
    let reached = async {
        let mut attempt = 0;
        while here(region) < wanted {
            let said = match region.with(|pipeline, _| pipeline.leading()) {
                Some(term) => promise_at(region, wanted, term).await.result,
                None => ask(region, wanted, patience).await,
            };
            let Some(region_response::Result::Frontier(said)) = said else {
                // Leadership has moved, or there is none at the moment.
                tokio::time::sleep(retry::pause(attempt)).await;
                attempt += 1;
                continue;
            };
            region.handle().applied(said.index).await;
            let mut words = region.promise().words.lock();
            words.counted = words.counted.max(said.revision);
        }
    };
    tokio::select! {
        reached = timeout_at(patience.deadline, reached) => reached.is_ok(),
        () = region.destroyed() => false,
    }
}

/// Asks the leader for its frontier, at least `at_least`.
async fn ask(region: &RegionPeer, at_least: i64, patience: Patience) -> Option<region_response::Result> {
    let anchor = region.handle().region().start.clone();
    let op = region_request::Op::Frontier(FrontierRequest { leader: true, at_least });
    let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
    region.shared().cluster.ask(ask, patience).await.ok()
}

async fn ask_leader(region: &Arc<RegionPeer>) {
    let promise = region.promise();
    {
        let mut words = promise.words.lock();
        if words.asked.is_some_and(|asked| asked.elapsed() < PROMISE_AGE) {
            return;
        }
        words.asked = Some(Instant::now());
    }
    if let Some(region_response::Result::Frontier(said)) = ask(region, 0, Patience::within(LEADER_PATIENCE)).await {
        let mut words = promise.words.lock();
        (words.revision, words.index) = (said.revision, said.index);
    }
}

fn answer(revision: i64, index: u64) -> RegionResponse {
    let frontier = FrontierResponse { revision, index };
    RegionResponse { result: Some(region_response::Result::Frontier(frontier)) }
}
