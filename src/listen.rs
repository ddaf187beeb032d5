//! Ports: bound before anything else happens, served with gRPC and HTTP together.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{debug, info};

use crate::args::types::Url;
use crate::stop::Stop;

/// How often an idle connection is asked whether the other side is still there, and how long it may take to answer.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(60);
const KEEPALIVE_WAIT: Duration = Duration::from_secs(20);
/// Receive windows of HTTP/2. The default of 64 KiB would stop a request of 1.5 MiB two dozen times.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Why a port cannot be listened on, or stopped being served.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error("{flag}: {url} is in use by another process; stop that one or choose another port")]
    InUse { flag: &'static str, url: Url },
    #[error("{flag}: {url} is no address of this machine")]
    NotHere { flag: &'static str, url: Url },
    #[error("{flag}: this user may not listen on {url}; choose a port above 1023")]
    Denied { flag: &'static str, url: Url },
    #[error("{flag}: cannot listen on {url}: {source}")]
    Other { flag: &'static str, url: Url, source: io::Error },
    #[error("serving {url} ended: {source}")]
    Ended { url: Url, source: tonic::transport::Error },
}

/// Ports of one kind.
#[derive(Debug)]
pub struct Ports {
    bound: Vec<(Url, TcpListener)>,
}

impl Ports {
    /// Binds every URL of `flag`.
    pub async fn bind(flag: &'static str, urls: &[Url]) -> Result<Self, ListenError> {
        let mut bound = Vec::with_capacity(urls.len());
        for url in urls {
            let listener = TcpListener::bind(url.addr.as_str()).await.map_err(|source| {
                let url = url.clone();
                match source.kind() {
                    io::ErrorKind::AddrInUse => ListenError::InUse { flag, url },
                    io::ErrorKind::AddrNotAvailable => ListenError::NotHere { flag, url },
                    io::ErrorKind::PermissionDenied => ListenError::Denied { flag, url },
                    _ => ListenError::Other { flag, url, source },
                }
            })?;
            bound.push((url.clone(), listener));
        }
        Ok(Self { bound })
    }

    /// Binds one port of the loopback address that nobody uses.
    pub async fn bind_any() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = Url { addr: listener.local_addr()?.to_string() };
        Ok(Self { bound: vec![(url, listener)] })
    }

    /// What the ports are reached by.
    pub fn urls(&self) -> Vec<Url> {
        self.bound.iter().map(|(url, _)| url.clone()).collect()
    }

    /// The bound ports themselves, for a part that serves them on its own.
    pub fn into_listeners(self) -> impl Iterator<Item = TcpListener> {
        self.bound.into_iter().map(|(_, listener)| listener)
    }

    /// Serves `routes` on all of them until `stop`, then lets requests that are under way finish within `grace`. Returns
    /// early only with an error.
    pub async fn serve(self, routes: Routes, stop: Stop, grace: Duration) -> Result<(), ListenError> {
        let mut servers = JoinSet::new();
        for (url, listener) in self.bound {
            servers.spawn(serve(url, listener, routes.clone(), stop.clone(), grace));
        }
        while let Some(ended) = servers.join_next().await {
            match ended {
                Ok(result) => result?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

async fn serve(
    url: Url,
    listener: TcpListener,
    routes: Routes,
    stop: Stop,
    grace: Duration,
) -> Result<(), ListenError> {
    info!(%url, "serving");
    let served = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.wanted());
    let overdue = async {
        stop.wanted().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        result = served => result.map_err(|source| ListenError::Ended { url, source }),
        () = overdue => {
            debug!(%url, "some requests did not finish in time and are cut off");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_flag() {
        let held = Ports::bind_any().await.unwrap();
        let url = held.urls().remove(0);
        let error = Ports::bind("--listen-client-urls", std::slice::from_ref(&url)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("--listen-client-urls: {url} is in use by another process; stop that one or choose another port")
        );
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_refused() {
        let url: Url = "http://192.0.2.1:2379".parse().unwrap();
        let error = Ports::bind("--listen-peer-urls", &[url]).await.unwrap_err();
        assert!(matches!(error, ListenError::NotHere { .. }), "{error}");
    }

    #[tokio::test]
    async fn serving_ends_when_asked() {
        let (sender, stop) = Stop::by_hand();
        let ports = Ports::bind_any().await.unwrap();
        let serving = tokio::spawn(ports.serve(Routes::default(), stop, Duration::from_secs(5)));
        sender.send_replace(true);
        serving.await.unwrap().unwrap();
    }
}
