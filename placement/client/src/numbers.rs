//! The shell around [`crate::numbers_core`]: local calls, connections, deadlines.
//!
//! A process whose own placement member leads is answered by a plain call on the thread that asks. Otherwise one task
//! keeps one stream to the leader, and repeats what is outstanding wherever the leader goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use braid_proto::pb::sequencer_client::SequencerClient;
use braid_proto::pb::{NumberAnswer, NumberRequest};
use braid_proto::service::NumberService;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::PlacementClient;
use crate::numbers_core::{Answered, Block, Core, NumberError};

/// Gets a caller's answer. Runs on the thread that brought it: must not block.
pub type Done = Box<dyn FnOnce(Result<Block, NumberError>) + Send + 'static>;

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
    core: Mutex<Core<Done>>,
    local: Option<Arc<dyn NumberService>>,
    /// Whether the local sequencer answered last time it was asked.
    local_leads: AtomicBool,
    heard_epoch: AtomicU64,
    heard_revision: AtomicI64,
    work: Notify,
    stopped: AtomicBool,
    config: NumbersConfig,
    placement: Arc<PlacementClient>,
}

impl Numbers {
    /// Starts the client. `local`: the sequencer of this process's placement member, if it has one.
    /// Must be called inside a tokio runtime.
    pub fn start(
        config: NumbersConfig,
        placement: Arc<PlacementClient>,
        local: Option<Arc<dyn NumberService>>,
    ) -> Arc<Self> {
        let numbers = Arc::new(Self {
            core: Mutex::new(Core::new(config.client_id, 1, config.cluster_id)),
            local_leads: AtomicBool::new(local.is_some()),
            local,
            heard_epoch: AtomicU64::new(0),
            heard_revision: AtomicI64::new(0),
            work: Notify::new(),
            stopped: AtomicBool::new(false),
            config,
            placement,
        });
        let task = Arc::clone(&numbers);
        tokio::spawn(async move { task.run().await });
        numbers
    }

    /// Asks for `count` consecutive revisions; 0 asks for a bound. `done` is called exactly once, maybe before this
    /// returns.
    pub fn request(&self, count: u32, done: Done) {
        if self.stopped.load(Ordering::Acquire) {
            return done(Err(NumberError::Stopped));
        }
        let mut core = self.core.lock();
        if let Err(done) = core.request(count, done) {
            drop(core);
            return done(Err(NumberError::Overloaded));
        }
        if core.outstanding().is_some() {
            return;
        }
        if !self.local_leads.load(Ordering::Relaxed) {
            drop(core);
            self.work.notify_one();
            return;
        }
        let Some(request) = core.next() else { return };
        let answered = self.ask_local(&request).map(|answer| self.take(&mut core, &answer));
        drop(core);
        match answered {
            Some(Answered::Dealt(blocks)) => deal(blocks),
            _ => {
                self.local_leads.store(false, Ordering::Relaxed);
                self.work.notify_one();
            }
        }
    }

    /// Newest epoch and revision heard of from a sequencer. Never goes back.
    pub fn heard(&self) -> (u64, i64) {
        (self.heard_epoch.load(Ordering::Acquire), self.heard_revision.load(Ordering::Acquire))
    }

    /// Ends the client: whoever waits is told.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.work.notify_one();
    }

    fn ask_local(&self, request: &NumberRequest) -> Option<NumberAnswer> {
        self.local.as_ref().map(|local| local.number(request))
    }

    /// Takes an answer into the core and publishes what it says was heard.
    fn take(&self, core: &mut Core<Done>, answer: &NumberAnswer) -> Answered<Done> {
        let answered = core.answer(answer);
        if matches!(answered, Answered::Dealt(_)) {
            let (epoch, revision) = core.heard();
            self.heard_epoch.store(epoch, Ordering::Release);
            self.heard_revision.store(revision, Ordering::Release);
        }
        answered
    }

    /// Serves everything that a local call could not.
    async fn run(self: Arc<Self>) {
        let mut stream: Option<Stream> = None;
        while !self.stopped.load(Ordering::Acquire) {
            let request = {
                let mut core = self.core.lock();
                match core.repeat() {
                    Some(outstanding) => Some(outstanding),
                    None => core.next(),
                }
            };
            match request {
                Some(request) => self.serve(request, &mut stream).await,
                None => self.work.notified().await,
            }
        }
        for done in self.core.lock().drain() {
            done(Err(NumberError::Stopped));
        }
    }

    /// Repeats one request until it is answered or given up.
    async fn serve(&self, request: NumberRequest, stream: &mut Option<Stream>) {
        let deadline = Instant::now() + self.config.patience;
        let mut pause = Duration::from_millis(5);
        let mut why = String::new();
        loop {
            let answer = match self.ask_local_if_it_may_lead(&request, stream.is_some()) {
                Some(answer) => Ok(answer),
                None => self.ask_remote(&request, stream).await,
            };
            match answer {
                Ok(answer) => {
                    let answered = self.take(&mut self.core.lock(), &answer);
                    match answered {
                        Answered::Dealt(blocks) => return deal(blocks),
                        Answered::NotLeader(leader) => {
                            why = ": the member asked does not lead".to_owned();
                            self.placement.learn_leader(&leader);
                            *stream = None;
                        }
                        Answered::Busy => why = ": the sequencer is preparing its next window".to_owned(),
                        Answered::Behind(text) => {
                            tracing::error!(
                                why = text,
                                "the sequencer has given out less than this process has heard of: placement's data is \
                                 older than the cluster's. Restore placement from its newest copy."
                            );
                            why = format!(": {text}");
                        }
                        Answered::Stale => break,
                        Answered::Ignored => *stream = None,
                    }
                }
                Err(error) => {
                    why = format!(": {error}");
                    *stream = None;
                    self.placement.try_another();
                }
            }
            if Instant::now() + pause >= deadline || self.stopped.load(Ordering::Acquire) {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        let callers = self.core.lock().give_up();
        metrics::counter!("braid_revision_holes_possible_total", "cause" => "sequencer_timeout")
            .increment(u64::from(request.count));
        for done in callers {
            done(Err(NumberError::TimedOut(why.clone())));
        }
    }

    fn ask_local_if_it_may_lead(&self, request: &NumberRequest, streaming: bool) -> Option<NumberAnswer> {
        if streaming {
            return None;
        }
        let answer = self.ask_local(request)?;
        let leads = answer.refusal.is_none();
        self.local_leads.store(leads, Ordering::Relaxed);
        leads.then_some(answer)
    }

    async fn ask_remote(&self, request: &NumberRequest, stream: &mut Option<Stream>) -> Result<NumberAnswer, String> {
        let asked = async {
            if stream.is_none() {
                *stream = Some(self.connect().await?);
            }
            let Some(open) = stream else { return Err("no stream".to_owned()) };
            open.requests.send(*request).await.map_err(|_| "the stream to the sequencer broke".to_owned())?;
            loop {
                match open.answers.message().await {
                    Ok(Some(answer)) if answer.seq == request.seq => return Ok(answer),
                    Ok(Some(_)) => {}
                    Ok(None) => return Err("the sequencer closed the stream".to_owned()),
                    Err(status) => return Err(status.message().to_owned()),
                }
            }
        };
        tokio::time::timeout(self.config.answer_timeout, asked)
            .await
            .unwrap_or_else(|_| Err("the member asked does not answer".to_owned()))
    }

    async fn connect(&self) -> Result<Stream, String> {
        let (requests, outgoing) = mpsc::channel(4);
        let mut client = SequencerClient::new(self.placement.channel()?);
        let answers =
            client.number(ReceiverStream::new(outgoing)).await.map_err(|status| status.message().to_owned())?;
        Ok(Stream { requests, answers: answers.into_inner() })
    }
}

struct Stream {
    requests: mpsc::Sender<NumberRequest>,
    answers: Streaming<NumberAnswer>,
}

fn deal(blocks: Vec<(Done, Block)>) {
    for (done, block) in blocks {
        done(Ok(block));
    }
}
