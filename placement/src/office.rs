//! The sequencer in office: the pure [`Sequencer`] behind a mutex, the leader lease, and the task that keeps a window
//! committed ahead of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::id::{ClusterId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{CloseWindow, NumberAnswer, NumberRequest, OpenWindow, StoredAnswer};
use braid_proto::service::NumberService;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::machine::Replica;
use crate::sequencer::{Sequencer, SequencerStatus, Window};
use crate::state::Applied;

/// Pause before a window is asked for again after its proposal failed in a term that goes on.
const RETRY: Duration = Duration::from_millis(50);

/// This member's sequencer.
pub struct Office {
    sequencer: Mutex<Sequencer>,
    replica: Arc<Replica>,
    window_wanted: Notify,
    start: Instant,
}

impl Office {
    /// Not in office yet.
    pub fn new(cluster_id: ClusterId, replica: Arc<Replica>) -> Arc<Self> {
        Arc::new(Self {
            sequencer: Mutex::new(Sequencer::new(cluster_id)),
            replica,
            window_wanted: Notify::new(),
            start: Instant::now(),
        })
    }

    /// This member leads in `term` and has applied its first entry.
    pub fn begin(&self, term: Term) {
        let (window, marks) = self.replica.read(|state| (state.window().clone(), state.marks()));
        let mut sequencer = self.sequencer.lock();
        sequencer.begin(term, &window, self.now());
        sequencer.set_marks(marks);
        drop(sequencer);
        self.window_wanted.notify_one();
    }

    /// Somebody else leads in `term`, or nobody: stops at once.
    pub fn step_down(&self, term: Term, leader: String) {
        self.sequencer.lock().step_down(term, leader);
    }

    /// Stops for good and records the exact last revision, so that the next sequencer leaves no hole (rule N4).
    pub async fn hand_over(&self) {
        let Some(handover) = self.sequencer.lock().stop(self.now()) else { return };
        let close = CloseWindow {
            epoch: handover.epoch.0,
            last: handover.last.0,
            answers: handover.answers.iter().map(StoredAnswer::from).collect(),
        };
        match self.replica.propose(handover.term, Op::CloseWindow(close)).await {
            Ok(Applied::Done) => tracing::info!(last = %handover.last, epoch = %handover.epoch, "sequencer handed over"),
            other => tracing::warn!(?other, "the sequencer's last number is not recorded; its successor skips some"),
        }
    }

    /// What it is doing.
    pub fn status(&self) -> SequencerStatus {
        self.sequencer.lock().status()
    }

    /// Keeps windows committed; ends with the task.
    pub async fn keep_windows(self: Arc<Self>) {
        loop {
            let window = self.sequencer.lock().next_window(self.now());
            let Some(window) = window else {
                let forget = tokio::time::sleep(Duration::from_secs(60));
                tokio::select! {
                    () = self.window_wanted.notified() => {}
                    () = forget => self.sequencer.lock().forget_silent(self.now()),
                }
                continue;
            };
            let committed = self.commit(&window).await;
            let started = self.sequencer.lock().on_window(&window, committed, self.now());
            if let Some(started) = started {
                if started.holes > 0 {
                    metrics::counter!("braid_revision_holes_total", "cause" => "sequencer_failover")
                        .increment(started.holes);
                }
                if let Some(why) = &started.raised {
                    tracing::error!(why, "the sequencer starts above placement's record: placement was restored from an \
                        older copy");
                }
                tracing::info!(epoch = %started.epoch, base = %started.base, holes = started.holes, "sequencer in office");
            }
            if !committed {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn commit(&self, window: &Window) -> bool {
        let open = OpenWindow { epoch: window.epoch.0, end: window.end.0, given: window.given.0 };
        match self.replica.propose(window.term, Op::OpenWindow(open)).await {
            Ok(Applied::Done) => true,
            Ok(other) => {
                tracing::warn!(?other, "a sequencer window was refused");
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a sequencer window was not committed");
                false
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl NumberService for Office {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let now = self.now();
        let mut sequencer = self.sequencer.lock();
        let prepared = sequencer.prepare(request, now);
        // After the counter was sampled (rule N3): a lease that holds now held then.
        let lease = self.replica.handle().is_some_and(|handle| handle.lease(prepared.term()));
        let answer = sequencer.release(prepared, lease);
        let wants_window = sequencer.wants_window();
        drop(sequencer);
        if wants_window {
            self.window_wanted.notify_one();
        }
        answer
    }
}
