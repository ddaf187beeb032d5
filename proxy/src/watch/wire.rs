//! Responses of the Watch RPC as they go to the wire.
//!
//! A revision that a thousand clients hear is encoded once: [`encode`] turns its events into the bytes that they are inside
//! a `WatchResponse`, and keeps the last result on each thread, because a source offers one revision to all its subscribers
//! in a row. A [`Response`] is a few numbers and references to such bytes; [`WatchCodec`] puts them together.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use braid_proto::etcd::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use braid_proto::etcd::mvccpb::Event;
use braid_proto::etcd::mvccpb::event::EventType;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Number of `WatchResponse.events`.
const EVENTS: u32 = 11;
/// First allocation for what a stream sends or receives. Small, because many streams are idle for hours.
const BUFFER_BYTES: usize = 256;
/// Responses are put into one HTTP/2 frame up to here.
const YIELD_BYTES: usize = 32 << 10;

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

/// Encoded events, each as a field of a `WatchResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The fields, one after the other.
    pub bytes: Bytes,
    /// How many.
    pub events: usize,
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

/// The last events that this thread has encoded, in each view that was asked for. They are known by their place, which is
/// not used again while something points to it.
struct Last {
    events: Weak<Vec<Event>>,
    views: [Option<Encoded>; 8],
}

thread_local! {
    static LAST: RefCell<Last> = const { RefCell::new(Last { events: Weak::new(), views: [const { None }; 8] }) };
}

/// What `view` shows of `events`.
pub fn encode(events: &Arc<Vec<Event>>, view: View) -> Encoded {
    LAST.with_borrow_mut(|last| {
        if !std::ptr::eq(last.events.as_ptr(), Arc::as_ptr(events)) {
            *last = Last { events: Arc::downgrade(events), views: Default::default() };
        }
        last.views[view.index()].get_or_insert_with(|| encode_afresh(events, view)).clone()
    })
}

fn encode_afresh(events: &[Event], view: View) -> Encoded {
    let mut bytes = BytesMut::new();
    let mut count = 0;
    for event in events.iter().filter(|event| view.shows(event)) {
        count += 1;
        if view.prev_kv || event.prev_kv.is_none() {
            encoding::message::encode(EVENTS, event, &mut bytes);
        } else {
            let bare = Event { r#type: event.r#type, kv: event.kv.clone(), prev_kv: None };
            encoding::message::encode(EVENTS, &bare, &mut bytes);
        }
    }
    Encoded { bytes: bytes.freeze(), events: count }
}

/// A response without its header's constant parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Which watch; -1: none, or all.
    pub watch_id: i64,
    /// The header's revision.
    pub revision: i64,
    /// The watch begins.
    pub created: bool,
    /// The watch is over.
    pub canceled: bool,
    /// Not 0: it is over because history begins at this revision.
    pub compact_revision: i64,
    /// Why it was refused; empty: it was not.
    pub cancel_reason: &'static str,
    /// More events of the same revision follow.
    pub fragment: bool,
    /// Encoded events.
    pub events: Bytes,
    /// More of them.
    pub more: Vec<Bytes>,
}

impl Response {
    /// Bytes of its events.
    pub fn events_len(&self) -> usize {
        self.events.len() + self.more.iter().map(Bytes::len).sum::<usize>()
    }

    /// Everything but the events, as a message.
    pub fn head(&self, header: Option<ResponseHeader>) -> WatchResponse {
        WatchResponse {
            header,
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.to_owned(),
            fragment: self.fragment,
            events: Vec::new(),
        }
    }

    /// Bytes on the wire, with the largest header that there is.
    pub fn len_max(&self) -> usize {
        let header = ResponseHeader {
            cluster_id: u64::MAX,
            member_id: u64::MAX,
            revision: self.revision,
            raft_term: u64::from(u32::MAX),
        };
        self.head(Some(header)).encoded_len() + self.events_len()
    }
}

/// A response with its header.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: Option<ResponseHeader>,
    /// The rest.
    pub response: Response,
}

/// Reads requests, writes frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Frame;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for WatchCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let head = frame.response.head(frame.header);
        to.reserve(head.encoded_len() + frame.response.events_len());
        let encoded = head.encode(to);
        encoded.map_err(|error| Status::internal(format!("braid: a watch response cannot be written: {error}")))?;
        to.put_slice(&frame.response.events);
        frame.response.more.iter().for_each(|events| to.put_slice(events));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        let request = WatchRequest::decode(from);
        request.map(Some).map_err(|error| Status::internal(format!("braid: a watch request cannot be read: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_proto::etcd::mvccpb::KeyValue;

    fn events() -> Arc<Vec<Event>> {
        let kv = |key: &'static str| Some(KeyValue { key: key.into(), mod_revision: 7, ..Default::default() });
        let put = Event { r#type: EventType::Put as i32, kv: kv("a"), prev_kv: kv("a") };
        let delete = Event { r#type: EventType::Delete as i32, kv: kv("bb"), prev_kv: None };
        Arc::new(vec![put, delete])
    }

    fn decoded(encoded: &Encoded) -> Vec<Event> {
        WatchResponse::decode(encoded.bytes.clone()).expect("a response").events
    }

    #[test]
    fn a_view_shows_what_its_filters_leave() {
        let events = events();
        let all = View { prev_kv: true, ..Default::default() };
        assert_eq!(decoded(&encode(&events, all)), *events);
        let bare = decoded(&encode(&events, View::default()));
        assert_eq!(bare[0].kv, events[0].kv);
        assert_eq!(bare[0].prev_kv, None);
        assert_eq!(bare[1], events[1]);
        let no_put = encode(&events, View { no_put: true, ..all });
        assert_eq!((decoded(&no_put), no_put.events), (events[1..].to_vec(), 1));
        let no_delete = encode(&events, View { no_delete: true, ..all });
        assert_eq!(decoded(&no_delete), events[..1]);
        assert_eq!(encode(&events, View { no_put: true, no_delete: true, ..all }), Encoded::default());
    }

    #[test]
    fn events_are_encoded_once_for_all_who_hear_them() {
        let events = events();
        let first = encode(&events, View::default());
        let second = encode(&Arc::clone(&events), View::default());
        assert_eq!(first.bytes.as_ptr(), second.bytes.as_ptr());
        let other = encode(&Arc::new(events[..1].to_vec()), View::default());
        assert_eq!(other.events, 1);
    }

    #[test]
    fn events_are_cut_between_each_other_only() {
        let mut rest = encode(&events(), View::default());
        let whole = rest.clone();
        let first = rest.split_first(1);
        assert_eq!((first.events, rest.events), (1, 1));
        assert_eq!([&first.bytes[..], &rest.bytes[..]].concat(), whole.bytes);
        assert_eq!(decoded(&first).len(), 1);
        let mut all = whole.clone();
        assert_eq!(all.split_first(whole.bytes.len()), whole);
        assert_eq!(all, Encoded::default());
    }
}
