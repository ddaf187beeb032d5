//! What stores say to each other about transactions over several regions: a primary carries its decisions, a participant
//! asks what became of a transaction. The rules are the pipeline's; here are the calls.

use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_proto::pb::{
    CommitRequest, HoldRequest, HoldResponse, LockToken, OutcomeRequest, OutcomeResponse, RegionEpoch, RegionResponse,
    Share, TxnId, outcome_response, region_request, region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::Ask;
use braid_store_client::retry::Kind;
use braid_store_core::epoch;
use braid_store_core::pipeline::Outcome;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::machine::Regions;
use crate::region::{RegionPeer, refusal};

/// Between two ticks of the locks: see [`braid_store_core::pipeline::SILENT_TICKS_MAX`].
pub const TICK: Duration = Duration::from_millis(500);
/// How long one attempt to carry a share may take.
const CARRY_PATIENCE: Duration = Duration::from_secs(5);
/// How long a question to a primary may take.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// Pause after an attempt to carry a share that has failed: nobody led its region for [`CARRY_PATIENCE`].
const CARRY_PAUSE: Duration = Duration::from_millis(200);

/// Lets time go on for every region's locks, until `stop` says so.
pub async fn tick(regions: Arc<Regions>, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => regions.ticking().iter().for_each(|region| region.tick()),
            _ = stop.changed() => return,
        }
    }
}

/// Sees that a share is done, until it is or this peer does not lead any more: the next leader finds the record (rule M6).
pub async fn carry(record: Weak<RegionPeer>, token: LockToken, txn: TxnId, revision: i64, share: Share) {
    let (anchor, under) = (share.key.clone(), share.token.unwrap_or_default());
    let op = region_request::Op::Commit(CommitRequest { txn: Some(txn), revision, share: Some(share) });
    loop {
        let Some(region) = record.upgrade() else { return };
        let Some(term) = region.with(|pipeline, _| pipeline.leading()) else { return };
        let cluster = Arc::clone(&region.shared().cluster);
        drop(region);
        // Kind::Read: a share that is done twice is done once.
        let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
        let answer = cluster.ask(ask, Patience::within(CARRY_PATIENCE)).await;
        let Some(region) = record.upgrade() else { return };
        if region.with(|pipeline, _| pipeline.leading()) != Some(term) {
            return;
        }
        match answer {
            Ok(region_response::Result::Commit(_)) => return region.with(|pipeline, _| pipeline.carried(token, under)),
            other => {
                tracing::warn!(?other, region = %region.id(), revision, "a share of a transaction is not done yet")
            }
        }
        drop(region);
        tokio::time::sleep(CARRY_PAUSE).await;
    }
}

/// What a participant wants to know.
pub struct Question {
    /// Its lock.
    pub token: LockToken,
    /// The transaction.
    pub txn: TxnId,
    /// Where its record lies.
    pub primary: Bytes,
    /// The revision somebody reads at; 0: nobody.
    pub read_at: i64,
}

/// Asks the primary what became of a transaction and tells the pipeline.
pub async fn ask(region: &RegionPeer, question: Question) {
    let Question { token, txn, primary, read_at } = question;
    let op = region_request::Op::Outcome(OutcomeRequest { txn: Some(txn), read_at });
    let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Read, any_replica: false };
    let answer = region.shared().cluster.ask(ask, Patience::within(ASK_PATIENCE)).await;
    let Ok(region_response::Result::Outcome(answer)) = answer else {
        tracing::debug!(region = %region.id(), ?answer, "a primary does not answer");
        return;
    };
    let outcome = match answer.outcome() {
        outcome_response::Outcome::Over => Outcome::Over,
        outcome_response::Outcome::Later => Outcome::Later,
        outcome_response::Outcome::Committed => Outcome::Committed(answer.revision),
    };
    region.with(|pipeline, _| pipeline.told(token, outcome, read_at));
}

/// Answers such a question, as the primary's leader: what is known is sampled first, leadership checked last.
pub async fn outcome(region: Arc<RegionPeer>, question: OutcomeRequest, epoch: RegionEpoch) -> RegionResponse {
    let txn = question.txn.unwrap_or_default();
    loop {
        let asked = region.with(|pipeline, effects| {
            let Some(term) = pipeline.leading() else { return Err(pipeline.not_leader()) };
            if !epoch::serves(pipeline.region(), epoch) {
                return Err(pipeline.epoch_mismatch());
            }
            let outcome = pipeline.outcome(txn);
            let waiting = match outcome {
                Outcome::Wait(seq) => {
                    let (tell, told) = oneshot::channel();
                    pipeline.wait_applied(seq, tell, effects);
                    Some(told)
                }
                _ => None,
            };
            Ok((term, outcome, waiting))
        });
        let (term, outcome, waiting) = match asked {
            Ok(asked) => asked,
            Err(refused) => return refusal(refused),
        };
        let (outcome, revision) = match (outcome, waiting) {
            (Outcome::Wait(_), Some(told)) => {
                _ = told.await;
                continue;
            }
            (Outcome::Committed(revision), _) => (outcome_response::Outcome::Committed, revision),
            (Outcome::Later, _) => (outcome_response::Outcome::Later, 0),
            (Outcome::Over | Outcome::Wait(_), _) => (outcome_response::Outcome::Over, 0),
        };
        let answer = OutcomeResponse { outcome: outcome.into(), revision };
        return region.judged(term, region_response::Result::Outcome(answer)).await;
    }
}

/// A coordinator says that it is still at work.
pub async fn hold(region: Arc<RegionPeer>, hold: HoldRequest, epoch: RegionEpoch) -> RegionResponse {
    let held = region.with(|pipeline, _| {
        let Some(term) = pipeline.leading() else { return Err(pipeline.not_leader()) };
        if !epoch::serves(pipeline.region(), epoch) {
            return Err(pipeline.epoch_mismatch());
        }
        Ok((term, pipeline.hold(hold.txn.unwrap_or_default())))
    });
    match held {
        Ok((term, held)) => region.judged(term, region_response::Result::Hold(HoldResponse { over: !held })).await,
        Err(refused) => refusal(refused),
    }
}
