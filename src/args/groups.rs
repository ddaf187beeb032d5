//! Groups of flags that several roles share.

use std::path::PathBuf;

use braid_host::config::SNAPSHOT_BYTES_PER_SECOND;
use braid_host::transport::TransportConfig;
use clap::Args;

use super::types::{ClusterState, Key, Label, LogFormat, NoticeInterval, Url};

/// What every server process has.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// TOML file with any of these settings; its keys are the flags' names without the leading dashes
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// debug, info, warn, error, or tracing directives such as "info,braid_host=debug"
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How log lines (on stderr) look
    #[arg(long, alias = "log-formats", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// More addresses that serve /metrics and /health, beside the client address
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub listen_metrics_urls: Vec<Url>,

    /// Threads that serve requests; the default is every core for a proxy, elsewhere all but a quarter of them, at least one
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub worker_threads: Option<u16>,
}

/// How clients reach the process, and what they may ask.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// Where clients are served
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<Url>,

    /// What clients are told to dial; the default is --listen-client-urls
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub advertise_client_urls: Vec<Url>,

    /// Largest request a client may send
    #[arg(long, value_name = "BYTES", default_value_t = 1_572_864, value_parser = clap::value_parser!(u32).range(1024..=64 << 20))]
    pub max_request_bytes: u32,

    /// Most operations in one transaction
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_txn_ops: u32,

    /// How often an idle watch that wants progress notices gets one; up to a tenth is added at random
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        value_name = "DURATION",
        default_value = "10m",
        allow_hyphen_values = true
    )]
    pub watch_progress_notify_interval: NoticeInterval,
}

/// How a store keeps its data.
#[derive(Args, Clone, Debug)]
pub struct StorageArgs {
    /// Bytes a store may hold before it refuses writes with etcd's "database space exceeded"; 0: as much as the disk has
    #[arg(long, value_name = "BYTES", default_value_t = 0, allow_negative_numbers = true)]
    pub quota_backend_bytes: i64,

    /// Memory for blocks read from disk, for each store
    #[arg(long, value_name = "BYTES", default_value_t = 192 << 20, value_parser = clap::value_parser!(u64).range(8 << 20..))]
    pub block_cache_bytes: u64,

    /// Memory for the records that were written last, for each store
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(..=1 << 40))]
    pub record_cache_bytes: u64,

    /// Memory for the newest writes of one kind of data before they go to disk; a store holds a few of these
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, value_parser = clap::value_parser!(u64).range(1 << 20..=1 << 30))]
    pub memtable_bytes: u64,

    /// Entries of its raft log that a region keeps for replicas that lag; beyond it they take a snapshot
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub raft_log_keep_entries: u64,

    /// Bytes of its raft log that a region keeps, likewise
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = clap::value_parser!(u64).range(4096..))]
    pub raft_log_keep_bytes: u64,

    /// Bytes of replicas on their way between stores that a store writes in a second, and sends in a second; 0: as fast as it goes
    #[arg(long, value_name = "BYTES", default_value_t = SNAPSHOT_BYTES_PER_SECOND)]
    pub snapshot_bytes_per_second: u64,
}

impl StorageArgs {
    /// How the store sends to others.
    pub fn transport(&self) -> TransportConfig {
        TransportConfig { snapshot_bytes_per_second: self.snapshot_bytes_per_second }
    }

    /// The quota, if there is one. etcd, too, reads a negative number as "none".
    pub fn quota(&self) -> Option<u64> {
        u64::try_from(self.quota_backend_bytes).ok().filter(|bytes| *bytes > 0)
    }
}

/// Where a store runs, for spreading replicas.
#[derive(Args, Clone, Debug)]
pub struct LabelArgs {
    /// Where the store runs, for spreading replicas: zone=a,rack=7
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub labels: Vec<Label>,
}

/// How a member of placement's group reaches the others, and how the cluster begins.
#[derive(Args, Clone, Debug)]
pub struct MemberArgs {
    /// This member's name in --initial-cluster
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub name: String,

    /// Folder for everything this process keeps; the default is NAME.braid
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where other processes of the cluster are served
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = "http://localhost:2380")]
    pub listen_peer_urls: Vec<Url>,

    /// What other processes of the cluster dial; must be this member's URL in --initial-cluster
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub initial_advertise_peer_urls: Vec<Url>,

    /// All members that start together: NAME=URL,NAME=URL,...; the default is this member alone
    #[arg(long, value_name = "NAME=URL,...")]
    pub initial_cluster: Option<String>,

    /// "new" if this start may begin the cluster, "existing" if others have begun it
    #[arg(long, value_enum, default_value_t = ClusterState::New)]
    pub initial_cluster_state: ClusterState,

    /// Keeps clusters apart that would otherwise have the same members
    #[arg(long, value_name = "TOKEN", default_value = "braid-cluster")]
    pub initial_cluster_token: String,

    /// Milliseconds between a leader's heartbeats; braid has one value
    #[arg(long, value_name = "MS")]
    pub heartbeat_interval: Option<u64>,

    /// Milliseconds without a leader before an election; braid has one value
    #[arg(long, value_name = "MS")]
    pub election_timeout: Option<u64>,

    /// How the data begins.
    #[command(flatten)]
    pub bootstrap: BootstrapArgs,
}

/// How the data is cut when a cluster starts for the first time.
#[derive(Args, Clone, Debug)]
pub struct BootstrapArgs {
    /// Copies of every region: 1, 3 or 5; the default is 3, or 1 where a cluster of servers has fewer than three
    #[arg(long, value_name = "COUNT")]
    pub replicas: Option<u32>,

    /// Regions that an empty cluster starts with, cut evenly over keys of printable ASCII
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub initial_regions: Option<u32>,

    /// Keys at which an empty cluster is cut into regions, instead of --initial-regions; \xNN for other bytes
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub initial_split_keys: Vec<Key>,

    /// Regions that leases begin in, cut evenly over the ids that servers draw; all but the last are beside those of the keys
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub initial_lease_regions: u32,
}
