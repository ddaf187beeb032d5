//! The sending side: finds the way for each frame and snapshot.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::id::ClusterId;
use braid_proto::pb::{Domain, RaftFrame};
use metrics::counter;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::lane::{Key, Lane};
use super::send::{Outcome, SendSnapshot};
use super::{AddressBook, LocalRegistry, SNAPSHOTS_AT_ONCE};
use crate::Transport;
use crate::config::SNAPSHOT_BYTES_PER_SECOND;
use crate::pace::Pace;

/// A target is reported as unreachable at most this often.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// What an operator may want to set.
#[derive(Clone, Copy, Debug)]
pub struct TransportConfig {
    /// Bytes of snapshots sent in a second by this process, all together. 0: no limit.
    pub snapshot_bytes_per_second: u64,
}

impl Default for TransportConfig {
    fn default() -> Self {
        TransportConfig { snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND }
    }
}

/// Host `to` could not be reached, or the connection to it was lost, with what was on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Domain of both hosts.
    pub domain: Domain,
    /// Who was sending.
    pub from: u64,
    /// Who was not reached.
    pub to: u64,
}

type Callback = Arc<dyn Fn(Unreachable) + Send + Sync>;

/// [`Transport`] of a process: to hosts of the same process directly, to all others over gRPC.
///
/// Dropping it ends its connections.
pub struct GrpcTransport {
    runtime: Handle,
    cluster: ClusterId,
    book: AddressBook,
    local: LocalRegistry,
    lanes: RwLock<HashMap<Key, Arc<Lane>>>,
    unreachable: Arc<Mutex<Option<Callback>>>,
    sending: Arc<Semaphore>,
    pace: Arc<Pace>,
}

impl GrpcTransport {
    /// A transport of cluster `cluster` whose tasks run on `runtime`. Hosts are found in `local`, else in `book`.
    pub fn new(
        runtime: Handle,
        cluster: ClusterId,
        book: AddressBook,
        local: LocalRegistry,
        config: TransportConfig,
    ) -> Self {
        GrpcTransport {
            runtime,
            cluster,
            book,
            local,
            lanes: RwLock::default(),
            unreachable: Arc::default(),
            sending: Arc::new(Semaphore::new(SNAPSHOTS_AT_ONCE)),
            pace: Arc::new(Pace::new(config.snapshot_bytes_per_second)),
        }
    }

    /// Calls `callback` when a target is lost or not found, at most twice a second for each target. Replaces an earlier
    /// one. It runs on the runtime and must not block.
    pub fn on_unreachable(&self, callback: impl Fn(Unreachable) + Send + Sync + 'static) {
        *self.unreachable.lock() = Some(Arc::new(callback));
    }

    fn lane(&self, key: Key) -> Option<Arc<Lane>> {
        if let Some(lane) = self.lanes.read().get(&key) {
            return Some(Arc::clone(lane));
        }
        self.book.get(key.domain, key.to)?;
        let mut lanes = self.lanes.write();
        let lane = lanes.entry(key).or_insert_with(|| {
            let lane = Arc::new(Lane::new(key, self.cluster));
            let report = reporter(key, Arc::clone(&self.unreachable));
            self.runtime.spawn(Arc::clone(&lane).run(self.book.clone(), report));
            lane
        });
        Some(Arc::clone(lane))
    }
}

impl Transport for GrpcTransport {
    fn send(&self, mut frame: RaftFrame) -> bool {
        let Ok(domain) = Domain::try_from(frame.domain) else { return false };
        let key = Key { domain, from: frame.from_host, to: frame.to_host };
        if let Some(inbound) = self.local.get(domain, key.to) {
            frame.cluster_id = self.cluster.0;
            inbound.receive(frame);
            return true;
        }
        let sent = self.lane(key).is_some_and(|lane| lane.send(frame));
        if !sent {
            counter!("braid_raft_frames_dropped_total").increment(1);
        }
        sent
    }

    fn send_snapshot(
        &self,
        mut frame: RaftFrame,
        files: Vec<PathBuf>,
        done: Box<dyn FnOnce(Result<(), String>) + Send>,
    ) {
        frame.cluster_id = self.cluster.0;
        let outcome = Outcome::new(done);
        let task = SendSnapshot {
            frame,
            files,
            book: self.book.clone(),
            local: self.local.clone(),
            pace: Arc::clone(&self.pace),
        };
        let sending = Arc::clone(&self.sending);
        self.runtime.spawn(async move {
            // Bounded by the raft groups: each sends one snapshot to a follower at a time.
            let _permit = sending.acquire_owned().await;
            outcome.is(task.run().await);
        });
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        for lane in self.lanes.get_mut().values() {
            lane.close();
        }
    }
}

fn reporter(key: Key, callback: Arc<Mutex<Option<Callback>>>) -> impl Fn() + Send + Sync + 'static {
    let last = Mutex::new(None::<Instant>);
    move || {
        counter!("braid_raft_connections_lost_total").increment(1);
        let mut last = last.lock();
        if last.is_some_and(|last| last.elapsed() < REPORT_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        let callback = callback.lock().clone();
        if let Some(callback) = callback {
            callback(Unreachable { domain: key.domain, from: key.from, to: key.to });
        }
    }
}
