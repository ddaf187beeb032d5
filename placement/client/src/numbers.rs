//! The shell around [`crate::numbers_core`]: local calls, one stream to the leader, deadlines.
//!
//! ```text
//!  caller ── request ──► Core ──┬── nobody drives, local sequencer leads: the caller itself asks, answers, goes on
//!                               ├── nobody drives: the task drives: local sequencer, else the stream to the leader
//!                               └── somebody drives: they will find it in the queue
//! ```
//!
//! One driver at a time, and only the driver runs callbacks: so they run in the order of the numbers, whichever threads
//! ask, and a callback that asks again neither recurses nor waits. A caller drives for [`ROUNDS`] rounds at most, then
//! the task goes on in its place.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use braid_proto::pb::sequencer_client::SequencerClient;
use braid_proto::pb::{NumberAnswer, NumberRequest, number_answer::Refusal};
use braid_proto::service::NumberService;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{PlacementClient, explain};
use crate::numbers_core::{Answered, Block, Core, Next, NumberError};

/// Gets a caller's answer. Runs on the thread that brought it: must not block.
pub type Done = Box<dyn FnOnce(Result<Block, NumberError>) + Send + 'static>;

/// Requests that a caller's thread sends for others before the task takes over.
const ROUNDS: usize = 16;
/// First pause before a request is repeated; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// How a client of the sequencer is set up.
#[derive(Clone, Debug)]
pub struct NumbersConfig {
    /// Names this process for as long as it runs; drawn at random at its start.
    pub client_id: u64,
    /// Cluster whose sequencer is asked.
    pub cluster_id: u64,
    /// How long a request is repeated before its callers are told that they have no number.
    pub patience: Duration,
    /// How long one sequencer may take to answer before another one is tried.
    pub answer_timeout: Duration,
}

impl NumbersConfig {
    /// The usual deadlines: five seconds in all, one for each try.
    pub fn new(client_id: u64, cluster_id: u64) -> Self {
        let (patience, answer_timeout) = (Duration::from_secs(5), Duration::from_secs(1));
        Self { client_id, cluster_id, patience, answer_timeout }
    }
}

/// This process's way to revisions.
pub struct Numbers {
    state: Mutex<State>,
    local: Option<Arc<dyn NumberService>>,
    /// Whether the local sequencer answered last time it was asked.
    local_leads: AtomicBool,
    /// Written by the driver only; epoch first.
    heard_epoch: AtomicU64,
    heard_revision: AtomicI64,
    /// Newest compacted revision of any answer.
    compacted: AtomicI64,
    /// Wakes the task: it is to drive.
    work: Notify,
    stop: watch::Sender<bool>,
    config: NumbersConfig,
    placement: Arc<PlacementClient>,
}

struct State {
    core: Core<Done>,
    driver: Driver,
    stopped: bool,
}

/// Who sends, takes answers and runs callbacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    Nobody,
    Caller,
    Task,
}

impl Numbers {
    /// Starts the client. `local`: the sequencer of this process's placement member, if it has one.
    /// Must be called inside a tokio runtime.
    pub fn start(
        config: NumbersConfig,
        placement: Arc<PlacementClient>,
        local: Option<Arc<dyn NumberService>>,
    ) -> Arc<Self> {
        let core = Core::new(config.client_id, config.cluster_id, config.patience);
        let numbers = Arc::new(Self {
            state: Mutex::new(State { core, driver: Driver::Nobody, stopped: false }),
            local_leads: AtomicBool::new(local.is_some()),
            local,
            heard_epoch: AtomicU64::new(0),
            heard_revision: AtomicI64::new(0),
            compacted: AtomicI64::new(0),
            work: Notify::new(),
            stop: watch::Sender::new(false),
            config,
            placement,
        });
        tokio::spawn(Arc::clone(&numbers).run());
        numbers
    }

    /// Asks for `count` consecutive revisions; 0 asks for a bound, which covers everything acknowledged before this
    /// call. `done` is called exactly once, maybe before this returns, in the order of the requests; it may ask again.
    pub fn request(&self, count: u32, done: Done) {
        let mut state = self.state.lock();
        if state.stopped {
            drop(state);
            return done(Err(NumberError::Stopped));
        }
        if let Err(done) = state.core.request(count, done, Instant::now()) {
            drop(state);
            return done(Err(NumberError::Overloaded));
        }
        if state.driver != Driver::Nobody {
            return;
        }
        if self.local_leads.load(Ordering::Relaxed) {
            state.driver = Driver::Caller;
            drop(state);
            self.drive_locally();
        } else {
            state.driver = Driver::Task;
            drop(state);
            self.work.notify_one();
        }
    }

    /// Newest epoch and revision heard of from a sequencer. Never goes back; the revision is at least the newest of its
    /// epoch's predecessor, since epochs begin above.
    pub fn heard(&self) -> (u64, i64) {
        loop {
            let epoch = self.heard_epoch.load(Ordering::Acquire);
            let revision = self.heard_revision.load(Ordering::Acquire);
            if self.heard_epoch.load(Ordering::Acquire) == epoch {
                return (epoch, revision);
            }
        }
    }

    /// Newest compacted revision that a sequencer's answer has carried; 0: none. Never goes back.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    /// Ends the client: whoever waits is told.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Serves the queue on the caller's thread while the local sequencer answers.
    fn drive_locally(&self) {
        // Passes the queue on to the task when it is dropped, also if the local sequencer panics.
        let baton = Baton(self);
        for _ in 0..ROUNDS {
            let Some(next) = self.next() else { return baton.lay_down() };
            time_out(next.expired, "");
            let Some(request) = next.request else { continue };
            let Some(answer) = self.ask_local(&request) else { return };
            match self.take(&answer) {
                Answered::Dealt(blocks) => deal(blocks),
                _ => return,
            }
        }
    }

    /// What to do now. None: nothing, and nobody drives any more.
    fn next(&self) -> Option<Next<Done>> {
        let mut state = self.state.lock();
        let next = match state.core.repeat() {
            Some(outstanding) => Next { expired: Vec::new(), request: Some(outstanding) },
            None => state.core.next(Instant::now()),
        };
        if next.is_nothing() {
            state.driver = Driver::Nobody;
            return None;
        }
        Some(next)
    }

    /// The local sequencer's answer; none if it does not lead. A refusal with a reason is an answer.
    fn ask_local(&self, request: &NumberRequest) -> Option<NumberAnswer> {
        let answer = self.local.as_ref()?.number(request);
        let leads = match &answer.refusal {
            Some(Refusal::NotLeader(leader)) => {
                if !leader.is_empty() {
                    self.placement.learn_leader(leader);
                }
                false
            }
            _ => true,
        };
        self.local_leads.store(leads, Ordering::Relaxed);
        leads.then_some(answer)
    }

    /// Takes an answer into the core and publishes what it says was heard, before any callback sees it.
    fn take(&self, answer: &NumberAnswer) -> Answered<Done> {
        let mut state = self.state.lock();
        let answered = state.core.answer(answer);
        if matches!(answered, Answered::Dealt(_)) {
            let (epoch, revision) = state.core.heard();
            self.heard_epoch.store(epoch, Ordering::Release);
            self.heard_revision.store(revision, Ordering::Release);
            if self.compacted.fetch_max(answer.compacted, Ordering::AcqRel) < answer.compacted {
                metrics::gauge!("braid_compacted_revision").set(answer.compacted as f64);
            }
        }
        answered
    }

    /// Drives whatever a caller could not, until the client is stopped.
    async fn run(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let mut stream = None;
        tokio::select! {
            () = self.drive(&mut stream) => {}
            // Its sender lives as long as this task.
            _ = stop.wait_for(|stopped| *stopped) => {}
        }
        let waiting = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.core.drain()
        };
        for done in waiting {
            tell(done, Err(NumberError::Stopped));
        }
    }

    async fn drive(&self, stream: &mut Option<Stream>) {
        loop {
            while self.state.lock().driver != Driver::Task {
                self.work.notified().await;
            }
            while let Some(next) = self.next() {
                time_out(next.expired, ": the request before it took too long");
                if let Some(request) = next.request {
                    self.serve(request, stream).await;
                }
                // Local answers never wait, and other tasks of the thread want to run as well.
                tokio::task::consume_budget().await;
            }
        }
    }

    /// Repeats one request until it is answered or given up.
    async fn serve(&self, request: NumberRequest, stream: &mut Option<Stream>) {
        let mut pause = PAUSE;
        let mut asked = false;
        let why = loop {
            let why = match self.ask(&request, stream, &mut asked).await {
                Ok(answer) => match self.take(&answer) {
                    Answered::Dealt(blocks) => return deal(blocks),
                    // Given up by the end of the client.
                    Answered::Ignored if self.state.lock().core.outstanding() != Some(request.seq) => return,
                    Answered::Stale(text) => break format!(": {text}"),
                    Answered::Busy => ": the sequencer is preparing its next window".to_owned(),
                    Answered::NotLeader(leader) => {
                        if let Some(stream) = stream.take() {
                            self.placement.refused(&stream.member, &leader);
                        }
                        ": the member asked does not lead".to_owned()
                    }
                    Answered::Behind(text) => {
                        tracing::error!(
                            why = text,
                            "the sequencer has given out less than this process has heard of: placement's data is \
                             older than the cluster's. Restore placement from its newest copy."
                        );
                        format!(": {text}")
                    }
                    Answered::Ignored => {
                        if let Some(stream) = stream.take() {
                            self.placement.failed(&stream.member);
                        }
                        ": the member asked is not the newest sequencer".to_owned()
                    }
                },
                Err(error) => {
                    *stream = None;
                    format!(": {error}")
                }
            };
            let deadline = self.state.lock().core.deadline();
            if deadline.is_none_or(|deadline| Instant::now() + pause >= deadline) {
                break why;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        let callers = self.state.lock().core.give_up();
        if asked && request.count > 0 {
            // A sequencer may have given them out and the answer was lost: nobody will ever use them.
            metrics::counter!("braid_revision_holes_total", "cause" => "sequencer_timeout")
                .increment(u64::from(request.count));
        }
        time_out(callers, &why);
    }

    /// Asks the local sequencer, or over the stream if it does not lead. `asked`: some sequencer may have the request.
    async fn ask(
        &self,
        request: &NumberRequest,
        stream: &mut Option<Stream>,
        asked: &mut bool,
    ) -> Result<NumberAnswer, String> {
        if stream.is_none()
            && let Some(answer) = self.ask_local(request)
        {
            *asked = true;
            return Ok(answer);
        }
        let (member, channel) = match stream {
            Some(open) => (open.member.clone(), None),
            None => self.placement.channel().map(|(member, channel)| (member, Some(channel)))?,
        };
        let exchange = async {
            if let Some(channel) = channel {
                *stream = Some(Stream::open(&member, channel).await?);
            }
            let Some(open) = stream else { return Err(format!("no stream to {member}")) };
            *asked = true;
            open.exchange(request).await
        };
        let answer = tokio::time::timeout(self.config.answer_timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("{member} does not answer")));
        answer.inspect_err(|_| self.placement.failed(&member))
    }
}

/// The right to drive, held by a caller.
struct Baton<'a>(&'a Numbers);

impl Baton<'_> {
    /// The queue is empty and nobody drives: there is nothing to pass on.
    fn lay_down(self) {
        std::mem::forget(self);
    }
}

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        self.0.state.lock().driver = Driver::Task;
        self.0.work.notify_one();
    }
}

/// One open `Number` call.
struct Stream {
    member: String,
    requests: mpsc::Sender<NumberRequest>,
    answers: Streaming<NumberAnswer>,
}

impl Stream {
    async fn open(member: &str, channel: tonic::transport::Channel) -> Result<Self, String> {
        let (requests, outgoing) = mpsc::channel(1);
        let call = SequencerClient::new(channel).number(ReceiverStream::new(outgoing)).await;
        let answers = call.map_err(|status| format!("{member}: {}", explain(&status)))?.into_inner();
        Ok(Stream { member: member.to_owned(), requests, answers })
    }

    async fn exchange(&mut self, request: &NumberRequest) -> Result<NumberAnswer, String> {
        let closed = || format!("{} closed the stream", self.member);
        self.requests.send(*request).await.map_err(|_| closed())?;
        loop {
            match self.answers.message().await {
                Ok(Some(answer)) if answer.seq == request.seq => return Ok(answer),
                // Of a request given up before.
                Ok(Some(_)) => {}
                Ok(None) => return Err(format!("{} closed the stream", self.member)),
                Err(status) => return Err(format!("{}: {}", self.member, explain(&status))),
            }
        }
    }
}

fn deal(blocks: Vec<(Done, Block)>) {
    for (done, block) in blocks {
        tell(done, Ok(block));
    }
}

fn time_out(callers: Vec<Done>, why: &str) {
    for done in callers {
        tell(done, Err(NumberError::TimedOut(why.to_owned())));
    }
}

/// Runs a callback. One that panics takes neither the driver nor the callers behind it with it.
fn tell(done: Done, answer: Result<Block, NumberError>) {
    if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
        tracing::error!("a callback of a numbering request panicked");
    }
}

#[cfg(test)]
mod tests;
