//! A server that can be killed with all its connections, as a process can: it has a runtime of its own.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Router;

/// A running server.
pub struct Process {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Process {
    /// Serves `router` at `address`.
    pub fn start(address: &str, router: Router) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves");
        });
        Self { address, runtime: Some(runtime) }
    }

    /// Ends it, its port and its connections.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be waited for on a thread of another one.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join();
            ended.expect("the server ends");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
