//! Responses of the Watch RPC as they go to the wire.
//!
//! Events are encoded already ([`super::batch`]). A [`Response`] is a few numbers and references to such bytes;
//! [`WatchCodec`] puts them together.

use braid_proto::etcd::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// First allocation for what a stream sends or receives. Small, because many streams are idle for hours.
const BUFFER_BYTES: usize = 256;
/// Responses are put into one HTTP/2 frame up to here.
const YIELD_BYTES: usize = 32 << 10;
/// What a response takes beside its events, at most.
pub const FRAME_BYTES: usize = 80;

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
    /// Bytes of it and of those that follow at once; 0: as far as is known.
    pub together: usize,
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
        let bytes = head.encoded_len() + frame.response.events_len();
        to.reserve(bytes.max(frame.together.min(YIELD_BYTES)));
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
