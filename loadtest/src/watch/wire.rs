//! Watch responses read as cheaply as they can be: the bytes stay where they arrived, and only what a measurement looks
//! at is picked out of them.
//!
//! A load generator shares the machine with the servers it measures. Building the whole message for each of a million
//! events a second would cost it more than the events cost the server, so nothing is built: no list of events, no keys,
//! no values. Fields may come in any order, and unknown ones are passed over, as the format demands.

use braid_proto::etcd::etcdserverpb::WatchRequest;
use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// One response on a watch stream, unread.
#[derive(Debug, Clone)]
pub struct WatchMessage(Bytes);

/// What a response says apart from its events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// The watch it is about.
    pub watch_id: i64,
    /// The revision in its header.
    pub revision: i64,
    /// The watch stands.
    pub created: bool,
    /// The watch has ended.
    pub canceled: bool,
}

/// One event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// Revision at which it happened.
    pub revision: i64,
    /// The value that was put; empty for a delete.
    pub value: &'a [u8],
}

/// Bytes that are no watch response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl From<Malformed> for Status {
    fn from(_: Malformed) -> Self {
        Self::internal("the server sent bytes that are no watch response")
    }
}

impl WatchMessage {
    /// A response from its bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// All of its bytes, for who wants to decode them as a whole.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Everything but the events.
    pub fn head(&self) -> Result<Head, Malformed> {
        let mut head = Head::default();
        for field in Fields(&self.0) {
            match field? {
                (1, Value::Bytes(header)) => head.revision = varint_of(header, 3)?,
                (2, Value::Varint(id)) => head.watch_id = id as i64,
                (3, Value::Varint(created)) => head.created = created != 0,
                (4, Value::Varint(canceled)) => head.canceled = canceled != 0,
                _ => {}
            }
        }
        Ok(head)
    }

    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = Result<Event<'_>, Malformed>> {
        Fields(&self.0).filter_map(|field| match field {
            Ok((11, Value::Bytes(event))) => Some(Event::read(event)),
            Ok(_) => None,
            Err(malformed) => Some(Err(malformed)),
        })
    }
}

impl<'a> Event<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut event = Self::default();
        for field in Fields(bytes) {
            let (2, Value::Bytes(kv)) = field? else { continue };
            for field in Fields(kv) {
                match field? {
                    (3, Value::Varint(revision)) => event.revision = revision as i64,
                    (5, Value::Bytes(value)) => event.value = value,
                    _ => {}
                }
            }
        }
        Ok(event)
    }
}

/// The number in field `wanted` of a message; 0 if it is not there.
fn varint_of(message: &[u8], wanted: u32) -> Result<i64, Malformed> {
    let mut found = 0;
    for field in Fields(message) {
        if let (number, Value::Varint(value)) = field?
            && number == wanted
        {
            found = value as i64;
        }
    }
    Ok(found)
}

/// What a field holds.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no message here uses.
    Fixed,
}

/// The fields of a message, by number. Ends after the first that is malformed.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((u32::try_from(tag >> 3).ok()?, value))
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (place, &byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                self.0 = &self.0[place + 1..];
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

/// Requests as they are, responses unread.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = WatchRequest;
    type Decode = WatchMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, request: WatchRequest, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for WatchCodec {
    type Item = WatchMessage;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<WatchMessage>, Status> {
        let length = bytes.remaining();
        Ok(Some(WatchMessage(bytes.copy_to_bytes(length))))
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::{ResponseHeader, WatchResponse};
    use braid_proto::etcd::mvccpb::{self, KeyValue};

    use super::*;

    fn response() -> WatchResponse {
        let event = |revision: i64, value: &'static str| mvccpb::Event {
            kv: Some(KeyValue {
                key: "a key".into(),
                create_revision: 3,
                mod_revision: revision,
                version: 1 << 40,
                value: value.into(),
                lease: -1,
            }),
            prev_kv: Some(KeyValue { mod_revision: 1, value: "before".into(), ..KeyValue::default() }),
            ..mvccpb::Event::default()
        };
        WatchResponse {
            header: Some(ResponseHeader { cluster_id: u64::MAX, member_id: 5, revision: 1 << 33, raft_term: 2 }),
            watch_id: 77,
            events: vec![event(300, "one"), event(1 << 33, "")],
            ..WatchResponse::default()
        }
    }

    fn message(bytes: Vec<u8>) -> WatchMessage {
        WatchMessage::new(bytes.into())
    }

    #[test]
    fn a_response_is_read_as_it_was_meant() {
        let message = message(response().encode_to_vec());
        let head = Head { watch_id: 77, revision: 1 << 33, created: false, canceled: false };
        assert_eq!(message.head(), Ok(head));
        let events: Vec<_> = message.events().collect();
        let want = [Event { revision: 300, value: b"one" }, Event { revision: 1 << 33, value: b"" }];
        assert_eq!(events, want.map(Ok));
    }

    #[test]
    fn fields_may_come_in_any_order() {
        let events = WatchResponse { events: response().events, ..WatchResponse::default() }.encode_to_vec();
        let rest = WatchResponse { events: Vec::new(), created: true, canceled: true, ..response() }.encode_to_vec();
        let message = message([events, rest].concat());
        let head = message.head().unwrap();
        assert_eq!((head.watch_id, head.created, head.canceled), (77, true, true));
        assert_eq!(message.events().count(), 2);
    }

    #[test]
    fn every_cut_is_malformed_or_whole_and_never_a_panic() {
        let whole = response().encode_to_vec();
        for cut in 1..whole.len() {
            let cut = message(whole[..cut].to_vec());
            let clean = cut.head().is_ok() && cut.events().all(|event| event.is_ok());
            // Between two fields of the response the rest is missing without a trace.
            assert_eq!(clean, WatchResponse::decode(cut.bytes().clone()).is_ok(), "{} bytes", cut.bytes().len());
        }
    }
}
