//! Compaction: one boundary for the whole cluster, decided here.
//!
//! ```text
//!  compact(r) ─► judge: r > compacted, r <= the sequencer's counter under its lease ─► commit ─► marks
//!                                                                                                │
//!         from the answer on every answer of the sequencer carries it (rule C3) ◄────────────────┘
//!  await_dropped(r) ─► heartbeats tell the stores ─► every live store has gone through its history
//! ```
//!
//! A compaction is complete once it is committed: reads below it are refused, whatever is on the disks. Stores drop what
//! they hold in their own time; who wants to wait for that (`physical`) does so here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::error::{self, EtcdStatus};
use braid_proto::id::{Revision, StoreId, Term};
use braid_proto::pb::number_answer::Refusal;
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{Compact, Store};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::leader::Shared;
use crate::machine::ProposeError;
use crate::state::Applied;

mod auto;
pub use auto::AutoCompaction;
use auto::Compactor;

/// How long a compaction waits for placement's group.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the wait for stores looks at the time: one of them may have died.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing is compacted.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// etcd refuses such a revision too.
    Judged {
        /// Newest revision at that moment.
        newest: Revision,
        /// etcd's error.
        error: EtcdStatus,
    },
    /// This member does not lead: another one knows.
    NotLeader,
    /// It certainly was not done, and may be later.
    NotYet(String),
    /// It may be done or not.
    Unknown(String),
}

/// Raises the compacted revision to `revision`. Returns the newest revision.
///
/// # Errors
/// See [`Failed`].
pub async fn compact(shared: &Shared, term: Term, revision: Revision) -> Result<Revision, Failed> {
    let bound = shared.office.bound();
    let newest = match bound.refusal {
        None => Revision(bound.base),
        Some(Refusal::NotLeader(_)) => return Err(Failed::NotLeader),
        Some(Refusal::Busy(why) | Refusal::Behind(why) | Refusal::Stale(why)) => return Err(Failed::NotYet(why)),
    };
    let refused = |error| Err(Failed::Judged { newest, error });
    // In this order, as etcd judges.
    if !shared.replica.read(|state| state.marks().may_compact(revision)) {
        return refused(error::COMPACTED);
    }
    if revision > newest {
        return refused(error::FUTURE_REVISION);
    }
    let (tell, told) = oneshot::channel();
    let office = Arc::clone(&shared.office);
    shared.replica.propose_then(
        term,
        Op::Compact(Compact { revision: revision.0 }),
        Box::new(move |result| {
            // On the apply thread, before anybody is told: also if whoever asked has gone away.
            if result == Ok(Applied::Done) {
                office.take_marks();
            }
            _ = tell.send(result);
        }),
    );
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(Ok(Applied::Done))) => {
            metrics::counter!("braid_compactions_total").increment(1);
            tracing::info!(%revision, "compacted");
            Ok(newest)
        }
        // Another one was faster.
        Ok(Ok(Ok(_))) => refused(error::COMPACTED),
        Ok(Ok(Err(ProposeError::NotLeader))) => Err(Failed::NotLeader),
        Ok(Ok(Err(error @ ProposeError::Overloaded))) => Err(Failed::NotYet(error.to_string())),
        Ok(Ok(Err(error @ ProposeError::Unknown))) => Err(Failed::Unknown(error.to_string())),
        Ok(Err(_)) => Err(Failed::Unknown("the member is stopping".to_owned())),
        Err(_) => Err(Failed::Unknown("placement's group does not decide; is a majority up?".to_owned())),
    }
}

/// Waits until every live store has dropped history below `revision`. False: this member leads `term` no more. As long
/// as it takes: callers bring their own patience.
pub async fn await_dropped(shared: &Shared, term: Term, revision: Revision) -> bool {
    loop {
        let news = shared.news.notified();
        if shared.leading() != Some(term) {
            return false;
        }
        let (stores, now) = (shared.stores(), Instant::now());
        {
            let mut memory = shared.memory(term);
            memory.drop_below = memory.drop_below.max(revision.0);
            let presence = &memory.presence;
            let done = |store: &Store| {
                let id = StoreId(store.id);
                presence.has_dropped(id, revision.0) || !presence.is_up(id, now)
            };
            if stores.iter().all(done) {
                return true;
            }
        }
        _ = tokio::time::timeout(LOOK, news).await;
    }
}

/// Compacts as `mode` says, for as long as this member leads; looks at the time every `tick`.
pub async fn by_itself(shared: &Shared, term: Term, mode: AutoCompaction, tick: Duration) {
    if mode == AutoCompaction::Off {
        return;
    }
    let begin = Instant::now();
    let mut compactor = Compactor::new(mode, Duration::ZERO);
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sequencer = shared.office.status();
        if !sequencer.serving {
            continue;
        }
        let Some(boundary) = compactor.tick(begin.elapsed(), sequencer.revision.0) else { continue };
        match compact(shared, term, Revision(boundary)).await {
            // A client, or the leader before, has compacted as much: what this mode keeps is no more than is left.
            Ok(_) | Err(Failed::Judged { error: error::COMPACTED, .. }) => {
                compactor.compacted(boundary, begin.elapsed());
            }
            Err(failed) => tracing::warn!(?failed, boundary, "history is not compacted; the next sample tries again"),
        }
    }
}
