//! The way from one host to another: a bounded queue, and a task that keeps a `Stream` call open which empties it.
//!
//! ```text
//!   idle ── first frame ──► connecting ── connected ──► up ── call ended ──► down ── pause, then a frame ──► connecting
//!                                └───────────── failed ─────────────────────►─┘
//! ```
//! While it is `down` frames are dropped at the door, so that raft learns at once that nobody listens. After the pause
//! the next frame makes the lane connect again; it is dropped too, and repeated by raft.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use braid_proto::id::ClusterId;
use braid_proto::pb::raft_client::RaftClient;
use braid_proto::pb::{Domain, RaftFrame, RaftMessage, Support};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_stream::Stream;
use tracing::{debug, info, warn};

use super::{AddressBook, FRAME_BYTES, MESSAGE_BYTES_MAX, endpoint, explain, name};

/// Messages waiting in one lane, at most.
pub(super) const QUEUE_MESSAGES: usize = 8192;
/// Bytes waiting in one lane, at most; one message may exceed it alone.
pub(super) const QUEUE_BYTES: usize = 32 << 20;
/// Messages of one frame, at most: a receiver handles a frame in one go.
const FRAME_MESSAGES: usize = 1024;
/// What a message weighs beside its payload.
const MESSAGE_OVERHEAD: usize = 128;

/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause: half an election timeout.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A call that lasted this long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(5);

/// Whom a lane connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) domain: Domain,
    pub(super) from: u64,
    pub(super) to: u64,
}

pub(super) struct Lane {
    key: Key,
    cluster: ClusterId,
    queue: Mutex<Queue>,
    /// Woken when an idle or rested lane is to connect, and at the end.
    wanted: Notify,
}

#[derive(Default)]
struct Queue {
    state: State,
    /// Incarnation of the sender; what an older one left behind is dropped.
    incarnation: u64,
    messages: VecDeque<RaftMessage>,
    bytes: usize,
    /// Not queued behind the messages: a lease must not wait for a large append.
    support: Option<Support>,
    /// Which call may take from the queue. Bodies of earlier calls end.
    call: u64,
    /// The call's body, waiting for more.
    body: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing was sent yet.
    #[default]
    Idle,
    Connecting,
    Up,
    Down,
    /// The pause is over; the next frame connects.
    Rested,
    Closed,
}

impl Lane {
    pub(super) fn new(key: Key, cluster: ClusterId) -> Self {
        Lane { key, cluster, queue: Mutex::default(), wanted: Notify::new() }
    }

    /// Queues the frame's messages. False: they were dropped.
    pub(super) fn send(&self, frame: RaftFrame) -> bool {
        let size = frame.messages.iter().map(size).sum::<usize>();
        if frame.messages.iter().any(size_exceeds) {
            warn!(from = self.key.from, to = self.key.to, size, "a raft message is too large to send; dropped");
            return false;
        }
        let mut queue = self.queue.lock();
        match queue.state {
            State::Down | State::Closed => return false,
            State::Rested => {
                queue.state = State::Connecting;
                drop(queue);
                self.wanted.notify_one();
                return false;
            }
            State::Idle => {
                queue.state = State::Connecting;
                self.wanted.notify_one();
            }
            State::Connecting | State::Up => {}
        }
        if !queue.push(frame, size) {
            return false;
        }
        let body = queue.body.take();
        drop(queue);
        if let Some(body) = body {
            body.wake();
        }
        true
    }

    /// Ends the lane and its task.
    pub(super) fn close(&self) {
        self.change(State::Closed);
        self.wanted.notify_one();
    }

    /// Keeps the lane going until it is closed. `unreachable` is called whenever the target was lost or not found.
    pub(super) async fn run(self: Arc<Self>, book: AddressBook, unreachable: impl Fn()) {
        let Key { domain, to, .. } = self.key;
        let mut pause = PAUSE;
        loop {
            while !matches!(self.state(), State::Connecting | State::Closed) {
                self.wanted.notified().await;
            }
            let Some(address) = book.get(domain, to) else { return self.close() };
            let started = Instant::now();
            let ended = tokio::select! {
                ended = self.call(&address) => ended,
                () = book.moved(domain, to, &address) => Ended::Moved,
                () = self.closed() => return,
            };
            match ended {
                Ended::Moved => {
                    info!(to = name(domain, to), from = %address, "host moved to another address");
                    self.change(State::Connecting);
                    pause = PAUSE;
                    continue;
                }
                // The same line twice a second for as long as a host is down helps nobody.
                Ended::Failed(why) if pause == PAUSE => warn!(to = name(domain, to), %address, why, "no connection"),
                Ended::Failed(why) => debug!(to = name(domain, to), %address, why, "no connection"),
            }
            if !self.change(State::Down) {
                return;
            }
            unreachable();
            if started.elapsed() >= GOOD {
                pause = PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = book.moved(domain, to, &address) => {}
                () = self.closed() => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
            self.change(State::Rested);
        }
    }

    /// Connects and serves one `Stream` call to its end.
    async fn call(self: &Arc<Self>, address: &str) -> Ended {
        let connected = match endpoint(address) {
            Ok(endpoint) => endpoint.connect().await.map_err(|error| explain(&error)),
            Err(why) => Err(why),
        };
        let channel = match connected {
            Ok(channel) => channel,
            Err(why) => return Ended::Failed(why),
        };
        if !self.change(State::Up) {
            return Ended::Failed("closed".into());
        }
        debug!(to = name(self.key.domain, self.key.to), address, "connected");
        let body = Body { lane: Arc::clone(self), call: self.queue.lock().call };
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match client.stream(body).await {
            Ok(_) => Ended::Failed("the other side ended the call".into()),
            Err(status) => Ended::Failed(format!("{:?}: {}", status.code(), status.message())),
        }
    }

    fn state(&self) -> State {
        self.queue.lock().state
    }

    /// Enters `state` and ends the body of the call before. What waits in the queue goes on only into a connection.
    /// False: the lane is closed, and stays so.
    fn change(&self, state: State) -> bool {
        let mut queue = self.queue.lock();
        if queue.state == State::Closed {
            return false;
        }
        queue.state = state;
        queue.call += 1;
        if matches!(state, State::Down | State::Closed) {
            queue.clear();
        }
        let body = queue.body.take();
        drop(queue);
        if let Some(body) = body {
            body.wake();
        }
        true
    }

    async fn closed(&self) {
        while self.state() != State::Closed {
            self.wanted.notified().await;
        }
    }
}

enum Ended {
    Moved,
    Failed(String),
}

impl Queue {
    fn push(&mut self, frame: RaftFrame, size: usize) -> bool {
        if self.incarnation != frame.from_incarnation {
            self.clear();
            self.incarnation = frame.from_incarnation;
        }
        if let Some(support) = frame.support {
            self.support = Some(merge(self.support, support));
        }
        let full = !self.messages.is_empty()
            && (self.bytes + size > QUEUE_BYTES || self.messages.len() + frame.messages.len() > QUEUE_MESSAGES);
        if full && !frame.messages.is_empty() {
            return false;
        }
        self.bytes += size;
        if self.messages.is_empty() {
            self.messages = VecDeque::from(frame.messages);
        } else {
            self.messages.extend(frame.messages);
        }
        true
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
        self.support = None;
    }

    /// The messages and the support of the next frame, if there are any.
    fn pop(&mut self) -> Option<(Vec<RaftMessage>, Option<Support>)> {
        let support = self.support.take();
        if self.bytes <= FRAME_BYTES && self.messages.len() <= FRAME_MESSAGES {
            self.bytes = 0;
            let messages = Vec::from(std::mem::take(&mut self.messages));
            return (!messages.is_empty() || support.is_some()).then_some((messages, support));
        }
        let (mut count, mut bytes) = (0, 0);
        for size in self.messages.iter().take(FRAME_MESSAGES).map(size) {
            if count > 0 && bytes + size > FRAME_BYTES {
                break;
            }
            (count, bytes) = (count + 1, bytes + size);
        }
        self.bytes -= bytes;
        Some((self.messages.drain(..count).collect(), support))
    }
}

/// Two things said about support, as one. The newest request and the newest grant say all that the older ones did.
fn merge(earlier: Option<Support>, later: Support) -> Support {
    let Some(earlier) = earlier else { return later };
    let grant = if later.grant_seq == 0 { earlier } else { later };
    Support { request_seq: earlier.request_seq.max(later.request_seq), ..grant }
}

fn size(message: &RaftMessage) -> usize {
    message.message.len() + message.start.len() + message.end.len() + MESSAGE_OVERHEAD
}

/// Whether the message alone would break the receiver's limit, and with it the call.
fn size_exceeds(message: &RaftMessage) -> bool {
    size(message) > MESSAGE_BYTES_MAX - 1024
}

/// The request body of one call.
struct Body {
    lane: Arc<Lane>,
    call: u64,
}

impl Stream for Body {
    type Item = RaftFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RaftFrame>> {
        let Lane { key, cluster, queue, .. } = &*self.lane;
        let mut queue = queue.lock();
        if queue.call != self.call {
            return Poll::Ready(None);
        }
        let Some((messages, support)) = queue.pop() else {
            queue.body = Some(context.waker().clone());
            return Poll::Pending;
        };
        Poll::Ready(Some(RaftFrame {
            cluster_id: cluster.0,
            domain: key.domain as i32,
            from_host: key.from,
            to_host: key.to,
            from_incarnation: queue.incarnation,
            messages,
            support,
        }))
    }
}

#[cfg(test)]
mod tests;
