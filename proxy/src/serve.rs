//! Serves the client port: gRPC and HTTP, HTTP/1 and HTTP/2, on one listener.
//!
//! To stop: accept nothing more, tell every connection to finish what it has begun (GOAWAY), wait for them up to a
//! bound, and cut off the rest.

use std::io;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::authority::MendAuthority;
use crate::crew::Crew;
use crate::front::Front;
use crate::gather::Gather;

/// Bytes of one request that a client may send before they are read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of all requests of a connection that a client may send before they are read.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A silent connection is probed so often, so that clients which are gone free what they hold.
const PROBE: Duration = Duration::from_secs(60);
/// How long a client may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failure to accept, most often because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `front` on `listener` until `stop` completes, then lets requests finish for `grace` at most.
pub async fn serve(front: Front, listener: TcpListener, stop: impl Future<Output = ()>, grace: Duration) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, front.clone(), graceful.watcher()));
                }
                Err(error) => refused(&error).await,
            },
            // Reaps ended connections; without any, the others decide.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut off connections that did not finish in time");
    }
    connections.shutdown().await;
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn builder(crew: Crew) -> Builder<Crew> {
    let mut builder = Builder::new(crew);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        // As etcd: requests in flight are bounded for the whole proxy instead.
        .max_concurrent_streams(u32::MAX)
        .keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE_TIMEOUT);
    builder.http1().timer(TokioTimer::new());
    builder
}

async fn connection(stream: TcpStream, front: Front, watcher: Watcher) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended as it began");
        return;
    }
    let crew = Crew::default();
    let builder = builder(crew.clone());
    let connection = builder.serve_connection(TokioIo::new(Gather::new(MendAuthority::new(stream))), front);
    if let Err(error) = crew.run(watcher.watch(connection)).await {
        tracing::debug!(%error, "a connection broke");
    }
}
