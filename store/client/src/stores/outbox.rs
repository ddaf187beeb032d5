//! Requests to one store: those that wait to be sent and those that wait for their answer, behind one lock.
//!
//! The connection's own task drains all that waits into one frame whenever it can write, so frames grow with load and a
//! request needs no task of its own. What is bounded is the sum of both kinds.
//!
//! ```text
//! push ──► waiting ──next_frame──► sent ──answer──► reply
//!             │                     │
//!             └──────── close ──────┴──► "not sent" / "connection lost"
//! ```

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use braid_proto::pb::{Busy, RegionRequest, RegionResponse, TaggedRequest, TaggedResponse, refusal};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use super::{lost, not_sent, refusal_of};

/// Requests to one store that may be under way. The store has the same bound for each connection.
pub const IN_FLIGHT_MAX: usize = 16_384;
/// Requests of one frame at most.
const FRAME_REQUESTS_MAX: usize = 512;
/// A frame is closed when it has grown to so many bytes; one request may exceed it.
const FRAME_BYTES: usize = 1 << 20;

/// Where an answer goes.
type Reply = oneshot::Sender<RegionResponse>;

/// Requests on their way to one store.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gate: Gate,
    /// How many connections have ended: what an ended one still asks for is refused.
    ended: u64,
    waiting: VecDeque<(RegionRequest, Reply)>,
    sent: HashMap<u64, Reply>,
    /// Id of the last request sent. Never reused, so that a late answer can only be dropped, never mistaken.
    last_id: u64,
    /// The task that writes, if it sleeps.
    writer: Option<Waker>,
}

/// What happens to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gate {
    /// They wait until there is a connection.
    #[default]
    Waiting,
    /// They are sent.
    Open,
    /// They are refused at once, because the store cannot be reached.
    Shut,
}

impl Outbox {
    /// Queues a request. Its answer comes through the receiver; if that is dropped before the request is sent, it is
    /// not sent.
    pub fn push(&self, request: RegionRequest) -> oneshot::Receiver<RegionResponse> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state.lock();
        let refused = if state.gate == Gate::Shut {
            Some(not_sent())
        } else if state.waiting.len() + state.sent.len() >= IN_FLIGHT_MAX {
            Some(refusal_of(refusal::Reason::Busy(Busy {
                what: "too many requests to one store are under way".to_owned(),
                retry_after_ms: 20,
            })))
        } else {
            None
        };
        if let Some(refused) = refused {
            drop(state);
            _ = reply.send(refused);
            return answer;
        }
        state.waiting.push_back((request, reply));
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        answer
    }

    /// Ready as soon as a request waits.
    pub fn poll_waiting(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// How many connections have ended. The next one names this number when it asks for frames.
    pub fn ended(&self) -> u64 {
        self.state.lock().ended
    }

    /// Takes what the next frame carries, never nothing. `None`: the connection that asks has ended.
    pub fn poll_frame(&self, connection: u64, context: &mut Context<'_>) -> Poll<Option<Vec<TaggedRequest>>> {
        let mut state = self.state.lock();
        if state.ended != connection {
            return Poll::Ready(None);
        }
        let frame = if state.gate == Gate::Open { state.next_frame() } else { Vec::new() };
        if frame.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(frame))
    }

    /// Hands out the answers of one frame.
    pub fn answer(&self, responses: Vec<TaggedResponse>) {
        let mut state = self.state.lock();
        let answers =
            responses.into_iter().filter_map(|tagged| Some((state.sent.remove(&tagged.id)?, tagged.response)));
        let answers: Vec<_> = answers.collect();
        drop(state);
        for (reply, response) in answers {
            _ = reply.send(response.unwrap_or_default());
        }
    }

    /// A connection stands: requests are sent.
    pub fn open(&self) {
        self.set_gate(Gate::Open);
    }

    /// A connection will be tried: requests wait for it.
    pub fn wait(&self) {
        self.set_gate(Gate::Waiting);
    }

    /// There is no connection: whatever is under way is answered, and so is what comes from now on.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.gate = Gate::Shut;
        state.ended += 1;
        let waiting = std::mem::take(&mut state.waiting);
        let sent = std::mem::take(&mut state.sent);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        waiting.into_iter().for_each(|(_, reply)| _ = reply.send(not_sent()));
        sent.into_values().for_each(|reply| _ = reply.send(lost()));
    }

    fn set_gate(&self, gate: Gate) {
        let mut state = self.state.lock();
        state.gate = gate;
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl State {
    fn next_frame(&mut self) -> Vec<TaggedRequest> {
        let mut bytes = 0;
        let mut frame = Vec::with_capacity(self.waiting.len().min(FRAME_REQUESTS_MAX));
        while bytes < FRAME_BYTES && frame.len() < FRAME_REQUESTS_MAX {
            let Some((request, reply)) = self.waiting.pop_front() else { break };
            if reply.is_closed() {
                continue;
            }
            bytes += request.encoded_len();
            self.last_id += 1;
            self.sent.insert(self.last_id, reply);
            frame.push(TaggedRequest { id: self.last_id, request: Some(request) });
        }
        frame
    }
}

#[cfg(test)]
mod tests;
