//! How a proxy is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::ClusterId;

/// etcd's default for `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;
/// etcd's default for `--max-txn-ops`.
pub const MAX_TXN_OPS: usize = 128;
/// Requests under way at most. Each holds some kilobytes at rest, so this bounds a stalled proxy to a few gigabytes
/// at worst; beyond it clients get etcd's "too many requests".
pub const MAX_IN_FLIGHT: usize = 100_000;
/// etcd's 5 s and two of its election timeouts.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// etcd's default for `--watch-progress-notify-interval`.
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// How a proxy is set up. Numbers of 0 or less mean what they mean in etcd.
#[derive(Clone)]
pub struct ProxyConfig {
    /// Cluster it serves.
    pub cluster_id: ClusterId,
    /// Who it is in `MemberList` and in every answer's header. Not 0, and kept over restarts.
    pub member_id: u64,
    /// Its name in `MemberList`. Not empty: clients skip members without a name.
    pub name: String,
    /// Where clients reach it, as URLs.
    pub client_urls: Vec<String>,
    /// Where its process is reached by other processes, as URLs.
    pub peer_urls: Vec<String>,
    /// Encoded bytes of one write at most; gRPC receives 512 KiB more, as in etcd.
    pub max_request_bytes: usize,
    /// Compares, or operations of one branch, of a transaction at most.
    pub max_txn_ops: usize,
    /// Requests under way at most.
    pub max_in_flight: usize,
    /// How long a request is tried at most; a shorter timeout of the client goes first.
    pub request_timeout: Duration,
    /// Between two notices to an idle watch that wants them; up to a tenth is added at random.
    pub watch_progress_interval: Duration,
    /// `--quota-backend-bytes`, for Status.
    pub quota_bytes: i64,
    /// Bytes of the files of this process's stores, for Status; 0 if it has none.
    pub db_bytes: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Renders `/metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl ProxyConfig {
    /// A proxy with etcd's defaults, without addresses, files and metrics.
    pub fn new(cluster_id: ClusterId, member_id: u64, name: impl Into<String>) -> Self {
        Self {
            cluster_id,
            member_id,
            name: name.into(),
            client_urls: Vec::new(),
            peer_urls: Vec::new(),
            max_request_bytes: MAX_REQUEST_BYTES,
            max_txn_ops: MAX_TXN_OPS,
            max_in_flight: MAX_IN_FLIGHT,
            request_timeout: REQUEST_TIMEOUT,
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
            quota_bytes: 0,
            db_bytes: Arc::new(|| 0),
            metrics: Arc::new(String::new),
        }
    }

    /// Bytes of a gRPC message that are received at most.
    pub fn receive_bytes_max(&self) -> usize {
        self.max_request_bytes.saturating_add(512 << 10)
    }
}

impl fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConfig")
            .field("cluster_id", &self.cluster_id)
            .field("member_id", &self.member_id)
            .field("name", &self.name)
            .field("client_urls", &self.client_urls)
            .field("peer_urls", &self.peer_urls)
            .field("max_request_bytes", &self.max_request_bytes)
            .field("max_txn_ops", &self.max_txn_ops)
            .field("max_in_flight", &self.max_in_flight)
            .field("request_timeout", &self.request_timeout)
            .field("watch_progress_interval", &self.watch_progress_interval)
            .finish_non_exhaustive()
    }
}
