//! Events of some revisions that are told together, encoded once for all who hear them.
//!
//! A thousand clients that watch the same range hear the same bytes: a [`Batch`] is shared by all of them, and turns its
//! events into fields of a `WatchResponse` when the first asks for them in its view. What is cut out of that for one
//! client, a revision or a run of them, is a reference to the same bytes.

use std::ops::Range;
use std::sync::OnceLock;

use braid_proto::etcd::mvccpb::Event;
use braid_proto::etcd::mvccpb::event::EventType;
use bytes::{Bytes, BytesMut};
use prost::encoding;

/// Number of `WatchResponse.events`.
const EVENTS: u32 = 11;

/// Which events of a revision a watch gets, and how much of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Filter NOPUT.
    pub no_put: bool,
    /// Filter NODELETE.
    pub no_delete: bool,
    /// Whether events carry what was there before.
    pub prev_kv: bool,
}

impl View {
    fn shows(self, event: &Event) -> bool {
        let deletion = event.r#type == EventType::Delete as i32;
        !(if deletion { self.no_delete } else { self.no_put })
    }

    fn index(self) -> usize {
        usize::from(self.no_put) | usize::from(self.no_delete) << 1 | usize::from(self.prev_kv) << 2
    }
}

/// Everything that happened in a range at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// The revision.
    pub revision: i64,
    /// At least one, in order of sub-revision.
    pub events: Vec<Event>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Batch {
    moments: Vec<Moment>,
    views: [OnceLock<Shown>; 8],
}

/// What a view shows of a batch.
#[derive(Debug)]
struct Shown {
    bytes: Bytes,
    /// Where each moment ends: in bytes, and counted in events.
    ends: Vec<(usize, usize)>,
}

impl Batch {
    /// Of these, in rising order of revisions.
    pub fn new(moments: Vec<Moment>) -> Self {
        Self { moments, views: Default::default() }
    }

    /// What is in it.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// How many revisions.
    pub fn len(&self) -> usize {
        self.moments.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.moments.is_empty()
    }

    /// The revision of a moment.
    pub fn revision(&self, index: usize) -> i64 {
        self.moments[index].revision
    }

    /// The last revision; 0 if there is none.
    pub fn last(&self) -> i64 {
        self.moments.last().map_or(0, |moment| moment.revision)
    }

    /// The first moment at or above `revision`.
    pub fn position(&self, revision: i64) -> usize {
        self.moments.partition_point(|moment| moment.revision < revision)
    }

    /// What `view` shows of some moments.
    pub fn encoded(&self, view: View, moments: Range<usize>) -> Encoded {
        let shown = self.shown(view);
        let ((from, before), (to, all)) = (shown.start(moments.start), shown.start(moments.end));
        Encoded { bytes: shown.bytes.slice(from..to), events: all - before }
    }

    /// How many moments from `from` on, at least one, `view` shows in no more than `bytes_max`.
    pub fn fitting(&self, view: View, from: usize, bytes_max: usize) -> usize {
        let shown = self.shown(view);
        let limit = shown.start(from).0.saturating_add(bytes_max);
        shown.ends[from..].partition_point(|(end, _)| *end <= limit).max(1)
    }

    fn shown(&self, view: View) -> &Shown {
        self.views[view.index()].get_or_init(|| {
            let mut bytes = BytesMut::new();
            let mut count = 0;
            let mut ends = Vec::with_capacity(self.moments.len());
            for moment in &self.moments {
                for event in moment.events.iter().filter(|event| view.shows(event)) {
                    encode(event, view, &mut bytes);
                    count += 1;
                }
                ends.push((bytes.len(), count));
            }
            Shown { bytes: bytes.freeze(), ends }
        })
    }
}

impl Shown {
    fn start(&self, index: usize) -> (usize, usize) {
        index.checked_sub(1).map_or((0, 0), |before| self.ends[before])
    }
}

fn encode(event: &Event, view: View, bytes: &mut BytesMut) {
    if view.prev_kv || event.prev_kv.is_none() {
        return encoding::message::encode(EVENTS, event, bytes);
    }
    let bare = Event { r#type: event.r#type, kv: event.kv.clone(), prev_kv: None };
    encoding::message::encode(EVENTS, &bare, bytes);
}

/// Encoded events, each as a field of a `WatchResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The fields, one after the other.
    pub bytes: Bytes,
    /// How many.
    pub events: usize,
}

impl Encoded {
    /// Cuts off the first events: as many as fit into `bytes_max`, and at least one.
    pub fn split_first(&mut self, bytes_max: usize) -> Encoded {
        let (mut end, mut events) = (0, 0);
        while events < self.events {
            let next = end + field_len(&self.bytes[end..]);
            if events > 0 && next > bytes_max {
                break;
            }
            (end, events) = (next, events + 1);
        }
        self.events -= events;
        Encoded { bytes: self.bytes.split_to(end), events }
    }
}

/// Bytes of the field that `fields` begins with.
fn field_len(fields: &[u8]) -> usize {
    let mut rest = fields;
    let read = encoding::decode_varint(&mut rest).and_then(|_| encoding::decode_varint(&mut rest));
    let body = read.expect("fields that this module has written");
    fields.len() - rest.len() + body as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_proto::etcd::etcdserverpb::WatchResponse;
    use braid_proto::etcd::mvccpb::KeyValue;
    use prost::Message;

    fn events() -> Vec<Event> {
        let kv = |key: &'static str| Some(KeyValue { key: key.into(), mod_revision: 7, ..Default::default() });
        let put = Event { r#type: EventType::Put as i32, kv: kv("a"), prev_kv: kv("a") };
        let delete = Event { r#type: EventType::Delete as i32, kv: kv("bb"), prev_kv: None };
        vec![put, delete]
    }

    fn batch() -> Batch {
        Batch::new(vec![Moment { revision: 7, events: events() }, Moment { revision: 9, events: events() }])
    }

    fn decoded(encoded: &Encoded) -> Vec<Event> {
        let events = WatchResponse::decode(encoded.bytes.clone()).expect("a response").events;
        assert_eq!(events.len(), encoded.events);
        events
    }

    #[test]
    fn a_view_shows_what_its_filters_leave() {
        let (batch, events) = (batch(), events());
        let all = View { prev_kv: true, ..Default::default() };
        assert_eq!(decoded(&batch.encoded(all, 0..1)), events);
        assert_eq!(decoded(&batch.encoded(all, 0..2)), [events.clone(), events.clone()].concat());
        let bare = decoded(&batch.encoded(View::default(), 1..2));
        assert_eq!(bare[0].kv, events[0].kv);
        assert_eq!(bare[0].prev_kv, None);
        assert_eq!(bare[1], events[1]);
        assert_eq!(decoded(&batch.encoded(View { no_put: true, ..all }, 0..1)), events[1..]);
        assert_eq!(decoded(&batch.encoded(View { no_delete: true, ..all }, 1..2)), events[..1]);
        let nothing = View { no_put: true, no_delete: true, ..all };
        assert_eq!(batch.encoded(nothing, 0..2), Encoded::default());
    }

    #[test]
    fn events_are_encoded_once_for_all_who_hear_them() {
        let batch = batch();
        let first = batch.encoded(View::default(), 0..1);
        let second = batch.encoded(View::default(), 1..2);
        let both = batch.encoded(View::default(), 0..2);
        assert_eq!(first.bytes.as_ptr(), both.bytes.as_ptr());
        assert_eq!(second.bytes.as_ptr(), both.bytes[first.bytes.len()..].as_ptr());
    }

    #[test]
    fn a_run_ends_where_the_next_moment_does_not_fit() {
        let batch = batch();
        let one = batch.encoded(View::default(), 0..1).bytes.len();
        let fitting = |from, bytes| batch.fitting(View::default(), from, bytes);
        assert_eq!([fitting(0, 0), fitting(0, one), fitting(0, 2 * one - 1)], [1, 1, 1]);
        assert_eq!([fitting(0, 2 * one), fitting(0, usize::MAX), fitting(1, usize::MAX)], [2, 2, 1]);
    }

    #[test]
    fn moments_are_found_by_their_revision() {
        let batch = batch();
        assert_eq!([7, 8, 9, 10].map(|revision| batch.position(revision)), [0, 1, 1, 2]);
        assert_eq!((batch.last(), Batch::default().last()), (9, 0));
    }

    #[test]
    fn events_are_cut_between_each_other_only() {
        let batch = batch();
        let whole = batch.encoded(View::default(), 0..1);
        let mut rest = whole.clone();
        let first = rest.split_first(1);
        assert_eq!((first.events, rest.events), (1, 1));
        assert_eq!([&first.bytes[..], &rest.bytes[..]].concat(), whole.bytes);
        assert_eq!(decoded(&first).len(), 1);
        let mut all = whole.clone();
        assert_eq!(all.split_first(whole.bytes.len()), whole);
        assert_eq!(all, Encoded::default());
    }
}
