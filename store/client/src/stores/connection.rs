//! A connection to a store in another process: how it is made, why there is none, how long to wait before the next
//! attempt. The same for requests ([`super::remote`]) and for what else a process says to a store.

use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{error::Elapsed, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// How long connecting and the first answer may take each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection is probed so often, and given up when a probe is not answered for as long.
const PROBE: Duration = Duration::from_secs(2);
/// First pause before another attempt to connect, doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes that a store may send before this process has read them. Answers may be large, and many share one stream.
const WINDOW_BYTES: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum Down {
    /// Nobody knows where the store is.
    #[error("nobody knows where it is")]
    Unknown,
    /// Its address cannot be one.
    #[error("{0} is no address")]
    Address(String),
    /// It cannot be reached.
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// It does not answer.
    #[error("no answer in time")]
    Silent(#[from] Elapsed),
    /// It refuses, or the connection broke.
    #[error("{0}")]
    Refused(#[from] Status),
    /// It has ended the stream.
    #[error("the store closed it")]
    Closed,
}

/// Connects to the store at `address` ("host:port").
///
/// # Errors
/// It cannot be reached in time.
pub async fn connect(address: &str) -> Result<Channel, Down> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Down::Address(address.to_owned()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(timeout(CONNECT_TIMEOUT, endpoint.connect()).await??)
}

/// Waits for the store's first answer, which opens a stream.
///
/// # Errors
/// It refuses, or does not answer in time.
pub async fn opened<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Down> {
    Ok(timeout(CONNECT_TIMEOUT, answer).await??.into_inner())
}

/// Pauses between attempts to reach one store.
#[derive(Clone, Copy, Debug)]
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    /// The pause after a connection that stood for `stood`, and what comes next time.
    pub fn after(&mut self, stood: Duration) -> Duration {
        if stood > PAUSE_MAX {
            *self = Self::default();
        }
        let now = self.0;
        self.0 = (now * 2).min(PAUSE_MAX);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_connection_has_stood_for_a_while() {
        let mut pause = Pause::default();
        let short = Duration::from_millis(1);
        let pauses: Vec<u128> = (0..7).map(|_| pause.after(short).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(pause.after(Duration::from_secs(2)), PAUSE_MIN);
        assert_eq!(pause.after(short), PAUSE_MIN * 2);
    }

    #[tokio::test]
    async fn it_says_why_there_is_none() {
        let down = |address: &'static str| async move { connect(address).await.map(drop).expect_err(address) };
        assert!(matches!(down("no address").await, Down::Address(_)));
        // Port 1 of this machine: nobody listens.
        assert!(matches!(down("127.0.0.1:1").await, Down::Connect(_)));
        let silent = opened(std::future::pending::<Result<Response<()>, Status>>()).await;
        assert!(matches!(silent, Err(Down::Silent(_))));
        let refused = opened(std::future::ready(Err::<Response<()>, _>(Status::unimplemented("no")))).await;
        assert!(matches!(refused, Err(Down::Refused(status)) if status.message() == "no"));
    }
}
