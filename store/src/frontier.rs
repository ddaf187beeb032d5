//! Up to which revision a replica has everything: what serializable reads go by (rules F1, Q4).
//!
//! Any replica knows its own frontier from what it has applied: the newest revision of the region, or less where a
//! transaction over several regions holds a lock. A region that nobody writes to stays behind the rest of the cluster,
//! so a replica asks its leader how far the region is when somebody wants to know, and not more often than every
//! [`PROMISE_AGE`]. The leader's word names a log index, and counts once that is applied here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::pb::{
    FrontierRequest, FrontierResponse, RegionEpoch, RegionResponse, region_request, region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::Ask;
use braid_store_client::retry::Kind;
use parking_lot::Mutex;

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
pub async fn serve(region: Arc<RegionPeer>, request: FrontierRequest, epoch: RegionEpoch) -> RegionResponse {
    if region.handle().region().epoch != Some(epoch) {
        return refusal(region.with(|pipeline, _| pipeline.epoch_mismatch()));
    }
    let leads = region.with(|pipeline, _| pipeline.leading());
    match leads {
        Some(_) => promise(&region).await,
        None if request.leader => region.refuse_not_leader(),
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

async fn ask_leader(region: &Arc<RegionPeer>) {
    let promise = region.promise();
    {
        let mut words = promise.words.lock();
        if words.asked.is_some_and(|asked| asked.elapsed() < PROMISE_AGE) {
            return;
        }
        words.asked = Some(Instant::now());
    }
    let anchor = region.handle().region().start.clone();
    let op = region_request::Op::Frontier(FrontierRequest { leader: true, at_least: 0 });
    let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
    let said = region.shared().cluster.ask(ask, Patience::within(LEADER_PATIENCE)).await;
    if let Ok(region_response::Result::Frontier(said)) = said {
        let mut words = promise.words.lock();
        (words.revision, words.index) = (said.revision, said.index);
    }
}

fn answer(revision: i64, index: u64) -> RegionResponse {
    let frontier = FrontierResponse { revision, index };
    RegionResponse { result: Some(region_response::Result::Frontier(frontier)) }
}
