//! Every rule of a stream as a script.

use braid_proto::etcd::etcdserverpb::{WatchCancelRequest, WatchProgressRequest, WatchResponse};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use bytes::Bytes;
use prost::Message;

use super::*;
use crate::watch::batch::Moment;

const LIMITS: Limits = Limits { responses_max: 8, bytes_max: 10_000, fragment_bytes: 600 };

/// A session and what it has said and ordered so far.
struct Script(Session);

fn script() -> Script {
    Script(Session::new(LIMITS, Arc::new(AtomicU64::new(1))))
}

fn create(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn from(key: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, ..create(key) }
}

fn event(kind: EventType, key: &str, revision: i64, value_bytes: usize) -> Event {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    let kv = KeyValue { key: key.to_owned().into(), mod_revision: revision, value, ..Default::default() };
    Event { r#type: kind as i32, kv: Some(kv), prev_kv: None }
}

fn put(key: &str, revision: i64) -> Event {
    event(EventType::Put, key, revision, 1)
}

fn news(revision: i64, events: Vec<Event>) -> Batch {
    Batch::new(vec![Moment { revision, events }])
}

impl Script {
    fn say(&mut self, request: RequestUnion) {
        self.0.message(WatchRequest { request_union: Some(request) }, 0);
    }

    fn create(&mut self, request: WatchCreateRequest) {
        self.say(RequestUnion::CreateRequest(request));
    }

    fn cancel(&mut self, watch_id: i64) {
        self.say(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    fn progress(&mut self) {
        self.say(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    fn bound(&mut self, revision: i64) {
        self.0.bound(Bound { revision, compacted: 0 });
    }

    /// Creates a watch while the store is at `revision`, and forgets what was said of it.
    fn watch(&mut self, request: WatchCreateRequest, revision: i64) -> SubscriptionId {
        self.create(request);
        assert_eq!(self.orders(), ["bound"]);
        self.bound(revision);
        let subscription = self.0.take_orders().into_iter().find_map(|order| match order {
            Order::Subscribe(subscription, _) => Some(subscription),
            _ => None,
        });
        let created = self.heard();
        assert!(created.len() == 1 && created[0].contains("created"), "{created:?}");
        subscription.expect("a subscription")
    }

    /// The source offers one moment. False: there is no room.
    fn offer(&mut self, subscription: SubscriptionId, batch: &Batch) -> bool {
        self.0.news(subscription, batch, 0) == 1
    }

    /// The source offers a put of `key`.
    fn put(&mut self, subscription: SubscriptionId, key: &str, revision: i64) -> bool {
        self.offer(subscription, &news(revision, vec![put(key, revision)]))
    }

    /// Orders as text.
    fn orders(&mut self) -> Vec<String> {
        let text = |order| match order {
            Order::Bound => "bound".to_owned(),
            Order::Subscribe(id, wanted) => {
                let prev_kv = if wanted.prev_kv { " prev_kv" } else { "" };
                format!(
                    "subscribe {} {:?}..{:?} @{}{prev_kv}",
                    id.0, wanted.range.start, wanted.range.end, wanted.start
                )
            }
            Order::Unsubscribe(id) => format!("unsubscribe {}", id.0),
            Order::Resume(id) => format!("resume {}", id.0),
            Order::Reach(purpose, revision, ids) => {
                format!("reach {purpose:?} @{revision} {:?}", ids.iter().map(|id| id.0).collect::<Vec<_>>())
            }
        };
        self.0.take_orders().into_iter().map(text).collect()
    }

    /// Everything the client hears now, as text.
    fn heard(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.0.next_response()).map(|response| text(&response)).collect()
    }
}

fn events_of(response: &Response) -> Vec<Event> {
    let mut bytes = response.events.to_vec();
    response.more.iter().for_each(|more| bytes.extend_from_slice(more));
    WatchResponse::decode(&bytes[..]).expect("events").events
}

fn text(response: &Response) -> String {
    let mut text = format!("{} @{}", response.watch_id, response.revision);
    for (is, word) in
        [(response.created, " created"), (response.canceled, " canceled"), (response.fragment, " fragment")]
    {
        text.push_str(if is { word } else { "" });
    }
    if response.compact_revision != 0 {
        text.push_str(&format!(" compacted {}", response.compact_revision));
    }
    if !response.cancel_reason.is_empty() {
        text.push_str(&format!(": {}", response.cancel_reason));
    }
    for event in events_of(response) {
        let kv = event.kv.expect("a key");
        let kind = if event.r#type == EventType::Delete as i32 { "delete" } else { "put" };
        let prev = if event.prev_kv.is_some() { "+prev" } else { "" };
        text.push_str(&format!(" {kind} {}@{}{prev}", String::from_utf8_lossy(&kv.key), kv.mod_revision));
    }
    text
}

#[test]
fn a_watch_from_now_begins_after_the_bound() {
    let mut script = script();
    script.create(create("a"));
    assert_eq!(script.orders(), ["bound"]);
    assert!(script.heard().is_empty(), "nothing before the bound");
    script.bound(41);
    assert_eq!(script.orders(), [r#"subscribe 1 b" a"..b" a\0" @42"#]);
    assert!(script.put(SubscriptionId(1), "a", 42));
    assert_eq!(script.heard(), ["0 @41 created", "0 @42 put a@42"]);
}

#[test]
fn a_watch_of_the_past_begins_at_its_revision() {
    let mut script = script();
    script.create(from("a", 5));
    script.create(from("a", 1));
    script.orders();
    script.bound(41);
    script.0.take_orders();
    assert_eq!(script.heard(), ["0 @4 created", "1 @1 created"]);
}

#[test]
fn a_request_that_comes_after_the_question_waits_for_the_next_bound() {
    let mut script = script();
    script.create(create("a"));
    assert_eq!(script.orders(), ["bound"]);
    script.create(create("b"));
    assert!(script.orders().is_empty(), "one question at a time");
    script.bound(10);
    assert_eq!(script.heard(), ["0 @10 created"]);
    assert_eq!(script.orders(), [r#"subscribe 1 b" a"..b" a\0" @11"#, "bound"]);
    script.bound(12);
    assert_eq!(script.heard(), ["1 @12 created"]);
}

#[test]
fn a_watch_of_the_future_hears_nothing_before_its_start() {
    let mut script = script();
    script.create(from("a", 50));
    script.orders();
    script.bound(41);
    assert_eq!(script.orders(), [r#"subscribe 1 b" a"..b" a\0" @42"#]);
    assert_eq!(script.heard(), ["0 @41 created"]);
    for revision in [42, 49, 50, 51] {
        assert!(script.put(SubscriptionId(1), "a", revision));
    }
    assert_eq!(script.heard(), ["0 @50 put a@50", "0 @51 put a@51"]);
}

#[test]
fn a_watch_of_the_future_survives_a_compaction_below_its_start() {
    let mut script = script();
    let watch = script.watch(from("a", 50), 41);
    assert!(script.0.history_begins(watch, 45));
    assert!(script.heard().is_empty());
    assert_eq!(script.orders(), [r#"subscribe 2 b" a"..b" a\0" @45"#]);
    assert!(script.put(SubscriptionId(2), "a", 50));
    assert_eq!(script.heard(), ["0 @50 put a@50"]);
}

#[test]
fn refusals_are_created_and_cancelled_in_the_order_of_requests() {
    let mut script = script();
    script.create(from("a", -1));
    script.create(WatchCreateRequest { range_end: "a".into(), ..create("b") });
    script.create(WatchCreateRequest { range_end: "b".into(), watch_id: 9, ..create("b") });
    script.create(WatchCreateRequest { watch_id: 7, ..create("a") });
    script.create(WatchCreateRequest { watch_id: 7, ..create("a") });
    script.orders();
    script.bound(41);
    assert_eq!(
        script.heard(),
        [
            "-1 @41 created canceled: etcdserver: mvcc: required revision has been compacted",
            "-1 @41 created canceled: mvcc: watcher range is empty",
            "-1 @41 created canceled: mvcc: watcher range is empty",
            "7 @41 created",
            "-1 @41 created canceled: mvcc: duplicate watch ID provided on the WatchStream",
        ]
    );
    assert_eq!(script.0.watches(), 1);
}

#[test]
fn open_ranges_and_empty_keys_mean_what_they_mean_in_etcd() {
    let mut script = script();
    script.create(WatchCreateRequest { range_end: vec![0].into(), ..create("k") });
    script.create(create(""));
    script.create(WatchCreateRequest { range_end: vec![0].into(), prev_kv: true, ..create("") });
    script.create(WatchCreateRequest { range_end: "b".into(), ..create("") });
    script.orders();
    script.bound(1);
    assert_eq!(
        script.orders(),
        [
            r#"subscribe 1 b" k"..b"!" @2"#,
            r#"subscribe 2 b" \0"..b" \0\0" @2"#,
            r#"subscribe 3 b" \0"..b"!" @2 prev_kv"#,
            r#"subscribe 4 b" \0"..b" b" @2"#,
        ]
    );
}

#[test]
fn the_server_counts_ids_up_and_skips_those_in_use() {
    let mut script = script();
    for watch_id in [0, 2, 0, 0, -5] {
        script.create(WatchCreateRequest { watch_id, ..create("a") });
    }
    script.orders();
    script.bound(9);
    assert_eq!(script.heard(), ["0 @9 created", "2 @9 created", "1 @9 created", "3 @9 created", "-5 @9 created"]);
    script.cancel(1);
    script.create(create("a"));
    script.orders();
    script.bound(9);
    assert_eq!(script.heard(), ["1 @9 canceled", "4 @9 created"], "an id is not given twice by the server");
}

#[test]
fn a_compacted_start_is_created_and_then_cancelled() {
    let mut script = script();
    script.create(from("a", 5));
    script.create(from("a", 20));
    script.orders();
    script.0.bound(Bound { revision: 41, compacted: 20 });
    assert_eq!(script.heard(), ["0 @4 created", "0 @0 canceled compacted 20", "1 @19 created"]);
    assert_eq!(script.orders(), [r#"subscribe 1 b" a"..b" a\0" @20"#], "the boundary itself is legal");
}

#[test]
fn a_watch_that_a_compaction_passes_is_cancelled_and_keeps_its_id() {
    let mut script = script();
    let watch = script.watch(WatchCreateRequest { watch_id: 3, ..create("a") }, 10);
    assert!(script.0.history_begins(watch, 30));
    assert_eq!(script.heard(), ["3 @0 canceled compacted 30"]);
    assert!(script.put(watch, "a", 31), "late news are swallowed");
    assert!(script.heard().is_empty());
    script.create(WatchCreateRequest { watch_id: 3, ..create("a") });
    script.orders();
    script.bound(31);
    assert_eq!(script.heard(), ["-1 @31 created canceled: mvcc: duplicate watch ID provided on the WatchStream"]);
    script.cancel(3);
    assert!(script.orders().is_empty(), "the subscription has ended by itself");
    assert_eq!(script.heard().len(), 1);
}

#[test]
fn a_cancelled_watch_is_silent_and_an_unknown_one_is_too() {
    let mut script = script();
    let watch = script.watch(create("a"), 10);
    assert!(script.put(watch, "a", 12));
    script.cancel(0);
    script.cancel(99);
    assert!(script.put(watch, "a", 13));
    assert_eq!(script.heard(), ["0 @12 put a@12", "0 @12 canceled"]);
    assert_eq!(script.orders(), ["unsubscribe 1"]);
    script.cancel(0);
    assert!(script.heard().is_empty());
}

#[test]
fn a_cancel_waits_for_the_create_before_it() {
    let mut script = script();
    script.create(WatchCreateRequest { watch_id: 5, ..create("a") });
    script.orders();
    script.cancel(5);
    assert!(script.heard().is_empty());
    script.bound(10);
    assert_eq!(script.heard(), ["5 @10 created", "5 @10 canceled"]);
    assert_eq!(script.0.watches(), 0);
}

#[test]
fn unknown_requests_are_ignored() {
    let mut script = script();
    script.0.message(WatchRequest { request_union: None }, 7);
    assert!(script.orders().is_empty());
    assert!(script.heard().is_empty());
}

#[test]
fn one_revision_is_one_response_and_comes_once() {
    let mut script = script();
    let watch = script.watch(create("a"), 10);
    let both = news(11, vec![put("a", 11), put("b", 11)]);
    assert!(script.offer(watch, &both));
    assert!(script.put(watch, "a", 12));
    assert!(script.offer(watch, &both), "taken and dropped");
    assert_eq!(script.heard(), ["0 @11 put a@11 put b@11", "0 @12 put a@12"]);
}

#[test]
fn filters_drop_events_and_whole_responses() {
    let mut script = script();
    let filtered = |filters: &[FilterType]| WatchCreateRequest {
        filters: filters.iter().map(|filter| *filter as i32).collect(),
        ..create("a")
    };
    let no_put = script.watch(filtered(&[FilterType::Noput]), 10);
    let no_delete = script.watch(filtered(&[FilterType::Nodelete]), 10);
    let nothing = script.watch(filtered(&[FilterType::Noput, FilterType::Nodelete]), 10);
    let delete = event(EventType::Delete, "b", 11, 0);
    let (both, puts) = (news(11, vec![put("a", 11), delete]), news(12, vec![put("a", 12)]));
    for watch in [no_put, no_delete, nothing] {
        assert!(script.offer(watch, &both) && script.offer(watch, &puts));
    }
    assert_eq!(script.heard(), ["0 @11 delete b@11", "1 @11 put a@11", "1 @12 put a@12"]);
}

#[test]
fn previous_values_go_to_those_who_asked() {
    let mut script = script();
    let with = script.watch(WatchCreateRequest { prev_kv: true, ..create("a") }, 10);
    let without = script.watch(create("a"), 10);
    let mut changed = put("a", 11);
    changed.prev_kv.clone_from(&put("a", 5).kv);
    let news = news(11, vec![changed]);
    assert!(script.offer(with, &news) && script.offer(without, &news));
    assert_eq!(script.heard(), ["0 @11 put a@11+prev", "1 @11 put a@11"]);
}

#[test]
fn large_responses_go_in_fragments_without_others_between() {
    let mut script = script();
    let cut = script.watch(WatchCreateRequest { fragment: true, ..create("a") }, 10);
    let whole = script.watch(create("a"), 10);
    let large = |key| event(EventType::Put, key, 11, 350);
    let news = news(11, vec![large("a"), large("b"), large("c"), large("d")]);
    assert!(script.offer(cut, &news) && script.offer(whole, &news));
    assert_eq!(
        script.heard(),
        [
            "0 @11 fragment put a@11",
            "0 @11 fragment put b@11",
            "0 @11 fragment put c@11",
            "0 @11 put d@11",
            "1 @11 put a@11 put b@11 put c@11 put d@11"
        ]
    );
}

#[test]
fn a_fragment_holds_as_much_as_it_may_and_one_event_is_never_cut() {
    let mut script = script();
    let watch = script.watch(WatchCreateRequest { fragment: true, ..create("a") }, 10);
    let small = |key| event(EventType::Put, key, 11, 150);
    let huge = event(EventType::Put, "a", 12, 5000);
    assert!(script.offer(watch, &news(11, vec![small("a"), small("b"), small("c"), small("d"), small("e")])));
    assert!(script.offer(watch, &news(12, vec![huge])));
    let mut lens = Vec::new();
    let mut heard = Vec::new();
    while let Some(response) = script.0.next_response() {
        lens.push(response.len_max());
        heard.push(text(&response));
    }
    assert_eq!(heard, ["0 @11 fragment put a@11 put b@11 put c@11", "0 @11 put d@11 put e@11", "0 @12 put a@12"]);
    assert!(lens[0] < LIMITS.fragment_bytes && lens[1] < LIMITS.fragment_bytes, "{lens:?}");
}

#[test]
fn the_past_comes_in_batches_of_whole_revisions_and_the_present_one_by_one() {
    let mut script = script();
    let watch = script.watch(from("a", 2), 4);
    for revision in [2, 3, 4, 5, 6] {
        assert!(script.offer(watch, &news(revision, vec![put("a", revision), put("b", revision)])));
    }
    assert_eq!(
        script.heard(),
        ["0 @4 put a@2 put b@2 put a@3 put b@3 put a@4 put b@4", "0 @5 put a@5 put b@5", "0 @6 put a@6 put b@6",]
    );
}

#[test]
fn a_batch_of_the_past_ends_at_a_thousand_revisions() {
    let limits = Limits { bytes_max: 1 << 20, ..LIMITS };
    let mut script = Script(Session::new(limits, Arc::new(AtomicU64::new(1))));
    let watch = script.watch(from("a", 2), 5000);
    for revision in 2..=1502 {
        assert!(script.put(watch, "a", revision));
    }
    let first = script.0.next_response().expect("a batch");
    assert_eq!((events_of(&first).len(), first.revision), (1000, 1001));
    let second = script.0.next_response().expect("the rest");
    assert_eq!((events_of(&second).len(), second.revision), (501, 1502));
}

#[test]
fn a_client_that_does_not_read_holds_its_watches_back_and_nothing_is_lost() {
    let mut script = script();
    let (first, second) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    for revision in 11..=18 {
        assert!(script.put(first, "a", revision));
    }
    assert!(!script.put(second, "b", 19), "no room");
    assert!(!script.put(first, "a", 20), "no room");
    assert!(!script.0.wants_messages());
    for _ in 0..3 {
        assert!(script.0.next_response().is_some());
        assert!(script.orders().is_empty(), "not enough room yet");
    }
    assert!(script.0.next_response().is_some());
    assert_eq!(script.orders(), ["resume 2", "resume 1"]);
    assert!(script.put(second, "b", 19) && script.put(first, "a", 20));
    let rest = script.heard();
    assert_eq!(rest[4..], ["1 @19 put b@19", "0 @20 put a@20"]);
    assert!(script.orders().is_empty());
}

#[test]
fn bytes_are_bounded_too() {
    let mut script = script();
    let watch = script.watch(create("a"), 10);
    assert!(script.offer(watch, &news(11, vec![event(EventType::Put, "a", 11, 20_000)])), "one may exceed the bound");
    assert!(!script.put(watch, "a", 12));
    assert!(script.0.queued_bytes() > 20_000);
    assert_eq!(script.heard(), ["0 @11 put a@11"]);
    assert_eq!(script.orders(), ["resume 1"]);
    assert_eq!(script.0.queued_bytes(), 0);
}

#[test]
fn a_compaction_that_finds_no_room_is_told_later() {
    let mut script = script();
    let watch = script.watch(create("a"), 10);
    for revision in 11..=18 {
        assert!(script.put(watch, "a", revision));
    }
    assert!(!script.0.history_begins(watch, 30));
    script.heard();
    assert_eq!(script.orders(), ["resume 1"]);
    assert!(script.0.history_begins(watch, 30));
    assert_eq!(script.heard(), ["0 @0 canceled compacted 30"]);
}

#[test]
fn notices_go_to_idle_watches_that_want_them() {
    let mut script = script();
    let wanted = |key| WatchCreateRequest { progress_notify: true, ..create(key) };
    let (idle, busy) = (script.watch(wanted("a"), 10), script.watch(wanted("b"), 10));
    script.watch(create("c"), 10);
    script.watch(WatchCreateRequest { start_revision: 100, ..wanted("d") }, 10);
    assert!(script.put(busy, "b", 11));
    script.heard();
    script.0.notices_due();
    assert_eq!(script.orders(), ["bound"]);
    script.bound(20);
    assert_eq!(script.orders(), ["reach Notices @20 [1]"], "only what is idle and has begun");
    script.0.reached(Purpose::Notices, 20, &[idle]);
    assert_eq!(script.heard(), ["0 @20"]);
    script.0.notices_due();
    script.orders();
    script.bound(21);
    assert_eq!(script.orders(), ["reach Notices @21 [1, 2]"]);
    assert!(script.put(idle, "a", 22));
    script.0.reached(Purpose::Notices, 21, &[idle, busy]);
    assert_eq!(script.heard(), ["0 @22 put a@22", "1 @21"], "what was busy meanwhile gets none");
    script.0.notices_due();
    script.orders();
    script.bound(30);
    script.0.reached(Purpose::Notices, 30, &[]);
    assert!(script.heard().is_empty(), "what has not come so far gets none");
}

#[test]
fn a_report_is_made_when_all_watches_have_reached_a_fresh_bound() {
    let mut script = script();
    let (first, second) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    script.progress();
    assert_eq!(script.orders(), ["bound"]);
    script.bound(20);
    assert_eq!(script.orders(), ["reach Report @20 [1, 2]"]);
    assert!(script.put(second, "b", 15));
    script.0.reached(Purpose::Report, 20, &[first, second]);
    assert_eq!(script.heard(), ["1 @15 put b@15", "-1 @20"]);
}

#[test]
fn a_report_is_dropped_if_a_watch_does_not_get_there() {
    let mut script = script();
    let first = script.watch(create("a"), 10);
    script.watch(create("b"), 10);
    script.progress();
    script.orders();
    script.bound(20);
    script.orders();
    script.0.reached(Purpose::Report, 20, &[first]);
    assert!(script.heard().is_empty());
    script.progress();
    assert_eq!(script.orders(), ["bound"], "the next one is tried afresh");
}

#[test]
fn there_is_no_report_without_watches_or_before_a_start() {
    let mut script = script();
    script.progress();
    assert!(script.orders().is_empty());
    script.watch(from("a", 100), 10);
    script.progress();
    script.orders();
    script.bound(99);
    assert!(script.orders().is_empty());
    script.progress();
    script.orders();
    script.bound(100);
    assert_eq!(script.orders(), ["reach Report @100 [1]"]);
}

#[test]
fn a_report_asked_for_during_another_one_takes_a_bound_of_its_own() {
    let mut script = script();
    let watch = script.watch(create("a"), 10);
    script.progress();
    script.orders();
    script.bound(20);
    script.orders();
    script.progress();
    script.progress();
    script.orders();
    script.bound(21);
    script.0.reached(Purpose::Report, 20, &[watch]);
    assert_eq!(script.heard(), ["-1 @20"]);
    assert_eq!(script.orders(), ["bound"]);
    script.bound(22);
    assert_eq!(script.orders(), ["reach Report @22 [1]"], "one for both");
}

#[test]
fn a_report_never_says_less_than_events_before_it() {
    let mut script = script();
    let (first, second) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    script.progress();
    script.orders();
    script.bound(20);
    script.orders();
    assert!(script.put(first, "a", 25));
    script.0.reached(Purpose::Report, 20, &[first, second]);
    assert_eq!(script.orders(), ["reach HeldReport @25 [1, 2]"], "once more, at the newest that was sent");
    assert!(script.put(first, "a", 26));
    assert!(script.put(second, "b", 24));
    script.cancel(0);
    assert_eq!(script.heard(), ["0 @25 put a@25", "1 @24 put b@24"], "what is newer waits");
    script.0.reached(Purpose::HeldReport, 25, &[second]);
    assert_eq!(script.heard(), ["-1 @25", "0 @26 put a@26", "0 @26 canceled"]);
}

#[test]
fn a_held_report_that_is_dropped_lets_everything_go() {
    let mut script = script();
    let (first, second) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    script.progress();
    script.orders();
    script.bound(20);
    assert!(script.put(first, "a", 25));
    script.0.reached(Purpose::Report, 20, &[first, second]);
    script.orders();
    assert!(script.put(first, "a", 26));
    script.0.reached(Purpose::HeldReport, 25, &[first]);
    assert_eq!(script.heard(), ["0 @25 put a@25", "0 @26 put a@26"]);
}

#[test]
fn a_watch_that_is_added_during_a_report_comes_behind_it_or_is_part_of_it() {
    let mut script = script();
    let first = script.watch(create("a"), 10);
    script.progress();
    script.orders();
    script.bound(20);
    script.orders();
    let early = script.watch(from("b", 5), 20);
    script.0.reached(Purpose::Report, 20, &[first]);
    assert_eq!(script.orders(), ["reach HeldReport @20 [1, 2]"], "the new watch counts too");
    script.create(from("c", 5));
    script.orders();
    script.bound(20);
    script.orders();
    assert!(script.put(SubscriptionId(3), "c", 7));
    assert!(script.put(early, "b", 8));
    script.0.reached(Purpose::HeldReport, 20, &[first, early]);
    assert_eq!(script.heard(), ["1 @8 put b@8", "-1 @20", "2 @4 created", "2 @7 put c@7"]);
}

#[test]
fn reports_stay_unanswered_until_a_watch_that_a_compaction_has_ended_is_cancelled() {
    let mut script = script();
    let (lost, kept) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    assert!(script.0.history_begins(lost, 15));
    assert_eq!(script.heard(), ["0 @0 canceled compacted 15"]);
    script.progress();
    assert!(script.orders().is_empty(), "nobody is asked");
    // The same if it was too old from the beginning, although the request waits behind it.
    script.create(from("c", 5));
    script.progress();
    assert_eq!(script.orders(), ["bound"]);
    script.0.bound(Bound { revision: 20, compacted: 15 });
    assert_eq!(script.heard(), ["2 @4 created", "2 @0 canceled compacted 15"]);
    assert!(script.orders().is_empty());
    for id in [0, 2] {
        script.progress();
        assert!(script.orders().is_empty());
        script.cancel(id);
    }
    assert_eq!(script.heard(), ["0 @20 canceled", "2 @20 canceled"]);
    script.progress();
    assert_eq!(script.orders(), ["bound"]);
    script.bound(21);
    assert_eq!(script.orders(), [format!("reach Report @21 [{}]", kept.0)]);
    script.0.reached(Purpose::Report, 21, &[kept]);
    assert_eq!(script.heard(), ["-1 @21"]);
}

#[test]
fn revisions_share_a_response_only_where_they_pile_up() {
    let limits = Limits { responses_max: 2 * PILE, ..LIMITS };
    let mut script = Script(Session::new(limits, Arc::new(AtomicU64::new(1))));
    let watch = script.watch(create("a"), 10);
    let moment = |revision| Moment { revision, events: vec![put("a", revision)] };
    let few = Batch::new((11..11 + PILE as i64 - 1).map(moment).collect());
    assert_eq!(script.0.news(watch, &few, 0), few.len());
    assert_eq!(script.heard().len(), few.len(), "one revision, one response");
    let many = Batch::new((20..60).map(moment).collect());
    assert_eq!(script.0.news(watch, &many, 0), 40);
    let heard = std::iter::from_fn(|| script.0.next_response()).collect::<Vec<_>>();
    assert!(heard.len() < 10, "{} responses", heard.len());
    let revisions: Vec<i64> =
        heard.iter().flat_map(events_of).map(|event| event.kv.expect("a key").mod_revision).collect();
    assert_eq!(revisions, (20..60).collect::<Vec<_>>());
    assert_eq!(heard.last().map(|response| response.revision), Some(59));
    // A client that does not read: what comes one by one is joined too, and so takes less room.
    for revision in 60..100 {
        assert!(script.put(watch, "a", revision), "@{revision}");
    }
    assert_eq!(script.heard().len(), PILE);
}

#[test]
fn a_compaction_ends_a_report_without_an_answer() {
    let mut script = script();
    let (first, second) = (script.watch(create("a"), 10), script.watch(create("b"), 10));
    script.progress();
    script.orders();
    script.bound(20);
    script.orders();
    assert!(script.0.history_begins(second, 15));
    script.0.reached(Purpose::Report, 20, &[first]);
    assert_eq!(script.heard(), ["1 @0 canceled compacted 15"]);
    assert!(script.orders().is_empty());
}

#[test]
fn the_end_names_all_that_is_subscribed() {
    let mut script = script();
    let first = script.watch(create("a"), 10);
    let second = script.watch(create("b"), 10);
    script.cancel(0);
    assert_eq!(script.heard(), ["0 @10 canceled"]);
    script.orders();
    let third = script.watch(create("c"), 10);
    let mut ended = script.0.end();
    ended.sort_unstable();
    assert_eq!(ended, [second, third]);
    assert!(script.put(first, "a", 11), "and what comes late is swallowed");
    assert_eq!(script.0.watches(), 0);
}

#[test]
fn a_watch_is_small() {
    assert!(size_of::<Watch>() <= 64, "{}", size_of::<Watch>());
}
