//! One client's watch stream as a value: no clock, no socket, no task.
//!
//! ```text
//!  in                                        out
//!  message   what the client says            next_response   what the client is told, in order
//!  bound     the sequencer's word            take_orders     Bound, Subscribe, Unsubscribe, Resume, Reach
//!  news, history_begins   what the source offers
//!  reached   how far subscriptions have come
//!  notices_due   the clock of progress_notify
//! ```
//!
//! 1. Creates and progress requests wait for a bound that is asked for after they came; one bound serves all that wait.
//!    What comes behind them waits too, so that everything is answered in the order of the requests.
//! 2. A watch is created with the revision before the first that it will deliver; then it is subscribed, so that no event
//!    overtakes its created response. A watch of the future is subscribed at once, and what comes too early is dropped.
//! 3. Each revision is delivered once: what is at or below `done` is dropped.
//! 4. A report on all watches (`progress_request`) carries a bound that every watch has reached. If newer events went out
//!    meanwhile, or watches were added, it is tried once more at the newest of these events, with all that is newer held
//!    back for that short time: what clients hear does not go back.
//! 5. A revision has a response of its own, but for a watch that is behind: while it is told the past, or where many
//!    revisions wait for it, it gets several in one, as from etcd.
//! 6. A watch whose news had no room is resumed once the client has read enough, the longest waiting first.

mod outbox;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest};
use braid_proto::key::KeyRange;
use braid_store_client::bound::Bound;

use super::batch::{Batch, View};
use super::wire::Response;
use super::{SubscriptionId, Wanted};
use outbox::{Delivery, Outbox, PILE, REVISIONS_MAX};

/// Reports and refusals carry this instead of a watch id.
const NO_WATCH: i64 = -1;
/// Why a watch on nothing is refused.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
/// Why a watch with an id that is taken is refused.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
/// The store is never below this revision.
const FIRST_REVISION: i64 = 1;
/// Requests that wait for a bound at most; then the client's stream is not read.
const PENDING_MAX: usize = 128;

/// How much a stream may hold back.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Responses with events that wait for the client.
    pub responses_max: usize,
    /// Bytes of events that wait for the client; the last response may exceed it.
    pub bytes_max: usize,
    /// Responses of this size and more are cut for clients that take fragments.
    pub fragment_bytes: usize,
}

/// What a [`Order::Reach`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Periodic notices of single watches.
    Notices,
    /// A report on all watches.
    Report,
    /// The same, while newer events are held back: must not take long.
    HeldReport,
}

/// What a session wants done.
#[derive(Clone, Debug)]
pub enum Order {
    /// Take a bound, from now on; answered by [`Session::bound`].
    Bound,
    /// Begin a subscription.
    Subscribe(SubscriptionId, Wanted),
    /// End one.
    Unsubscribe(SubscriptionId),
    /// There is room again.
    Resume(SubscriptionId),
    /// Wait until the subscriptions have reached the revision, or not longer than the purpose is worth; answered by
    /// [`Session::reached`].
    Reach(Purpose, i64, Vec<SubscriptionId>),
}

/// One watch. Kept small: a proxy has a hundred thousand of them.
struct Watch {
    id: i64,
    /// What the client asked for; 0: from the moment of its creation. Nothing below is delivered.
    start: i64,
    /// Everything at or below it has been put into the outbox. Inclusive.
    done: i64,
    /// Revisions up to here are the past, for which several may share a response.
    past: i64,
    view: View,
    fragment: bool,
    /// Wants periodic notices.
    notify: bool,
    /// Has had no events since the last round of notices.
    idle: bool,
    /// Its news had no room.
    stalled: bool,
    /// Where it watches; kept only while its start may be ahead of the store.
    ahead: Option<Box<KeyRange>>,
}

/// Where a report on all watches stands.
enum Report {
    None,
    /// Waits for the watches to reach this revision. Those that count have subscriptions below the second value.
    Waiting(i64, SubscriptionId),
    /// The same at a revision above which events are held back.
    Held(i64, SubscriptionId),
}

/// One client's stream.
pub struct Session {
    outbox: Outbox,
    /// Gives names of subscriptions that nobody else has, rising.
    names: Arc<AtomicU64>,
    watches: HashMap<SubscriptionId, Watch>,
    /// Ids that are taken. `None`: by a watch that a compaction has ended.
    ids: HashMap<i64, Option<SubscriptionId>>,
    /// How many of them a compaction has ended.
    compacted: usize,
    next_id: i64,
    pending: VecDeque<RequestUnion>,
    /// A bound is on its way for so many of `pending`, and for so many of `due`.
    asked: Option<(usize, usize)>,
    /// Watches whose notices wait for a bound.
    due: Vec<SubscriptionId>,
    notices: bool,
    report: Report,
    /// A report was asked for while another one was on its way.
    report_again: bool,
    stalled: VecDeque<SubscriptionId>,
    /// The newest revision this stream has heard of.
    newest: i64,
    orders: Vec<Order>,
}

impl Session {
    /// A stream without watches. `names` is shared by all streams of a source.
    pub fn new(limits: Limits, names: Arc<AtomicU64>) -> Self {
        Self {
            outbox: Outbox::new(limits),
            names,
            watches: HashMap::new(),
            ids: HashMap::new(),
            compacted: 0,
            next_id: 0,
            pending: VecDeque::new(),
            asked: None,
            due: Vec::new(),
            notices: false,
            report: Report::None,
            report_again: false,
            stalled: VecDeque::new(),
            newest: FIRST_REVISION,
            orders: Vec::new(),
        }
    }

    /// The subscriptions of watches that are alive, in no order.
    pub fn subscriptions(&self) -> Vec<SubscriptionId> {
        self.watches.keys().copied().collect()
    }

    /// Watches that are alive.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Bytes of events that wait for the client.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Whether the client's next message may be read.
    pub fn wants_messages(&self) -> bool {
        self.pending.len() < PENDING_MAX && self.outbox.room() > 0
    }

    /// Takes a message of the client. `heard` is the newest revision the process has heard of.
    pub fn message(&mut self, message: WatchRequest, heard: i64) {
        self.newest = self.newest.max(heard);
        let Some(request) = message.request_union else { return };
        self.pending.push_back(request);
        self.handle_boundless();
    }

    /// Takes the sequencer's word: an answer to [`Order::Bound`].
    pub fn bound(&mut self, bound: Bound) {
        self.newest = self.newest.max(bound.revision);
        let (requests, notices) = self.asked.take().unwrap_or_default();
        for request in self.pending.drain(..requests).collect::<Vec<_>>() {
            match request {
                RequestUnion::CreateRequest(request) => self.create(request, bound),
                RequestUnion::CancelRequest(request) => self.cancel(request.watch_id),
                RequestUnion::ProgressRequest(_) => self.request_report(bound.revision),
            }
        }
        self.handle_boundless();
        let mut due: Vec<_> = self.due.drain(..notices).collect();
        due.retain(|id| self.has_begun(*id, bound.revision));
        if !due.is_empty() {
            self.notices = true;
            self.orders.push(Order::Reach(Purpose::Notices, bound.revision, due));
        }
    }

    /// Takes what the source offers of `batch` from index `from` on. Returns the first that there is no room for.
    pub fn news(&mut self, subscription: SubscriptionId, batch: &Batch, from: usize) -> usize {
        let Some(watch) = self.watches.get_mut(&subscription) else { return batch.len() };
        let mut at = from;
        while at < batch.len() {
            let revision = batch.revision(at);
            if revision <= watch.done || revision < watch.start {
                watch.done = revision.max(watch.done);
                at += 1;
                continue;
            }
            if self.outbox.room() == 0 {
                self.stall(subscription);
                return at;
            }
            let run = match self.report {
                Report::None => watch.run(batch, at, self.outbox.joined_bytes_max()),
                // Each revision is looked at: it may have to wait for the report.
                _ => 1,
            };
            let (events, last) = (batch.encoded(watch.view, at..at + run), batch.revision(at + run - 1));
            watch.done = last;
            watch.ahead = None;
            watch.idle = false;
            self.newest = self.newest.max(last);
            at += run;
            if events.events > 0 {
                self.outbox.deliver(Delivery {
                    watch_id: watch.id,
                    revision: last,
                    revisions: run as u32,
                    events,
                    fragment: watch.fragment,
                    past: revision <= watch.past,
                    late: self.report.leaves_out(subscription),
                });
            }
        }
        at
    }

    /// Takes the source's word that history which is needed is gone. False: there is no room for the client to be told.
    pub fn history_begins(&mut self, subscription: SubscriptionId, begin: i64) -> bool {
        let Some(watch) = self.watches.get(&subscription) else { return true };
        if begin <= watch.start && watch.ahead.is_some() {
            self.subscribe_again(subscription, begin);
        } else if self.outbox.room() == 0 {
            self.stall(subscription);
            return false;
        } else {
            self.compacted(subscription, begin);
        }
        true
    }

    /// There is no room for a watch; what it hears next is the past.
    fn stall(&mut self, subscription: SubscriptionId) {
        let Some(watch) = self.watches.get_mut(&subscription) else { return };
        watch.past = watch.past.max(self.newest);
        if !mem::replace(&mut watch.stalled, true) {
            self.stalled.push_back(subscription);
        }
    }

    /// Takes the answer to an [`Order::Reach`]: the subscriptions that have come to `revision` in time.
    pub fn reached(&mut self, purpose: Purpose, revision: i64, subscriptions: &[SubscriptionId]) {
        for subscription in subscriptions {
            if let Some(watch) = self.watches.get_mut(subscription) {
                watch.done = watch.done.max(revision);
            }
        }
        match purpose {
            Purpose::Notices => self.send_notices(subscriptions),
            Purpose::Report if matches!(self.report, Report::Waiting(at, _) if at == revision) => self.advance_report(),
            Purpose::HeldReport if matches!(self.report, Report::Held(at, _) if at == revision) => {
                self.advance_report()
            }
            // The report that it was for is over.
            Purpose::Report | Purpose::HeldReport => {}
        }
    }

    /// It is time for periodic notices.
    pub fn notices_due(&mut self) {
        if self.notices || !self.due.is_empty() {
            return;
        }
        for (subscription, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.notify) {
            if mem::replace(&mut watch.idle, true) {
                self.due.push(*subscription);
            }
        }
        // Hash order says nothing; the order of creation is as good as any and always the same.
        self.due.sort_unstable();
    }

    /// The next response to the client.
    pub fn next_response(&mut self) -> Option<Response> {
        let response = self.outbox.next()?;
        if !self.stalled.is_empty() && self.outbox.has_drained() {
            self.resume();
        }
        Some(response)
    }

    /// What has to be done, in this order.
    pub fn take_orders(&mut self) -> Vec<Order> {
        let needs_bound = !self.pending.is_empty() || !self.due.is_empty();
        if needs_bound && self.asked.is_none() {
            self.asked = Some((self.pending.len(), self.due.len()));
            self.orders.push(Order::Bound);
        }
        mem::take(&mut self.orders)
    }

    /// Ends everything: the subscriptions that are alive.
    pub fn end(&mut self) -> Vec<SubscriptionId> {
        self.orders.clear();
        self.pending.clear();
        self.watches.drain().map(|(subscription, _)| subscription).collect()
    }

    /// Handles what needs no bound and has nothing before it that does.
    fn handle_boundless(&mut self) {
        if self.asked.is_some_and(|(requests, _)| requests > 0) {
            return;
        }
        while let Some(request) = self.pending.front() {
            match request {
                RequestUnion::CancelRequest(request) => {
                    let id = request.watch_id;
                    self.cancel(id);
                }
                RequestUnion::ProgressRequest(_) if self.watches.is_empty() || self.compacted > 0 => {}
                RequestUnion::ProgressRequest(_) | RequestUnion::CreateRequest(_) => return,
            }
            self.pending.pop_front();
        }
    }

    fn create(&mut self, request: WatchCreateRequest, bound: Bound) {
        let range = range_of(&request);
        let id = match self.choose_id(&request, &range) {
            Ok(id) => id,
            Err(reason) => return self.refuse(reason, bound.revision),
        };
        let from_now = request.start_revision == 0;
        let next = bound.revision + 1;
        let start = if from_now { next } else { request.start_revision.min(next) };
        let created =
            Response { watch_id: id, revision: (start - 1).max(FIRST_REVISION), created: true, ..Default::default() };
        self.outbox.answer(created);
        if start < bound.compacted {
            return self.end_by_compaction(id, bound.compacted);
        }
        let has_filter = |filter: FilterType| request.filters.contains(&(filter as i32));
        let watch = Watch {
            id,
            start: request.start_revision,
            done: start - 1,
            past: bound.revision,
            view: View {
                no_put: has_filter(FilterType::Noput),
                no_delete: has_filter(FilterType::Nodelete),
                prev_kv: request.prev_kv,
            },
            fragment: request.fragment,
            notify: request.progress_notify,
            idle: true,
            stalled: false,
            ahead: (request.start_revision > next).then(|| Box::new(range.clone())),
        };
        self.subscribe(watch, Wanted { range, start, prev_kv: request.prev_kv });
    }

    fn choose_id(&mut self, request: &WatchCreateRequest, range: &KeyRange) -> Result<i64, &'static str> {
        if request.start_revision < 0 {
            return Err(error::COMPACTED.message);
        }
        if range.is_empty() {
            return Err(EMPTY_RANGE);
        }
        match request.watch_id {
            0 => {
                while self.ids.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                Ok(self.next_id - 1)
            }
            id if self.ids.contains_key(&id) => Err(DUPLICATE_ID),
            id => Ok(id),
        }
    }

    fn refuse(&mut self, cancel_reason: &'static str, revision: i64) {
        let response = Response {
            watch_id: NO_WATCH,
            revision,
            created: true,
            canceled: true,
            cancel_reason,
            ..Default::default()
        };
        self.outbox.answer(response);
    }

    fn subscribe(&mut self, watch: Watch, wanted: Wanted) {
        let subscription = SubscriptionId(self.names.fetch_add(1, Ordering::Relaxed));
        self.ids.insert(watch.id, Some(subscription));
        self.watches.insert(subscription, watch);
        self.orders.push(Order::Subscribe(subscription, wanted));
    }

    /// A watch of the future has lost history that it does not need: it goes on from where history begins.
    fn subscribe_again(&mut self, subscription: SubscriptionId, begin: i64) {
        let Some(watch) = self.watches.remove(&subscription) else { return };
        let range = watch.ahead.as_deref().cloned().unwrap_or_default();
        let wanted = Wanted { range, start: begin.max(watch.done + 1), prev_kv: watch.view.prev_kv };
        self.subscribe(watch, wanted);
    }

    fn cancel(&mut self, id: i64) {
        let Some(subscription) = self.ids.remove(&id) else { return };
        match subscription {
            Some(subscription) => {
                self.watches.remove(&subscription);
                self.orders.push(Order::Unsubscribe(subscription));
            }
            None => self.compacted -= 1,
        }
        self.outbox.answer(Response { watch_id: id, revision: self.newest, canceled: true, ..Default::default() });
    }

    fn compacted(&mut self, subscription: SubscriptionId, begin: i64) {
        let Some(watch) = self.watches.remove(&subscription) else { return };
        if !self.report.leaves_out(subscription) {
            // It has not got what a report would say it has.
            self.end_report(None);
        }
        self.end_by_compaction(watch.id, begin);
    }

    /// Tells that a watch is over because history begins at `begin`. Its id stays taken until the client cancels it.
    fn end_by_compaction(&mut self, watch_id: i64, begin: i64) {
        self.ids.insert(watch_id, None);
        self.compacted += 1;
        self.outbox.answer(Response { watch_id, canceled: true, compact_revision: begin, ..Default::default() });
    }

    /// Whether a watch is alive and the store has come to its start.
    fn has_begun(&self, subscription: SubscriptionId, revision: i64) -> bool {
        self.watches.get(&subscription).is_some_and(|watch| watch.start <= revision)
    }

    fn send_notices(&mut self, reached: &[SubscriptionId]) {
        self.notices = false;
        for subscription in reached {
            if let Some(watch) = self.watches.get(subscription).filter(|watch| watch.idle)
                && self.outbox.room() > 0
            {
                let (watch_id, revision) = (watch.id, watch.done);
                self.outbox.answer(Response { watch_id, revision, ..Default::default() });
            }
        }
    }

    /// A client wants to know how far all its watches are; `revision` is a bound taken since. As in etcd it hears nothing
    /// while one of them has not begun, or has been ended by a compaction and not been cancelled since.
    fn request_report(&mut self, revision: i64) {
        if !matches!(self.report, Report::None) {
            self.report_again = true;
            return;
        }
        let ended = self.compacted > 0;
        if ended || self.watches.is_empty() || self.watches.values().any(|watch| watch.start > revision) {
            return;
        }
        self.report = Report::Waiting(revision, self.next_name());
        self.order_reach(Purpose::Report, revision);
    }

    fn order_reach(&mut self, purpose: Purpose, revision: i64) {
        let mut subscriptions: Vec<_> = self.watches.keys().copied().collect();
        subscriptions.sort_unstable();
        self.orders.push(Order::Reach(purpose, revision, subscriptions));
    }

    fn next_name(&self) -> SubscriptionId {
        SubscriptionId(self.names.load(Ordering::Relaxed))
    }

    fn advance_report(&mut self) {
        match self.report {
            Report::None => {}
            Report::Waiting(revision, limit) if self.lags(revision, limit) => self.end_report(None),
            Report::Waiting(revision, _) => {
                let newest = self.outbox.newest();
                if newest <= revision && !self.lags(revision, self.next_name()) {
                    return self.end_report(Some(revision));
                }
                let revision = revision.max(newest);
                if self.watches.values().any(|watch| watch.start > revision) {
                    return self.end_report(None);
                }
                self.report = Report::Held(revision, self.next_name());
                self.outbox.hold(revision);
                self.order_reach(Purpose::HeldReport, revision);
            }
            Report::Held(revision, limit) => {
                let revision = (!self.lags(revision, limit)).then_some(revision);
                self.end_report(revision);
            }
        }
    }

    /// Whether a watch with a subscription below `limit` has not come to `revision`.
    fn lags(&self, revision: i64, limit: SubscriptionId) -> bool {
        self.watches.iter().any(|(subscription, watch)| *subscription < limit && watch.done < revision)
    }

    /// Ends the report that is on its way, with an answer or without; the client asks again then.
    fn end_report(&mut self, revision: Option<i64>) {
        if matches!(self.report, Report::None) {
            return;
        }
        self.report = Report::None;
        let revision = revision.filter(|_| !self.watches.is_empty());
        let report = revision.map(|revision| Response { watch_id: NO_WATCH, revision, ..Default::default() });
        self.outbox.release(report);
        if mem::take(&mut self.report_again) {
            self.pending.push_back(RequestUnion::ProgressRequest(Default::default()));
        }
    }

    fn resume(&mut self) {
        let mut room = self.outbox.room();
        while room > 0
            && let Some(subscription) = self.stalled.pop_front()
        {
            if let Some(watch) = self.watches.get_mut(&subscription)
                && mem::take(&mut watch.stalled)
            {
                self.orders.push(Order::Resume(subscription));
                room -= 1;
            }
        }
    }
}

impl Watch {
    /// How many moments of `batch` go into one response, from index `at` on: those of the past that fit, and those that
    /// have just happened if they have piled up.
    fn run(&self, batch: &Batch, at: usize, bytes_max: usize) -> usize {
        let together = match batch.len() - at {
            rest if rest >= PILE => rest,
            _ => batch.position(self.past.saturating_add(1)).saturating_sub(at),
        };
        match together {
            0 | 1 => 1,
            together => batch.fitting(self.view, at, bytes_max).min(together).min(REVISIONS_MAX as usize),
        }
    }
}

impl Report {
    /// Whether a watch is too young to be part of it, so that what it delivers belongs behind it.
    fn leaves_out(&self, subscription: SubscriptionId) -> bool {
        matches!(self, Report::Held(_, limit) if subscription >= *limit)
    }
}

/// What a watch on the empty key means, and the end that is none.
fn range_of(request: &WatchCreateRequest) -> KeyRange {
    let key: &[u8] = if request.key.is_empty() { &[0] } else { &request.key };
    KeyRange::user(key, &request.range_end)
}
