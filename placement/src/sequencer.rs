//! The sequencer: numbers revisions, each once, in the order of real time, from memory. A value without clock, thread
//! or I/O; the placement leader's shell owns one and feeds it.
//!
//! ```text
//!  in                                              out
//!  begin(term, applied record)      ┐             ┌ Window{epoch, end}: to be committed by placement's group
//!  on_window(window, committed)     │             │ Started{holes}: it serves from now on
//!  prepare(request) ──pause──┐      ├─ Sequencer ─┤
//!  release(prepared, lease) ◄┘      │             │ NumberAnswer: numbers, or a refusal that says what to do
//!  stop() / step_down(leader)       ┘             └ Handover{last}: to be committed before leadership moves
//! ```
//!
//! 1. `begin`: this member leads, the first entry of its term is applied, and voting has outlasted the lease of the
//!    leader before (rule N4). Nothing is answered yet; the first effect is a window of an epoch of its own.
//! 2. `on_window`: that window is committed. The counter starts at the end of every window before, or higher where a
//!    store has heard more.
//! 3. `prepare` takes the request, compares what its sender has heard with the counter, and takes a block.
//! 4. The caller checks the leader lease, *after* that: only then is the sampled counter known to be the newest one.
//! 5. `release` makes the answer, or withholds it if the lease had run out or the office has changed (rule N3).
//! 6. `next_window` asks for the next window when half of this one is used, so numbers do not wait for raft.
//! 7. `stop` ends the office for good and names the exact last revision; the successor starts there, without a hole.
//!
//! Deliberately absent: retries on behalf of clients, numbers ahead of a request, any way back from having been behind.

use std::time::Duration;

use braid_proto::id::{ClusterId, Revision, SequencerEpoch, Term};
use braid_proto::pb::number_answer::Refusal;
use braid_proto::pb::{NumberAnswer, NumberRequest};

mod clients;
mod window;

pub use clients::{Block, LastAnswer};
use clients::{Clients, Standing};
use window::WindowLength;
pub use window::{WINDOW_MAX, WINDOW_MIN, WindowRecord};

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod tests;

/// Numbers that one request may ask for. A store sends at most a few thousand transactions at once; far more than that
/// is a broken client.
pub const COUNT_MAX: u32 = 1 << 20;

/// What travels with every answer and is decided elsewhere in placement's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Newest compacted revision; `None`: never compacted.
    pub compacted: Option<Revision>,
    /// Revision of the users and roles.
    pub auth_revision: u64,
}

impl Marks {
    /// Whether `revision` lies above what is compacted. 0 does once, as in etcd, where the boundary begins at -1.
    pub fn may_compact(&self, revision: Revision) -> bool {
        revision.0 > self.compacted.map_or(-1, |compacted| compacted.0)
    }

    /// The compacted revision as it travels: 0 if there is none, which hides as little as compacting at 0 does.
    pub fn boundary(&self) -> i64 {
        self.compacted.map_or(0, |compacted| compacted.0)
    }
}

/// Effect: commit this window in placement's group, in this term, then report with [`Sequencer::on_window`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Term of the office; the proposal is dropped in any other.
    pub term: Term,
    /// The sequencer it is for.
    pub epoch: SequencerEpoch,
    /// Last revision it may give out. Inclusive.
    pub end: Revision,
    /// Newest revision accounted for so far: given out, or counted as skipped at the start.
    pub given: Revision,
}

/// Effect: the sequencer serves from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its epoch.
    pub epoch: SequencerEpoch,
    /// The bound at the start: the first number is the next one.
    pub base: Revision,
    /// Revisions skipped because nobody knows whether the sequencer before had given them out. An upper bound: some
    /// may have been used.
    pub holes: u64,
    /// A store had heard more than any committed window: the cluster state was restored from an older copy.
    pub raised: Option<String>,
}

/// Effect: commit this before leadership is given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Term of the office.
    pub term: Term,
    /// The sequencer that stopped.
    pub epoch: SequencerEpoch,
    /// The last revision it gave out.
    pub last: Revision,
    /// What its clients got last.
    pub answers: Vec<LastAnswer>,
}

/// A request that has its block and waits for the lease check.
#[derive(Debug)]
#[must_use = "a prepared request holds numbers; release it"]
pub struct Prepared {
    term: Term,
    epoch: SequencerEpoch,
    seq: u64,
    marks: Marks,
    outcome: Result<Block, Refusal>,
}

impl Prepared {
    /// The term whose leader lease must be checked before [`Sequencer::release`].
    pub fn term(&self) -> Term {
        self.term
    }
}

/// What the sequencer is doing, for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequencerStatus {
    /// Newest epoch of this member.
    pub epoch: SequencerEpoch,
    /// Last revision given out.
    pub revision: Revision,
    /// Last revision of the committed window.
    pub window_end: Revision,
    /// Whether it answers requests.
    pub serving: bool,
    /// Why it has stopped answering, if a client had heard more than it gave out.
    pub behind: Option<String>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Sequencer {
    cluster: ClusterId,
    phase: Phase,
    term: Term,
    epoch: SequencerEpoch,
    /// Last revision given out. Inclusive. Volatile. Invariant while serving: counter <= end.
    counter: Revision,
    /// Last revision of the committed window. Inclusive. Durable in placement's group before it is set here.
    end: Revision,
    /// A window is proposed and not answered.
    asked: bool,
    /// Numbers of the largest request that the window was too short for.
    demand: u32,
    /// The record does not know yet that the revisions skipped at the start are counted.
    uncounted: bool,
    length: WindowLength,
    clients: Clients,
    marks: Marks,
    /// The lease held at least once in this office; before, its absence does not mean that somebody else leads.
    had_lease: bool,
}

#[derive(Debug)]
enum Phase {
    /// Another member leads, or nobody. The address of the leader, empty if unknown.
    Idle { leader: String },
    /// In office, first window not committed.
    Starting(Start),
    /// Answers.
    Serving,
    /// Stopped on purpose; what was prepared before may still leave.
    HandedOver,
    /// A client had heard more than this sequencer gave out. Ends only with the office.
    Behind(String),
}

#[derive(Debug)]
struct Start {
    /// Epoch and end of the newest window before.
    before: (SequencerEpoch, Revision),
    /// Newest revision accounted for by the sequencers before.
    given: Revision,
    /// Newest that clients reported meanwhile.
    heard: (SequencerEpoch, Revision),
}

impl Start {
    /// The bound to start at: above every window before and everything a client has heard.
    fn base(&self) -> Revision {
        self.before.1.max(self.heard.1)
    }

    /// The first epoch that nobody has seen.
    fn epoch(&self) -> SequencerEpoch {
        SequencerEpoch(self.before.0.0.max(self.heard.0.0) + 1)
    }
}

impl Sequencer {
    /// A sequencer that is not in office.
    pub fn new(cluster: ClusterId) -> Self {
        let initial = Revision::INITIAL;
        Self {
            cluster,
            phase: Phase::Idle { leader: String::new() },
            term: Term::INVALID,
            epoch: SequencerEpoch::INVALID,
            counter: initial,
            end: initial,
            asked: false,
            demand: 0,
            uncounted: false,
            length: WindowLength::new(WINDOW_MIN, initial, Duration::ZERO),
            clients: Clients::default(),
            marks: Marks::default(),
            had_lease: false,
        }
    }

    // ------------------------------------------------------------ office

    /// This member leads in `term` and has applied the term's first entry; `record` is what is applied. Forgets
    /// everything of an earlier office: a block that was prepared while somebody else led must never leave.
    pub fn begin(&mut self, term: Term, record: &WindowRecord, now: Duration) {
        let heard = (SequencerEpoch::INVALID, Revision::INITIAL);
        self.phase = Phase::Starting(Start { before: (record.epoch, record.end), given: record.given, heard });
        self.term = term;
        self.epoch = SequencerEpoch::INVALID;
        self.counter = record.end;
        self.end = record.end;
        self.asked = false;
        self.demand = 0;
        self.uncounted = false;
        self.had_lease = false;
        self.length = WindowLength::new(record.end.0 - record.given.0, record.end, now);
        self.clients = Clients::from_handover(&record.answers, now);
    }

    /// In `term` another member leads, or nobody does: ends the office at once. `leader` is its address, empty if
    /// unknown.
    pub fn step_down(&mut self, term: Term, leader: String) {
        if term >= self.term {
            self.term = term;
            self.phase = Phase::Idle { leader };
        }
    }

    /// Ends the office for good before leadership is given away. None: it has given out nothing that could be handed
    /// over, because it was not serving.
    pub fn stop(&mut self, now: Duration) -> Option<Handover> {
        let Phase::Serving = self.phase else { return None };
        self.phase = Phase::HandedOver;
        Some(Handover {
            term: self.term,
            epoch: self.epoch,
            last: self.counter,
            answers: self.clients.for_handover(now),
        })
    }

    // ------------------------------------------------------------ windows

    /// Whether [`Self::next_window`] has something to look at.
    pub fn wants_window(&self) -> bool {
        match self.phase {
            Phase::Starting(_) => !self.asked,
            Phase::Serving => !self.asked && self.is_window_short(),
            _ => false,
        }
    }

    /// The window to commit next, if it is time.
    pub fn next_window(&mut self, now: Duration) -> Option<Window> {
        if !self.wants_window() {
            return None;
        }
        if let Phase::Starting(start) = &self.phase {
            self.epoch = start.epoch();
            self.counter = start.base();
        } else {
            self.length.measure(self.counter, now);
            // Use has fallen: what is left is enough for the shorter window.
            if !self.is_window_short() {
                return None;
            }
        }
        // The first window still leaves open what the start skips: it may be committed and its sequencer die before it
        // could count. The next one follows at once and closes that.
        let given = match &self.phase {
            Phase::Starting(start) => start.given,
            _ => self.counter,
        };
        self.asked = true;
        let ahead = self.length.length().max(2 * i64::from(self.demand));
        let end = Revision(self.counter.0.saturating_add(ahead));
        Some(Window { term: self.term, epoch: self.epoch, end, given })
    }

    /// What became of a window: `committed` is whether the replicated record has taken it.
    pub fn on_window(&mut self, window: &Window, committed: bool, now: Duration) -> Option<Started> {
        if window.term != self.term || window.epoch != self.epoch {
            return None;
        }
        self.asked = false;
        if !committed {
            return None;
        }
        match &self.phase {
            Phase::Serving => {
                self.end = self.end.max(window.end);
                self.demand = 0;
                self.uncounted = false;
                None
            }
            // A report that came meanwhile may have raised the start above this window or its epoch: ask again.
            Phase::Starting(start) if start.epoch() == window.epoch && start.base() < window.end => {
                let started = started(start);
                self.counter = started.base;
                self.end = window.end;
                self.length = WindowLength::new(self.length.length(), self.counter, now);
                self.uncounted = started.holes > 0;
                self.phase = Phase::Serving;
                Some(started)
            }
            _ => None,
        }
    }

    // ------------------------------------------------------------ numbers

    /// Takes a request and samples the counter for it. The leader lease is checked after this returns.
    pub fn prepare(&mut self, request: &NumberRequest, now: Duration) -> Prepared {
        let outcome = self.admit(request, now);
        Prepared { term: self.term, epoch: self.epoch, seq: request.seq, marks: self.marks, outcome }
    }

    /// Likewise for what a store says it has heard, outside a numbering request.
    pub fn prepare_report(&mut self, heard: Revision) -> Prepared {
        let outcome = self.compare_heard(SequencerEpoch::INVALID, heard).map(|()| self.bound());
        Prepared { term: self.term, epoch: self.epoch, seq: 0, marks: self.marks, outcome }
    }

    /// Answers a prepared request. `lease` says whether the leader lease of [`Prepared::term`] held at some moment
    /// after [`Self::prepare`] had returned.
    pub fn release(&mut self, prepared: Prepared, lease: bool) -> NumberAnswer {
        let same_office = prepared.term == self.term && prepared.epoch == self.epoch;
        self.had_lease |= same_office && lease;
        let outcome = match &self.phase {
            Phase::Idle { leader } => Err(Refusal::NotLeader(leader.clone())),
            Phase::Behind(why) => Err(Refusal::Behind(why.clone())),
            _ if !same_office => Err(Refusal::NotLeader(String::new())),
            // Numbers in `prepared` stay its client's: a repeat of the request gets them.
            _ if !lease && self.had_lease => Err(Refusal::NotLeader(String::new())),
            _ if !lease => Err(Refusal::Busy("elected, waiting for the lease".into())),
            _ => prepared.outcome,
        };
        if let Err(Refusal::Behind(why)) = &outcome {
            self.phase = Phase::Behind(why.clone());
        }
        let (block, refusal) = match outcome {
            Ok(block) => (block, None),
            Err(refusal) => (Block { base: Revision(0), count: 0 }, Some(refusal)),
        };
        NumberAnswer {
            seq: prepared.seq,
            epoch: prepared.epoch.0,
            base: block.base.0,
            count: block.count,
            compacted: prepared.marks.boundary(),
            auth_revision: prepared.marks.auth_revision,
            refusal,
        }
    }

    /// Likewise for somebody who only wants to know the newest revision.
    pub fn prepare_bound(&mut self) -> Prepared {
        self.prepare_report(Revision::INITIAL)
    }

    /// What travels with answers from now on.
    pub fn set_marks(&mut self, marks: Marks) {
        self.marks = marks;
    }

    /// Forgets clients that have been silent for long.
    pub fn forget_silent(&mut self, now: Duration) {
        self.clients.forget_silent(now);
    }

    /// Whether a client has heard more than it gave out, so that it has stopped answering.
    pub fn is_behind(&self) -> bool {
        matches!(self.phase, Phase::Behind(_))
    }

    /// What it is doing.
    pub fn status(&self) -> SequencerStatus {
        let behind = match &self.phase {
            Phase::Behind(why) => Some(why.clone()),
            _ => None,
        };
        SequencerStatus {
            epoch: self.epoch,
            revision: self.counter,
            window_end: self.end,
            serving: matches!(self.phase, Phase::Serving),
            behind,
        }
    }

    fn admit(&mut self, request: &NumberRequest, now: Duration) -> Result<Block, Refusal> {
        if request.cluster_id != self.cluster.0 {
            let theirs = ClusterId(request.cluster_id);
            return Err(Refusal::Stale(format!("the request is for cluster {theirs}, this is {}", self.cluster)));
        }
        if request.count > COUNT_MAX {
            let text = format!("{} numbers in one request, at most {COUNT_MAX} are given", request.count);
            return Err(Refusal::Stale(text));
        }
        self.compare_heard(SequencerEpoch(request.heard_epoch), Revision(request.heard_revision))?;
        match self.clients.standing(request, now) {
            Standing::Repeat(block) => return Ok(block),
            Standing::Stale(why) => return Err(Refusal::Stale(why)),
            Standing::New => {}
        }
        let block = Block { count: request.count, ..self.bound() };
        if block.last() > self.end {
            self.demand = self.demand.max(request.count);
            return Err(Refusal::Busy("the next window is being committed".into()));
        }
        self.counter = block.last();
        self.clients.remember(request, block, now);
        Ok(block)
    }

    /// Rule N3: nobody can have heard more than the newest sequencer gave out.
    fn compare_heard(&mut self, epoch: SequencerEpoch, revision: Revision) -> Result<(), Refusal> {
        match &mut self.phase {
            Phase::Idle { leader } => Err(Refusal::NotLeader(leader.clone())),
            Phase::HandedOver => Err(Refusal::Busy("handing over to another member".into())),
            Phase::Behind(why) => Err(Refusal::Behind(why.clone())),
            Phase::Starting(start) => {
                start.heard = (start.heard.0.max(epoch), start.heard.1.max(revision));
                Err(Refusal::Busy("elected, committing the first window".into()))
            }
            Phase::Serving if epoch > self.epoch || revision > self.counter => Err(Refusal::Behind(format!(
                "a client has heard {revision} of {epoch}, this sequencer is {} at {}: placement's state was restored \
                 from an old copy or belongs to another cluster",
                self.epoch, self.counter
            ))),
            Phase::Serving => Ok(()),
        }
    }

    fn bound(&self) -> Block {
        Block { base: self.counter, count: 0 }
    }

    fn is_window_short(&self) -> bool {
        let left = self.end.0 - self.counter.0;
        self.uncounted || left < self.length.reserve() || left < i64::from(self.demand)
    }
}

/// What the start skips. `given` is what the last window is known to have given out; what came after is unknown.
fn started(start: &Start) -> Started {
    let (epoch, base) = (start.epoch(), start.base());
    let raised = (start.heard.0 > start.before.0 || start.heard.1 > start.before.1).then(|| {
        format!(
            "a client has heard {} of {}, but the newest window is {} up to {}: placement's state was restored from an \
             old copy; numbering goes on above",
            start.heard.1, start.heard.0, start.before.0, start.before.1
        )
    });
    let holes = base.0 - start.given.max(start.heard.1).0;
    Started { epoch, base, holes: holes.max(0).unsigned_abs(), raised }
}
