//! Transport between real servers on the loopback address.

mod frames;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::id::ClusterId;
use braid_proto::pb::raft_client::RaftClient;
use braid_proto::pb::raft_server::{Raft, RaftServer};
use braid_proto::pb::{Domain, RaftFrame, RaftMessage};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};

use super::*;
use crate::config::SNAPSHOT_BYTES_PER_SECOND;
use crate::pace::Pace;
use crate::{Inbound, Transport};

const CLUSTER: ClusterId = ClusterId(0xC1);
/// Nothing here takes longer; a test that does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Hands everything that arrives to the test.
struct Mirror {
    frames: mpsc::UnboundedSender<RaftFrame>,
    snapshots: mpsc::UnboundedSender<(RaftFrame, PathBuf)>,
    folder: tempfile::TempDir,
    pace: Arc<Pace>,
}

struct Received {
    mirror: Arc<Mirror>,
    frames: mpsc::UnboundedReceiver<RaftFrame>,
    snapshots: mpsc::UnboundedReceiver<(RaftFrame, PathBuf)>,
}

impl Received {
    fn new() -> Self {
        let (frames, frames_in) = mpsc::unbounded_channel();
        let (snapshots, snapshots_in) = mpsc::unbounded_channel();
        let folder = tempfile::tempdir().unwrap();
        let mirror = Mirror { frames, snapshots, folder, pace: Arc::new(Pace::new(SNAPSHOT_BYTES_PER_SECOND)) };
        Received { mirror: Arc::new(mirror), frames: frames_in, snapshots: snapshots_in }
    }

    async fn frame(&mut self) -> RaftFrame {
        tokio::time::timeout(PATIENCE, self.frames.recv()).await.expect("a frame in time").unwrap()
    }

    async fn snapshot(&mut self) -> (RaftFrame, PathBuf) {
        tokio::time::timeout(PATIENCE, self.snapshots.recv()).await.expect("a snapshot in time").unwrap()
    }

    /// Folders in the snapshot folder.
    fn folders(&self) -> usize {
        std::fs::read_dir(self.mirror.folder.path()).unwrap().count()
    }
}

impl Inbound for Mirror {
    fn receive(&self, frame: RaftFrame) {
        // The test may have ended.
        let _ = self.frames.send(frame);
    }

    fn receive_snapshot(&self, frame: RaftFrame, dir: PathBuf) {
        let _ = self.snapshots.send((frame, dir));
    }

    fn snapshot_dir(&self) -> &Path {
        self.folder.path()
    }

    fn snapshot_pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }
}

/// A process that listens.
struct Process {
    address: String,
    hosts: LocalRegistry,
    service: RaftService,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Process {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    async fn start_at(address: &str) -> Self {
        Self::start_with(address, |service| service.into_server()).await
    }

    /// Serves what `wrap` makes of the service.
    async fn start_with<S: Raft>(address: &str, wrap: impl FnOnce(RaftService) -> RaftServer<S>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hosts = LocalRegistry::default();
        let service = RaftService::new(CLUSTER, hosts.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Server::builder().add_service(wrap(service.clone()));
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            router.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await.unwrap();
        });
        Process { address, hosts, service, stop, server }
    }

    /// Store `host` opens in this process.
    fn open(&self, host: u64) -> Received {
        let received = Received::new();
        self.hosts.register(Domain::Store, host, received.mirror.clone());
        received
    }

    /// Stops as a process does: first the calls, then the server, which waits for them.
    async fn stop(self) {
        self.service.stop();
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.server).await.expect("the server stops").unwrap();
    }

    async fn client(&self) -> RaftClient<Channel> {
        RaftClient::connect(format!("http://{}", self.address)).await.unwrap()
    }
}

fn transport(book: &AddressBook) -> GrpcTransport {
    let (runtime, local) = (tokio::runtime::Handle::current(), LocalRegistry::default());
    GrpcTransport::new(runtime, CLUSTER, book.clone(), local, TransportConfig::default())
}

/// An address book that knows one store.
fn book(host: u64, address: &str) -> AddressBook {
    let book = AddressBook::default();
    book.set(Domain::Store, host, address);
    book
}

/// A frame of store 1 for store `to`, with one message that carries `number`.
fn frame(to: u64, number: u64) -> RaftFrame {
    let message = RaftMessage { region_id: number, message: vec![1; 100].into(), ..Default::default() };
    RaftFrame {
        domain: Domain::Store as i32,
        from_host: 1,
        to_host: to,
        from_incarnation: 5,
        messages: vec![message],
        ..Default::default()
    }
}

/// Waits for something that tells nobody when it happens.
async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < PATIENCE, "{what} in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sends frames to store `to`, as raft does, until one has arrived; returns it.
async fn until_arrived(transport: &GrpcTransport, to: u64, received: &mut Received) -> RaftFrame {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "a frame arrives in time");
        transport.send(frame(to, 0));
        if let Ok(frame) = tokio::time::timeout(Duration::from_millis(5), received.frames.recv()).await {
            return frame.unwrap();
        }
    }
}
