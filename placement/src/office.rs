//! The sequencer in office: the pure [`Sequencer`] behind a mutex, the leader lease, and windows committed ahead of it.
//!
//! Nothing here waits for a task to be scheduled: the apply thread that learns of leadership begins the office and
//! proposes its first window, and whoever takes a number proposes the next one when it is time. A window that was not
//! committed is asked for again by [`Office::tick`] or by the next request, whichever comes first.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use braid_proto::id::{ClusterId, Revision, Term};
use braid_proto::pb::number_answer::Refusal;
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{CloseWindow, NumberAnswer, NumberRequest, OpenWindow, StoredAnswer};
use braid_proto::service::NumberService;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;

use crate::machine::{ProposeError, Replica};
use crate::sequencer::{Prepared, Sequencer, SequencerStatus, Started, Window};
use crate::state::Applied;

/// How often a sequencer that has fallen behind says so again.
const BEHIND_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// This member's sequencer.
pub struct Office {
    me: Weak<Office>,
    sequencer: Mutex<Sequencer>,
    replica: Arc<Replica>,
    start: Instant,
    meters: Meters,
    /// When it was last said that the sequencer is behind.
    behind_logged: Mutex<Option<Instant>>,
}

struct Meters {
    requests: Counter,
    numbers: Counter,
    busy: Counter,
    holes: Counter,
    revision: Gauge,
    window_left: Gauge,
    behind: Gauge,
}

impl Office {
    /// Not in office yet.
    pub fn new(cluster_id: ClusterId, replica: Arc<Replica>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            sequencer: Mutex::new(Sequencer::new(cluster_id)),
            replica,
            start: Instant::now(),
            meters: Meters::new(),
            behind_logged: Mutex::default(),
        })
    }

    /// This member leads in `term` and has applied its first entry.
    pub fn begin(&self, term: Term) {
        let (record, marks) = self.replica.read(|state| (state.window().clone(), state.marks()));
        let mut sequencer = self.sequencer.lock();
        sequencer.begin(term, &record, self.now());
        sequencer.set_marks(marks);
        drop(sequencer);
        metrics::gauge!("braid_compacted_revision").set(marks.boundary() as f64);
        self.pump();
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
            Ok(Applied::Done) => {
                tracing::info!(last = %handover.last, epoch = %handover.epoch, "sequencer handed over")
            }
            other => tracing::warn!(?other, "the sequencer's last number is not recorded; its successor skips some"),
        }
    }

    /// What it is doing.
    pub fn status(&self) -> SequencerStatus {
        self.sequencer.lock().status()
    }

    /// A store says what it has heard, outside a numbering request (rule N3).
    pub fn hear(&self, heard: Revision) {
        let mut sequencer = self.sequencer.lock();
        let prepared = sequencer.prepare_report(heard);
        self.release(&mut sequencer, prepared);
    }

    /// The newest revision, sampled before the lease was checked, or why this member cannot say (rule N3).
    pub fn bound(&self) -> NumberAnswer {
        let mut sequencer = self.sequencer.lock();
        let prepared = sequencer.prepare_bound();
        self.release(&mut sequencer, prepared)
    }

    /// Carries what has been applied with every answer from now on.
    pub fn take_marks(&self) {
        // Read under the sequencer's lock: two calls that cross must not leave the older marks.
        let mut sequencer = self.sequencer.lock();
        let marks = self.replica.read(|state| state.marks());
        sequencer.set_marks(marks);
        metrics::gauge!("braid_compacted_revision").set(marks.boundary() as f64);
    }

    /// What time alone brings: to be called a few times a second.
    pub fn tick(&self) {
        let mut sequencer = self.sequencer.lock();
        sequencer.forget_silent(self.now());
        let status = sequencer.status();
        drop(sequencer);
        self.meters.revision.set(status.revision.0 as f64);
        self.meters.window_left.set((status.window_end.0 - status.revision.0) as f64);
        self.meters.behind.set(if status.behind.is_some() { 1.0 } else { 0.0 });
        if let Some(why) = &status.behind {
            self.say_behind(why);
        }
        self.pump();
    }

    /// Proposes the window that is wanted, if one is.
    fn pump(&self) {
        let Some(office) = self.me.upgrade() else { return };
        let Some(window) = self.sequencer.lock().next_window(self.now()) else { return };
        let open = OpenWindow { epoch: window.epoch.0, end: window.end.0, given: window.given.0 };
        // Not under the lock: the answer may come before this returns.
        self.replica.propose_then(
            window.term,
            Op::OpenWindow(open),
            Box::new(move |result| office.window_ended(&window, result)),
        );
    }

    fn window_ended(&self, window: &Window, result: Result<Applied, ProposeError>) {
        let committed = result == Ok(Applied::Done);
        let started = self.sequencer.lock().on_window(window, committed, self.now());
        if let Some(started) = started {
            self.say_started(&started);
        }
        match result {
            Ok(Applied::Done) => self.pump(),
            Ok(other) => tracing::warn!(?other, ?window, "a sequencer window was refused"),
            Err(error) => tracing::debug!(%error, ?window, "a sequencer window was not committed"),
        }
    }

    /// Checks the lease after the counter was sampled, then answers (rule N3). A lease that holds now held then.
    fn release(&self, sequencer: &mut Sequencer, prepared: Prepared) -> NumberAnswer {
        let lease = self.replica.handle().is_some_and(|handle| handle.lease(prepared.term()));
        let was_behind = sequencer.is_behind();
        let answer = sequencer.release(prepared, lease);
        if let Some(Refusal::Behind(why)) = &answer.refusal
            && !was_behind
        {
            self.say_behind(why);
        }
        answer
    }

    fn say_started(&self, started: &Started) {
        self.meters.holes.increment(started.holes);
        if let Some(why) = &started.raised {
            tracing::error!(why, "the sequencer starts above placement's record");
        }
        tracing::info!(epoch = %started.epoch, base = %started.base, holes = started.holes, "sequencer in office");
    }

    fn say_behind(&self, why: &str) {
        let mut logged = self.behind_logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= BEHIND_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::error!(why, "the sequencer has stopped: no revision is given out until an operator has looked");
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl NumberService for Office {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let mut sequencer = self.sequencer.lock();
        let prepared = sequencer.prepare(request, self.now());
        let answer = self.release(&mut sequencer, prepared);
        let wants_window = sequencer.wants_window();
        drop(sequencer);
        self.meters.count(&answer);
        if wants_window {
            self.pump();
        }
        answer
    }
}

impl Meters {
    fn new() -> Self {
        Self {
            requests: metrics::counter!("braid_sequencer_requests_total"),
            numbers: metrics::counter!("braid_sequencer_numbers_total"),
            busy: metrics::counter!("braid_sequencer_busy_total"),
            holes: metrics::counter!("braid_revision_holes_total", "cause" => "sequencer_failover"),
            revision: metrics::gauge!("braid_sequencer_revision"),
            window_left: metrics::gauge!("braid_sequencer_window_left"),
            behind: metrics::gauge!("braid_sequencer_behind"),
        }
    }

    fn count(&self, answer: &NumberAnswer) {
        self.requests.increment(1);
        self.numbers.increment(u64::from(answer.count));
        if let Some(Refusal::Busy(_)) = answer.refusal {
            self.busy.increment(1);
        }
    }
}
