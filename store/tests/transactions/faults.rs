//! What stands between the stores, and between them and their callers: every raft message and every call passes here, and
//! may be kept from passing.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use braid_host::Transport;
use braid_host::transport::GrpcTransport;
use braid_proto::pb::{
    LockToken, NotLeader, RaftFrame, Refusal, RegionRequest, RegionResponse, TxnId, Unknown, refusal, region_request,
    region_response,
};
use braid_proto::service::{BoxFuture, RegionService};
use braid_store_client::retry::CONNECTION_LOST;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Who is no store: the caller of a test.
pub const CLIENT: u64 = 0;
/// A raft message of this size carries a chunk of a wipe: everything else that scenarios write then is a few hundred bytes.
const CHUNK_BYTES_MIN: usize = 4 << 10;

/// What happens to the shares that primaries carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrying {
    /// They arrive.
    #[default]
    Works,
    /// They do not.
    Fails,
    /// Only this transaction's do.
    OnlyOf(TxnId),
    /// They arrive, but the first answer for each is lost.
    AnswersOnce,
}

/// A call that is stopped on its way, once.
#[derive(Clone, Copy)]
pub struct Stop {
    /// Which call; the caller of a test is not stopped.
    pub which: fn(&region_request::Op) -> bool,
    /// How many such calls pass before.
    pub after: u32,
    /// The store has done it, and its answer is stopped. Otherwise the call itself is.
    pub answer: bool,
    /// When it may go on it arrives twice.
    pub twice: bool,
}

/// How far it is with a call that is to be stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stopping {
    /// None is, or it goes on.
    #[default]
    No,
    /// It has not come yet.
    Waits,
    /// It stands still, between this caller and this store.
    Stopped(u64, u64),
}

/// See the module's text.
pub struct Faults {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    services: HashMap<u64, Arc<dyn RegionService>>,
    dead: HashSet<u64>,
    isolated: HashSet<u64>,
    /// This store is isolated after it has sent so many chunks of a wipe.
    isolate_after: Option<(u64, u32)>,
    carrying: Carrying,
    unanswered: HashSet<LockToken>,
    no_questions: bool,
    stop: Option<Stop>,
    stopping: Stopping,
    /// Shares that have reached a store.
    arrived: u64,
}

impl Faults {
    /// Everything works.
    pub fn none() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: watch::Sender::new(()) })
    }

    /// `store` can be called.
    pub fn serve(&self, store: u64, service: Arc<dyn RegionService>) {
        self.change(|state| {
            state.dead.remove(&store);
            state.services.insert(store, service);
        });
    }

    /// Nothing reaches `store` and nothing comes from it any more.
    pub fn kill(&self, store: u64) {
        self.change(|state| {
            state.dead.insert(store);
            state.services.remove(&store);
        });
    }

    /// No raft message reaches `store` or comes from it. It can still be called.
    pub fn isolate(&self, store: u64) {
        self.change(|state| _ = state.isolated.insert(store));
    }

    /// Isolates `store` once it has sent `chunks` messages with chunks of a wipe.
    pub fn isolate_after_chunks(&self, store: u64, chunks: u32) {
        self.change(|state| state.isolate_after = Some((store, chunks)));
    }

    /// Nobody is isolated.
    pub fn reconnect(&self) {
        self.change(|state| {
            state.isolated.clear();
            state.isolate_after = None;
        });
    }

    /// What happens to shares on their way.
    pub fn carry(&self, carrying: Carrying) {
        self.change(|state| state.carrying = carrying);
    }

    /// Whether participants can ask primaries.
    pub fn questions(&self, pass: bool) {
        self.change(|state| state.no_questions = !pass);
    }

    /// Waits until `store` is isolated.
    pub async fn isolated(&self, store: u64) {
        self.until(|state| state.isolated.contains(&store)).await;
    }

    /// Stops a call.
    #[allow(dead_code, reason = "the tests of leases share this")]
    pub fn stop(&self, stop: Stop) {
        self.change(|state| (state.stop, state.stopping) = (Some(stop), Stopping::Waits));
    }

    /// Waits until that call stands still. Returns who calls which store.
    #[allow(dead_code, reason = "the tests of leases share this")]
    pub async fn stopped(&self) -> (u64, u64) {
        self.until(|state| matches!(state.stopping, Stopping::Stopped(..))).await;
        match self.state.lock().stopping {
            Stopping::Stopped(from, to) => (from, to),
            other => unreachable!("only the test lets it go on: {other:?}"),
        }
    }

    /// It goes on.
    #[allow(dead_code, reason = "the tests of leases share this")]
    pub fn go_on(&self) {
        self.change(|state| (state.stop, state.stopping) = (None, Stopping::No));
    }

    /// Whether this is the call to stop; then it counts as stopped.
    fn stops(&self, from: u64, to: u64, op: Option<&region_request::Op>) -> Option<Stop> {
        let mut state = self.state.lock();
        if from == CLIENT || state.stopping != Stopping::Waits {
            return None;
        }
        let stop = state.stop.as_mut().filter(|stop| op.is_some_and(stop.which))?;
        if stop.after > 0 {
            stop.after -= 1;
            return None;
        }
        let stop = *stop;
        if !stop.answer {
            state.stopping = Stopping::Stopped(from, to);
            drop(state);
            self.changed.send_replace(());
        }
        Some(stop)
    }

    /// A call that is stopped, and then goes to whoever serves that store by then.
    async fn deliver(self: Arc<Self>, from: u64, to: u64, request: RegionRequest, stop: Stop) -> RegionResponse {
        if stop.answer {
            let answer = self.pass(to, request).await;
            self.stand_still(from, to).await;
            return answer;
        }
        self.stand_still(from, to).await;
        let answer = self.pass(to, request.clone()).await;
        if stop.twice {
            // Nobody hears what comes of the second one.
            self.pass(to, request).await;
        }
        answer
    }

    async fn pass(&self, to: u64, request: RegionRequest) -> RegionResponse {
        let service = self.state.lock().services.get(&to).map(Arc::clone);
        match service.map(|service| service.call(request)) {
            Some(answer) => tokio::select! {
                answer = answer => answer,
                () = self.until(|state| state.dead.contains(&to)) => Failed::Lost.answer(),
            },
            None => Failed::Lost.answer(),
        }
    }

    /// Stands still until it may go on.
    async fn stand_still(&self, from: u64, to: u64) {
        self.change(|state| {
            if state.stopping == Stopping::Waits {
                state.stopping = Stopping::Stopped(from, to);
            }
        });
        self.until(|state| !matches!(state.stopping, Stopping::Stopped(..))).await;
    }

    /// How many shares have reached a store.
    pub fn arrived(&self) -> u64 {
        self.state.lock().arrived
    }

    /// Waits until more than `count` shares have reached a store.
    pub async fn arrived_since(&self, count: u64) {
        self.until(|state| state.arrived > count).await;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.send_replace(());
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        while !condition(&self.state.lock()) {
            changed.changed().await.expect("the sender lives as long as this");
        }
    }

    fn passes(&self, frame: &RaftFrame) -> bool {
        let mut state = self.state.lock();
        let stopped = |host| state.dead.contains(&host) || state.isolated.contains(&host);
        if stopped(frame.from_host) || stopped(frame.to_host) {
            return false;
        }
        let chunks = frame.messages.iter().filter(|message| message.message.len() >= CHUNK_BYTES_MIN).count() as u32;
        if let Some((store, left)) = state.isolate_after.as_mut().filter(|(store, _)| *store == frame.from_host) {
            *left = left.saturating_sub(chunks);
            if *left == 0 {
                let store = *store;
                state.isolate_after = None;
                state.isolated.insert(store);
                drop(state);
                self.changed.send_replace(());
            }
        }
        true
    }

    /// The service to call, and whether its answer is lost.
    fn begin(
        &self,
        from: u64,
        to: u64,
        op: Option<&region_request::Op>,
    ) -> Result<(Arc<dyn RegionService>, bool), Failed> {
        let mut state = self.state.lock();
        let Some(service) = state.services.get(&to).map(Arc::clone).filter(|_| !state.dead.contains(&from)) else {
            return Err(Failed::NotSent);
        };
        match op {
            Some(region_request::Op::Outcome(_)) if from != CLIENT && state.no_questions => Err(Failed::Lost),
            Some(region_request::Op::Commit(commit)) if from != CLIENT => {
                let token = commit.share.as_ref().and_then(|share| share.token).unwrap_or_default();
                let lose = match state.carrying {
                    Carrying::Works => false,
                    Carrying::Fails => return Err(Failed::Lost),
                    Carrying::OnlyOf(txn) if commit.txn != Some(txn) => return Err(Failed::Lost),
                    Carrying::OnlyOf(_) => false,
                    Carrying::AnswersOnce => state.unanswered.insert(token),
                };
                state.arrived += 1;
                drop(state);
                self.changed.send_replace(());
                Ok((service, lose))
            }
            _ => Ok((service, false)),
        }
    }
}

/// The way from one process to a store.
pub struct Link {
    /// Who calls.
    pub from: u64,
    /// Which store.
    pub to: u64,
    /// What may go wrong.
    pub faults: Arc<Faults>,
}

impl RegionService for Link {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        let (from, to, faults) = (self.from, self.to, Arc::clone(&self.faults));
        Box::pin(async move {
            let (service, lose) = match faults.begin(from, to, request.op.as_ref()) {
                Ok(begun) => begun,
                Err(failed) => return failed.answer(),
            };
            let stop = faults.stops(from, to, request.op.as_ref());
            let late = Arc::clone(&faults);
            let answer = async move {
                match stop {
                    None => service.call(request).await,
                    // It arrives also if its caller waits no longer.
                    Some(stop) => {
                        drop(service);
                        tokio::spawn(late.deliver(from, to, request, stop)).await.expect("it does not panic")
                    }
                }
            };
            tokio::select! {
                answer = answer => if lose { Failed::Lost.answer() } else { answer },
                () = faults.until(|state| state.dead.contains(&from) || state.dead.contains(&to)) => Failed::Lost.answer(),
            }
        })
    }
}

/// Why a call has no answer.
enum Failed {
    /// The request never left: it did not happen.
    NotSent,
    /// It may have happened.
    Lost,
}

impl Failed {
    fn answer(self) -> RegionResponse {
        let reason = Some(match self {
            Self::NotSent => refusal::Reason::NotLeader(NotLeader { leader: None }),
            Self::Lost => refusal::Reason::Unknown(Unknown { why: CONNECTION_LOST.to_owned() }),
        });
        RegionResponse { result: Some(region_response::Result::Refusal(Refusal { reason })) }
    }
}

/// The way of raft messages.
pub struct Wire {
    /// Carries what passes.
    pub inner: GrpcTransport,
    /// What does not pass.
    pub faults: Arc<Faults>,
}

impl Transport for Wire {
    fn send(&self, frame: RaftFrame) -> bool {
        self.faults.passes(&frame) && self.inner.send(frame)
    }

    fn send_snapshot(&self, frame: RaftFrame, files: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        match self.faults.passes(&frame) {
            true => self.inner.send_snapshot(frame, files, done),
            false => done(Err("the store is cut off".to_owned())),
        }
    }
}
