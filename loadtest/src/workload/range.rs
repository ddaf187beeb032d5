//! Ranges: a stretch of keys with or without a limit, keys only, a count only, pages of everything.
//!
//! | Name | One operation |
//! |---|---|
//! | `range-N` | all of N keys, from a random place on |
//! | `range-limit-L-of-N` | the first L of N keys, with the count of all N |
//! | `keys-only-N` | N keys without their values |
//! | `count-only-N` | the count of N keys |
//! | `count-only` | the count of all keys |
//! | `page-L-count` | the first L of all keys, with the count of all |
//! | `page-L` | the next L keys of a walk over all keys at one revision, as a paged list is read |
//!
//! Every answer must show as many keys as there are, the right count, and say whether there is more: nobody else may
//! add keys under the prefix meanwhile.

use std::fmt;

use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use bytes::{BufMut, Bytes, BytesMut};
use tonic::{Code, Status};

use super::{Client, Driver, Kind, Trouble};
use crate::client::header_revision;
use crate::keys::Picker;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All of so many keys.
    All(u64),
    /// The first ones.
    Limit {
        /// Keys that are shown.
        limit: u64,
        /// Keys that the range spans.
        span: u64,
    },
    /// Keys without values.
    KeysOnly(u64),
    /// The count of so many keys; none: of all.
    Count(Option<u64>),
    /// The first ones of all keys, with the count of all.
    FirstPage(u64),
    /// A walk over all keys.
    Pages(u64),
}

impl Shape {
    /// How names look; a capital letter is a number.
    pub const FORMS: [&'static str; 7] =
        ["range-N", "range-limit-L-of-N", "keys-only-N", "count-only-N", "count-only", "page-L-count", "page-L"];

    /// Reads a name. None: it is nothing of the kind.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let number = |digits: &str| match digits.parse::<u64>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{text:?}: {digits:?} must be a number, at least 1")),
        };
        if text == "count-only" {
            return Some(Ok(Self::Count(None)));
        }
        let (name, rest) = ["range-limit-", "range-", "keys-only-", "count-only-", "page-"]
            .into_iter()
            .find_map(|name| Some((name, text.strip_prefix(name)?)))?;
        Some(match name {
            "range-limit-" => match rest.split_once("-of-") {
                Some((limit, span)) => number(limit).and_then(|limit| {
                    let span = number(span)?;
                    match limit <= span {
                        true => Ok(Self::Limit { limit, span }),
                        false => Err(format!("{text:?}: the limit is above the number of keys")),
                    }
                }),
                None => Err(format!("{text:?}: such a range looks like range-limit-1000-of-100000")),
            },
            "range-" => number(rest).map(Self::All),
            "keys-only-" => number(rest).map(Self::KeysOnly),
            "count-only-" => number(rest).map(|span| Self::Count(Some(span))),
            _ => match rest.strip_suffix("-count") {
                Some(limit) => number(limit).map(Self::FirstPage),
                None => number(rest).map(Self::Pages),
            },
        })
    }

    /// Keys that a range spans; none: all there are.
    pub fn span(self) -> Option<u64> {
        match self {
            Self::All(span) | Self::Limit { span, .. } | Self::KeysOnly(span) => Some(span),
            Self::Count(span) => span,
            Self::FirstPage(_) | Self::Pages(_) => None,
        }
    }

    fn limit(self) -> u64 {
        match self {
            Self::Limit { limit, .. } | Self::FirstPage(limit) | Self::Pages(limit) => limit,
            Self::All(_) | Self::KeysOnly(_) | Self::Count(_) => 0,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::All(_) | Self::Limit { .. } | Self::KeysOnly(_) => Kind::Range,
            Self::Count(_) => Kind::Count,
            Self::FirstPage(_) | Self::Pages(_) => Kind::Page,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(span) => write!(f, "range-{span}"),
            Self::Limit { limit, span } => write!(f, "range-limit-{limit}-of-{span}"),
            Self::KeysOnly(span) => write!(f, "keys-only-{span}"),
            Self::Count(Some(span)) => write!(f, "count-only-{span}"),
            Self::Count(None) => f.write_str("count-only"),
            Self::FirstPage(limit) => write!(f, "page-{limit}-count"),
            Self::Pages(limit) => write!(f, "page-{limit}"),
        }
    }
}

/// Where a walk goes on.
#[derive(Debug, Clone)]
struct Next {
    key: Bytes,
    /// Keys that are left.
    left: u64,
    revision: i64,
}

/// One worker's ranges.
pub struct Range {
    picker: Picker,
    shape: Shape,
    next: Option<Next>,
}

impl Range {
    /// For one worker.
    pub fn new(picker: Picker, shape: Shape) -> Self {
        Self { picker, shape, next: None }
    }

    /// The next request and the number of keys it spans.
    fn request(&mut self) -> (RangeRequest, u64) {
        let all = self.picker.space().count;
        let span = self.shape.span().unwrap_or(all).min(all);
        // The place is drawn like a key, and moved so that the range ends within the key space.
        let first = match span == all {
            true => 0,
            false => self.picker.number().min(all - span),
        };
        let space = self.picker.space();
        let mut request = RangeRequest {
            key: space.key(first),
            range_end: after(&space.key(first + span - 1)),
            limit: self.shape.limit().cast_signed(),
            keys_only: matches!(self.shape, Shape::KeysOnly(_)),
            count_only: matches!(self.shape, Shape::Count(_)),
            ..RangeRequest::default()
        };
        match self.next.take() {
            Some(Next { key, left, revision }) => {
                (request.key, request.revision) = (key, revision);
                (request, left)
            }
            None => (request, span),
        }
    }
}

/// The first key after this one.
fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Fails unless the answer is what `span` keys give.
fn check(request: &RangeRequest, span: u64, reply: &RangeResponse) -> Result<(), Status> {
    let shown = match request {
        RangeRequest { count_only: true, .. } => 0,
        RangeRequest { limit, .. } if *limit > 0 => span.min(limit.unsigned_abs()),
        _ => span,
    };
    let more = !request.count_only && shown < span;
    let got = (reply.kvs.len() as u64, reply.count, reply.more);
    match got == (shown, span.cast_signed(), more) {
        true => Ok(()),
        false => Err(Status::data_loss(format!(
            "a range over {span} keys should show {shown}, but it showed {}, counted {}, and said more = {}",
            got.0, got.1, got.2
        ))),
    }
}

impl Driver for Range {
    async fn prepare(&mut self, _: &mut Client) -> Result<(), Trouble> {
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let (request, span) = self.request();
        let at = request.revision;
        let reply = match client.kv.range(request.clone()).await {
            Ok(reply) => reply.into_inner(),
            // The walk took longer than history is kept: it starts again, as a list does.
            Err(status) if at > 0 && status.code() == Code::OutOfRange => return Ok(Kind::PageExpired),
            Err(status) => return Err(status.into()),
        };
        check(&request, span, &reply)?;
        if let (Shape::Pages(_), true, Some(last)) = (self.shape, reply.more, reply.kvs.last()) {
            let revision = if at > 0 { at } else { header_revision(&reply) };
            self.next = Some(Next { key: after(&last.key), left: span - reply.kvs.len() as u64, revision });
        }
        Ok(self.shape.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Distribution, KeySpace};

    fn parsed(text: &str) -> Result<Shape, String> {
        Shape::parse(text).unwrap_or_else(|| Err("no range".into()))
    }

    #[test]
    fn shapes_are_read_as_they_are_written() {
        let names =
            ["range-7", "range-limit-5-of-9", "keys-only-7", "count-only-7", "count-only", "page-5-count", "page-5"];
        for name in names {
            assert_eq!(parsed(name).unwrap().to_string(), name);
        }
        for (bad, want) in [
            ("range-x", "must be a number"),
            ("range-limit-5", "looks like"),
            ("range-limit-9-of-5", "above the number"),
            ("page-0", "at least 1"),
            ("put", "no range"),
        ] {
            assert!(parsed(bad).unwrap_err().contains(want), "{bad}");
        }
    }

    #[test]
    fn ranges_lie_within_the_key_space_and_span_exactly_what_they_should() {
        let space = KeySpace { prefix: "bench/".into(), count: 100, value_bytes: 8 };
        let picker = Picker::new(&space, Distribution::Uniform, 1, 0, 1);
        let mut range = Range::new(picker, parsed("range-30").unwrap());
        for _ in 0..200 {
            let (request, span) = range.request();
            let within = (0..100).filter(|&number| {
                let key = space.key(number);
                key >= request.key && key < request.range_end
            });
            assert_eq!((within.count(), span), (30, 30));
        }
    }

    #[test]
    fn an_answer_that_is_short_or_miscounted_is_refused() {
        let request = RangeRequest { limit: 2, ..RangeRequest::default() };
        let reply = |shown: usize, count, more| RangeResponse {
            kvs: vec![Default::default(); shown],
            count,
            more,
            ..RangeResponse::default()
        };
        assert!(check(&request, 5, &reply(2, 5, true)).is_ok());
        for bad in [reply(1, 5, true), reply(2, 4, true), reply(2, 5, false)] {
            assert!(check(&request, 5, &bad).is_err(), "{bad:?}");
        }
        let count = RangeRequest { count_only: true, ..request };
        assert!(check(&count, 5, &reply(0, 5, false)).is_ok());
    }
}
