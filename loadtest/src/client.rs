//! Connections to etcd v3 endpoints, and what a failed call means for the caller.
//!
//! A failed write is one of three things, and a checker must tell them apart: it surely did not happen (`NotSent`,
//! `Refused`) or nobody knows (`Unknown`). When in doubt the answer is `Unknown`.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::kv_client::KvClient;
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Status};

/// A client of the KV service over one connection.
pub type Kv = KvClient<Channel>;

/// A client of the lease service over one connection.
pub type Leases = LeaseClient<Channel>;

/// How long one TCP connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// HTTP/2 windows: large enough that a reply of a thousand keys does not wait for a window update on loopback.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// URL of one endpoint. As in etcdctl, a bare `host:port` is taken as plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// The URL, with its scheme.
    pub fn url(&self) -> &str {
        &self.0
    }

    /// Connects now.
    pub async fn connect(&self) -> anyhow::Result<Kv> {
        Ok(unlimited(self.channel().await?))
    }

    /// Connects now, for any service.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        let connected = self.endpoint().connect().await;
        connected.map_err(|error| anyhow::anyhow!("cannot connect to {self}: {}", root_cause(&error)))
    }

    /// Connects at the first call, and again after every lost connection. Must be called inside a runtime.
    pub fn connect_lazy(&self) -> Kv {
        unlimited(self.endpoint().connect_lazy())
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(self.0.clone())
            .expect("checked by from_str")
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches('/');
        if text.starts_with("https://") {
            return Err(format!("{text}: TLS is not supported by this tool, give an http:// endpoint"));
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| format!("{text}: {error}"))?;
        let uri = endpoint.uri();
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
            return Err(format!("{text}: an endpoint looks like http://127.0.0.1:2379"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known about a write whose call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It never left this process: try another endpoint.
    NotSent,
    /// The server said that it will not do it.
    Refused,
    /// It may have happened, or may still happen.
    Unknown,
}

impl Failure {
    /// Sorts an error by what it says about the write.
    pub fn of(status: &Status) -> Self {
        if never_connected(status) {
            return Self::NotSent;
        }
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused,
            // ResourceExhausted is not among them: etcd answers it after the write when the quota is found exceeded
            // only at apply.
            _ => Self::Unknown,
        }
    }
}

/// Whether trying again later can help. For writes it is the caller's task to know that doing them twice is harmless.
pub fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Internal | Code::Unknown
    )
}

/// The request for every key from `start` (inclusive) to `end` (exclusive).
pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> RangeRequest {
    RangeRequest { key: start.into(), range_end: end.into(), ..RangeRequest::default() }
}

/// First key after all keys with this prefix: the prefix's last byte below 0xff incremented, the tail cut; "\0" (no end)
/// if there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

/// The revision in a reply's header; 0 if the server sent none.
pub fn header_revision(reply: &RangeResponse) -> i64 {
    reply.header.as_ref().map_or(0, |header| header.revision)
}

/// The innermost text of an error: tonic's outer one says just "transport error".
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// A client of the KV service on a connection, for messages of any size.
pub fn unlimited(channel: Channel) -> Kv {
    KvClient::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
}

fn never_connected(status: &Status) -> bool {
    chain(status).any(|error| error.is::<ConnectError>())
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| error.source())
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::PutRequest;

    use super::*;

    #[test]
    fn addresses_are_read_as_etcdctl_reads_them() {
        let url = |text: &str| text.parse::<Address>().map(|address| address.0);
        assert_eq!(url("127.0.0.1:2379"), Ok("http://127.0.0.1:2379".into()));
        assert_eq!(url(" http://localhost:1/ "), Ok("http://localhost:1".into()));
        for bad in ["", "http://", "127.0.0.1", "ftp://a:1", "https://a:1", "http://a:b"] {
            assert!(url(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn prefix_end_follows_etcds_rule() {
        assert_eq!(prefix_end(b"a/")[..], b"a0"[..]);
        assert_eq!(prefix_end(b"a\xff\xff")[..], b"b"[..]);
        assert_eq!(prefix_end(b"\xff")[..], b"\0"[..]);
        assert_eq!(prefix_end(b"")[..], b"\0"[..]);
    }

    #[tokio::test]
    async fn a_refused_connection_is_known_not_to_have_sent_anything() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address: Address = closed.to_string().parse().unwrap();
        let status = address.connect_lazy().put(PutRequest::default()).await.unwrap_err();
        assert_eq!(Failure::of(&status), Failure::NotSent, "{status:?}");
        assert!(is_transient(&status));
        assert!(address.connect().await.unwrap_err().to_string().contains("refused"));
    }

    #[test]
    fn only_errors_that_rule_the_write_out_count_as_refused() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::ResourceExhausted, Code::Cancelled]
        {
            assert_eq!(Failure::of(&Status::new(code, "")), Failure::Unknown, "{code:?}");
        }
        assert_eq!(Failure::of(&Status::invalid_argument("etcdserver: key is not provided")), Failure::Refused);
    }
}
