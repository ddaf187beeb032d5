//! Runs one stream's session: feeds it with what happens, does what it orders, sends what it says.
//!
//! There is no task for it: the connection polls the stream when it can send. What the source offers meanwhile goes into
//! the session at once, on the source's own thread, until there is no room; so a client that does not read costs a bounded
//! queue and nobody's time.
//!
//! The source is never called while the session is locked, because it may call back.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::WatchRequest;
use braid_store_client::bound::Bound;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::task::AtomicWaker;
use futures::{FutureExt, Stream, StreamExt};
use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, Sleep};
use tonic::{Code, Status};

use super::{Outside, Parts};
use crate::in_flight::Ticket;
use crate::watch::batch::Batch;
use crate::watch::session::{Order, Purpose, Session};
use crate::watch::wire::{FRAME_BYTES, Frame, Response};
use crate::watch::{Receiver, Source, SubscriptionId};

/// Responses, and about so many bytes of events, that are taken out of the session at once. Between two times the client's
/// messages are looked at.
const TAKE_RESPONSES: usize = 32;
const TAKE_BYTES: usize = 64 << 10;
/// The gauge of queued bytes may be wrong by so much for each stream.
const GAUGE_SLACK: usize = 64 << 10;
/// Between two looks at whether there is a leader: one election timeout of etcd.
const LEADER_LOOK: Duration = Duration::from_secs(1);
/// So many looks without one end a stream that wants one.
const LEADER_MISSES_MAX: u32 = 3;
/// How many subscriptions are waited for at once.
const REACH_AT_ONCE: usize = 256;

/// What the streams of a service hold, for `/metrics`; the hub counts their watches.
#[derive(Clone)]
pub(super) struct Gauges {
    streams: Gauge,
    queued_bytes: Gauge,
}

impl Default for Gauges {
    fn default() -> Self {
        Self {
            streams: metrics::gauge!("braid_proxy_watch_streams"),
            queued_bytes: metrics::gauge!("braid_proxy_watch_queued_bytes"),
        }
    }
}

/// One stream's responses.
pub struct WatchStream {
    inner: Arc<Inner>,
    source: Arc<dyn Source>,
    outside: Arc<dyn Outside>,
    /// `None`: the client says no more. It still listens.
    requests: Option<BoxStream<'static, Result<WatchRequest, Status>>>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Ends when the stream has to, with the reason.
    over: BoxFuture<'static, Status>,
    notices: Pin<Box<Sleep>>,
    progress_interval: Duration,
    /// Tells whether any of the above may have something new.
    inputs: Arc<Inputs>,
    /// What is sent next.
    taken: VecDeque<Response>,
    /// Bytes of all that was taken at once, until the first of it is sent.
    together: usize,
    ended: bool,
    _ticket: Ticket,
}

/// Wakes the connection and remembers that it was not for the sake of news: those come often, and the inputs of a stream
/// take longer to look at than they do.
struct Inputs {
    changed: AtomicBool,
    connection: AtomicWaker,
}

impl Wake for Inputs {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.changed.store(true, Ordering::SeqCst);
        self.connection.wake();
    }
}

/// The part of a stream that the source sees.
struct Inner {
    state: Mutex<State>,
    gauges: Gauges,
}

struct State {
    session: Session,
    waker: Option<Waker>,
    /// What the gauge has been told.
    queued_bytes: usize,
}

/// What an order has come to.
enum Done {
    Bound(Bound),
    Reached(Purpose, i64, Vec<SubscriptionId>),
}

impl Inner {
    /// Does something with the session and keeps the gauge nearly true.
    fn with<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        self.change(&mut self.state.lock(), change)
    }

    fn change<T>(&self, state: &mut State, change: impl FnOnce(&mut Session) -> T) -> T {
        let result = change(&mut state.session);
        let bytes = state.session.queued_bytes();
        if bytes.abs_diff(state.queued_bytes) > if bytes == 0 { 0 } else { GAUGE_SLACK } {
            self.gauges.queued_bytes.increment(bytes as f64 - state.queued_bytes as f64);
            state.queued_bytes = bytes;
        }
        result
    }

    /// Takes out what is to be done and, into `responses`, what is to be sent next. News that come afterwards wake.
    fn take(&self, responses: &mut VecDeque<Response>, waker: &Waker) -> Vec<Order> {
        let mut state = self.state.lock();
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        self.change(&mut state, |session| {
            let mut bytes = 0;
            while responses.len() < TAKE_RESPONSES
                && bytes < TAKE_BYTES
                && let Some(response) = session.next_response()
            {
                bytes += response.events_len();
                responses.push_back(response);
            }
            session.take_orders()
        })
    }
}

impl Receiver for Inner {
    fn take(&self, id: SubscriptionId, batch: &Batch, from: usize) -> usize {
        let mut state = self.state.lock();
        let taken = self.change(&mut state, |session| session.news(id, batch, from));
        let waker = state.waker.take_if(|_| taken > from);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        taken
    }

    fn end(&self, id: SubscriptionId, begin: i64) -> bool {
        let mut state = self.state.lock();
        let taken = self.change(&mut state, |session| session.history_begins(id, begin));
        let waker = state.waker.take_if(|_| taken);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        taken
    }
}

impl WatchStream {
    pub(super) fn new(
        parts: &Parts,
        requests: BoxStream<'static, Result<WatchRequest, Status>>,
        require_leader: bool,
        ticket: Ticket,
    ) -> Self {
        let session = Session::new(parts.settings.limits, Arc::clone(&parts.names));
        let state = State { session, waker: None, queued_bytes: 0 };
        parts.gauges.streams.increment(1.0);
        let progress_interval = jittered(parts.settings.progress_interval);
        let inner = Arc::new(Inner { state: Mutex::new(state), gauges: parts.gauges.clone() });
        let leader = require_leader.then(|| LeaderWatch {
            inner: Arc::clone(&inner),
            source: Arc::clone(&parts.source),
            outside: Arc::clone(&parts.outside),
        });
        Self {
            inner,
            source: Arc::clone(&parts.source),
            outside: Arc::clone(&parts.outside),
            requests: Some(requests),
            work: FuturesUnordered::new(),
            over: over(parts.stopped.clone(), leader).boxed(),
            notices: Box::pin(tokio::time::sleep(progress_interval)),
            progress_interval,
            inputs: Arc::new(Inputs { changed: AtomicBool::new(true), connection: AtomicWaker::new() }),
            taken: VecDeque::new(),
            together: 0,
            ended: false,
            _ticket: ticket,
        }
    }

    fn next_frame(&mut self) -> Option<Frame> {
        let response = self.taken.pop_front()?;
        // One allocation for all that go together.
        let together = std::mem::take(&mut self.together);
        Some(Frame { header: self.outside.header(response.revision), response, together })
    }

    /// Takes in whatever has happened.
    ///
    /// # Errors
    /// The stream is over.
    fn poll_inputs(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        if let Poll::Ready(why) = self.over.poll_unpin(context) {
            return Err(why);
        }
        let mut busy = false;
        while let Poll::Ready(Some(done)) = self.work.poll_next_unpin(context) {
            busy = true;
            self.inner.with(|session| match done {
                Done::Bound(bound) => session.bound(bound),
                Done::Reached(purpose, revision, reached) => session.reached(purpose, revision, &reached),
            });
        }
        while self.notices.poll_unpin(context).is_ready() {
            busy = true;
            self.notices.as_mut().reset(Instant::now() + self.progress_interval);
            self.inner.with(Session::notices_due);
        }
        Ok(self.poll_requests(context)? || busy)
    }

    fn poll_requests(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        let mut busy = false;
        while let Some(requests) = &mut self.requests
            && self.inner.with(|session| session.wants_messages())
        {
            match requests.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    busy = true;
                    let heard = self.outside.heard();
                    self.inner.with(|session| session.message(message, heard));
                }
                Poll::Ready(Some(Err(status))) if status.code() == Code::Cancelled => {
                    return Err(Status::cancelled("etcdserver: watch canceled"));
                }
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) => self.requests = None,
            }
        }
        if self.requests.is_some() && !self.inner.with(|session| session.wants_messages()) {
            // Nobody says when it does.
            self.inputs.changed.store(true, Ordering::SeqCst);
        }
        Ok(busy)
    }

    /// Does what the session has ordered.
    fn run(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Bound => self.work.push(self.outside.bound().map(Done::Bound).boxed()),
                Order::Subscribe(id, wanted) => {
                    let receiver: Arc<Inner> = Arc::clone(&self.inner);
                    self.source.subscribe(id, wanted, receiver);
                }
                Order::Unsubscribe(id) => self.source.unsubscribe(id),
                Order::Resume(id) => self.source.resume(id),
                Order::Reach(purpose, revision, ids) => {
                    self.work.push(reach(Arc::clone(&self.source), purpose, revision, ids).boxed());
                }
            }
        }
    }
}

impl Stream for WatchStream {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.inputs.connection.register(context.waker());
        let waker = Waker::from(Arc::clone(&self.inputs));
        loop {
            if let Some(frame) = self.next_frame() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let Self { inner, taken, .. } = &mut *self;
            let orders = inner.take(taken, context.waker());
            self.together = self.taken.iter().map(|response| response.events_len() + FRAME_BYTES).sum();
            let mut happened = !orders.is_empty();
            self.run(orders);
            // New work has to be polled once.
            if self.inputs.changed.swap(false, Ordering::SeqCst) || happened {
                match self.poll_inputs(&mut Context::from_waker(&waker)) {
                    Ok(more) => happened |= more,
                    Err(status) => {
                        self.ended = true;
                        return Poll::Ready(Some(Err(status)));
                    }
                }
            }
            if !happened && self.taken.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        for id in self.inner.with(Session::end) {
            self.source.unsubscribe(id);
        }
        self.inner.gauges.streams.decrement(1.0);
        self.inner.gauges.queued_bytes.decrement(self.inner.state.lock().queued_bytes as f64);
    }
}

/// Up to a tenth longer, so that streams which began together do not stay together.
fn jittered(interval: Duration) -> Duration {
    interval + interval.mul_f64(rand::random::<f64>() / 10.0)
}

/// Waits for a reason to end a stream: the proxy stops, or there is no leader where the client wants one.
async fn over(mut stopped: watch::Receiver<bool>, leader: Option<LeaderWatch>) -> Status {
    let leaderless = async {
        match leader {
            Some(watch) => watch.leaderless().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // An error means that the proxy is gone altogether.
        _ = stopped.wait_for(|stopped| *stopped) => error::STOPPED.into(),
        () = leaderless => error::NO_LEADER.into(),
    }
}

/// Looks whether everything that a stream watches has a leader.
struct LeaderWatch {
    inner: Arc<Inner>,
    source: Arc<dyn Source>,
    outside: Arc<dyn Outside>,
}

impl LeaderWatch {
    /// Ends when the cluster, or one and the same region that is watched, has had no leader for some looks in a row.
    async fn leaderless(&self) {
        let mut looks = tokio::time::interval(LEADER_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut misses, mut cluster) = (0, 0);
        let mut silent: HashMap<Bytes, u32> = HashMap::new();
        while misses < LEADER_MISSES_MAX {
            looks.tick().await;
            cluster = if self.outside.has_leader() { 0 } else { cluster + 1 };
            let subscriptions = self.inner.with(|session| session.subscriptions());
            let now = self.source.silent(&subscriptions);
            let counted = now.into_iter().map(|place| {
                let misses = silent.get(&place).map_or(1, |before| before + 1);
                (place, misses)
            });
            silent = counted.collect();
            misses = silent.values().copied().max().unwrap_or(0).max(cluster);
        }
    }
}

/// How long a purpose is worth waiting.
fn patience(purpose: Purpose) -> Duration {
    match purpose {
        // The next round comes anyhow.
        Purpose::Notices => Duration::from_secs(10),
        // Clients that want an answer ask again and again.
        Purpose::Report => Duration::from_secs(1),
        // Events wait meanwhile.
        Purpose::HeldReport => Duration::from_millis(20),
    }
}

async fn reach(source: Arc<dyn Source>, purpose: Purpose, revision: i64, ids: Vec<SubscriptionId>) -> Done {
    let waits = ids.iter().filter(|id| source.frontier(**id).is_some_and(|frontier| frontier < revision));
    let waits = futures::stream::iter(waits.map(|id| source.reach(*id, revision)).collect::<Vec<_>>());
    let all = waits.buffer_unordered(REACH_AT_ONCE).for_each(|()| std::future::ready(()));
    // Late ones are told apart below.
    _ = tokio::time::timeout(patience(purpose), all).await;
    let reached = ids.into_iter().filter(|id| source.frontier(*id).is_some_and(|frontier| frontier >= revision));
    Done::Reached(purpose, revision, reached.collect())
}
