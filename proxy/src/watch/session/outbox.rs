//! What a stream has to send and has not sent: bounded, in order.
//!
//! - Events are taken while there is room; answers to the client's own requests always, because the client's requests are
//!   not read while there is none.
//! - Events of the past that follow each other, of one watch, go into one response; so do later ones when responses pile
//!   up.
//! - A response that is too large for the client goes in fragments, one right after the other.
//! - While a report on all watches is about to be answered, what is newer waits behind it (*held*), so that no client hears
//!   of a revision and then of an older one.

use std::collections::VecDeque;

use crate::watch::batch::Encoded;
use crate::watch::session::Limits;
use crate::watch::wire::Response;

/// Revisions in one response at most, as in etcd.
pub const REVISIONS_MAX: u32 = 1000;
/// Where so many revisions wait for a watch, or so many responses for the client, revisions share a response.
pub const PILE: usize = 8;
/// A response takes no more revisions beyond this.
const JOINED_BYTES_MAX: usize = 256 << 10;

/// Events of a revision or some, on their way to one watch.
pub struct Delivery {
    /// The watch.
    pub watch_id: i64,
    /// Their revision, or the last.
    pub revision: i64,
    /// Of how many revisions they are.
    pub revisions: u32,
    /// At least one.
    pub events: Encoded,
    /// The client takes fragments.
    pub fragment: bool,
    /// They may go together with other revisions: the watch is catching up.
    pub past: bool,
    /// Its watch was created behind the report that is about to be made.
    pub late: bool,
}

struct Queued {
    response: Response,
    /// How many revisions its events are of; 0: no more may join.
    revisions: u32,
}

/// What a stream has to send.
pub struct Outbox {
    limits: Limits,
    queue: VecDeque<Queued>,
    /// What waits behind a report.
    behind: VecDeque<Queued>,
    /// Revisions above this one are held.
    hold: Option<i64>,
    /// Bytes of events in both queues.
    bytes: usize,
    /// Highest revision that went into `queue` with events.
    newest: i64,
}

impl Outbox {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new(), behind: VecDeque::new(), hold: None, bytes: 0, newest: 0 }
    }

    /// How many more responses may be taken from a source.
    pub fn room(&self) -> usize {
        if self.bytes >= self.limits.bytes_max {
            return 0;
        }
        self.limits.responses_max.saturating_sub(self.queue.len() + self.behind.len())
    }

    /// Bytes of events that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether so much has been sent that a source may offer again what was refused.
    pub fn has_drained(&self) -> bool {
        self.bytes <= self.limits.bytes_max / 2 && self.room() >= self.limits.responses_max / 2
    }

    /// Highest revision of events that are ahead of a report made now.
    pub fn newest(&self) -> i64 {
        self.newest
    }

    /// From now on events above `revision`, and answers, wait for [`Outbox::release`].
    pub fn hold(&mut self, revision: i64) {
        self.hold = Some(revision);
    }

    /// Sends `report`, if there is one, and then what was held.
    pub fn release(&mut self, report: Option<Response>) {
        self.hold = None;
        self.queue.extend(report.map(|response| Queued { response, revisions: 0 }));
        for queued in &self.behind {
            self.newest = self.newest.max(newest_event(&queued.response));
        }
        self.queue.append(&mut self.behind);
    }

    /// Takes an answer without events.
    pub fn answer(&mut self, response: Response) {
        let queue = if self.hold.is_some() { &mut self.behind } else { &mut self.queue };
        queue.push_back(Queued { response, revisions: 0 });
    }

    /// Takes events.
    pub fn deliver(&mut self, delivery: Delivery) {
        self.bytes += delivery.events.bytes.len();
        let held = self.hold.is_some_and(|revision| delivery.late || delivery.revision > revision);
        let queue = if held { &mut self.behind } else { &mut self.queue };
        if !held {
            self.newest = self.newest.max(delivery.revision);
        }
        if (delivery.past || queue.len() >= PILE)
            && let Some(last) = queue.back_mut()
            && last.takes(&delivery)
        {
            last.join(delivery);
            return;
        }
        let fragment_bytes = delivery.fragment.then_some(self.limits.fragment_bytes);
        let response = Response {
            watch_id: delivery.watch_id,
            revision: delivery.revision,
            events: delivery.events.bytes.clone(),
            ..Default::default()
        };
        match fragment_bytes {
            Some(bytes_max) if delivery.events.events > 1 && response.len_max() >= bytes_max => {
                queue.extend(fragments(response, delivery.events, bytes_max));
            }
            _ => queue.push_back(Queued { response, revisions: delivery.revisions }),
        }
    }

    /// How large a response may become by revisions that share it.
    pub fn joined_bytes_max(&self) -> usize {
        JOINED_BYTES_MAX.min(self.limits.fragment_bytes / 2)
    }

    /// The next response to send.
    pub fn next(&mut self) -> Option<Response> {
        let response = self.queue.pop_front()?.response;
        self.bytes -= response.events_len();
        Some(response)
    }
}

impl Queued {
    fn takes(&self, delivery: &Delivery) -> bool {
        self.revisions > 0
            && self.revisions + delivery.revisions <= REVISIONS_MAX
            && self.response.watch_id == delivery.watch_id
            && self.response.events_len() + delivery.events.bytes.len() <= JOINED_BYTES_MAX
    }

    fn join(&mut self, delivery: Delivery) {
        self.revisions += delivery.revisions;
        self.response.revision = delivery.revision;
        self.response.more.push(delivery.events.bytes);
    }
}

fn newest_event(response: &Response) -> i64 {
    if response.events.is_empty() { 0 } else { response.revision }
}

fn fragments(whole: Response, mut rest: Encoded, bytes_max: usize) -> Vec<Queued> {
    let head = Response { fragment: true, events: bytes::Bytes::new(), ..whole };
    // Below the limit, as in etcd, and not at it.
    let events_max = bytes_max.saturating_sub(head.len_max() + 1);
    let mut queued = Vec::new();
    while rest.events > 0 {
        let events = rest.split_first(events_max).bytes;
        let response = Response { events, fragment: rest.events > 0, ..head.clone() };
        queued.push(Queued { response, revisions: 0 });
    }
    queued
}
