//! What a host needs to know to start, and the bounds that keep its parts consistent with each other.

use std::path::PathBuf;
use std::time::Duration;

use braid_proto::id::ClusterId;
use braid_proto::pb::Domain;

use crate::support::SupportConfig;

/// Bytes of raft snapshots that a host writes in a second, and sends in a second: 64 MiB in two seconds.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 32 << 20;

/// Length of one raft tick. Heartbeats and elections are counted in ticks; etcd's 100 ms heartbeat is one tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Ticks between a leader's heartbeats.
pub const HEARTBEAT_TICKS: usize = 1;
/// Ticks without a leader before a follower campaigns (raft adds up to as much again at random).
pub const ELECTION_TICKS: usize = 10;
/// How long a store promises to support another one after it received the request (rule O8). The margin of two ticks
/// below the election timeout covers tick granularity and clock rates.
pub const SUPPORT: Duration = Duration::from_millis(800);
/// How often support is asked for. Three requests fit into one support period, so one lost message costs nothing.
pub const SUPPORT_INTERVAL: Duration = Duration::from_millis(250);
/// What a holder of support takes off its end, for clocks that run at different rates (1 %) and for timer slack.
pub const SUPPORT_MARGIN: Duration = Duration::from_millis(20);

const _: () = assert!(SUPPORT.as_millis() + 2 * TICK.as_millis() <= ELECTION_TICKS as u128 * TICK.as_millis());
const _: () = assert!(SUPPORT_INTERVAL.as_millis() * 3 <= SUPPORT.as_millis());

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Folder of this host; `log/` (raft-engine), `kv/` (RocksDB) and `snap/` are made in it.
    pub dir: PathBuf,
    /// Which kind of host it is; frames carry it.
    pub domain: Domain,
    /// Cluster it belongs to; frames of another cluster are refused.
    pub cluster_id: ClusterId,
    /// Store id, or member id of a placement member: `Peer::store_id` of its peers.
    pub host_id: u64,
    /// Incarnation of the first start with an empty folder, at least 1; each start counts one up. Others ignore a host that comes
    /// with a lower one than before, so a host that may lose its folder and keep its id must begin higher than it ended.
    pub first_incarnation: u64,
    /// Raft workers. Each region belongs to one.
    pub workers: usize,
    /// RocksDB block cache in bytes. The machine's column families come with the machine's own options; the host takes
    /// at most 8 MiB for its own.
    pub block_cache_bytes: usize,
    /// RocksDB memtable size in bytes, likewise; also bounds the write-ahead log (two of them).
    pub memtable_bytes: usize,
    /// Bytes of raft log after which old files are purged (raft-engine `purge_threshold`).
    pub log_purge_bytes: u64,
    /// Entries of a region's log that are kept for followers that lag behind; beyond it they take a snapshot.
    pub log_keep_entries: u64,
    /// Bytes of a region's log, likewise.
    pub log_keep_bytes: u64,
    /// Bytes of raft snapshots written in a second, those for other hosts and those from them; 0: as fast as it goes. What is
    /// sent has a limit of its own ([`crate::transport::TransportConfig`]).
    pub snapshot_bytes_per_second: u64,
}

impl HostConfig {
    /// A host in `dir` with the bounds that suit a small cluster; everything can be changed afterwards.
    pub fn new(dir: PathBuf, domain: Domain, cluster_id: ClusterId, host_id: u64) -> Self {
        Self {
            dir,
            domain,
            cluster_id,
            host_id,
            first_incarnation: 1,
            workers: 1,
            block_cache_bytes: 64 << 20,
            memtable_bytes: 32 << 20,
            log_purge_bytes: 1 << 30,
            log_keep_entries: 20_000,
            log_keep_bytes: 256 << 20,
            snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
        }
    }
}

/// The clockwork of a host. The defaults are the constants above; tests shorten the ticks.
///
/// Ticks and support may be shortened independently: what rests on support ([`Timing::quiet`]) follows the longer one.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Length of one raft tick.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before a follower campaigns.
    pub election_ticks: usize,
    /// How often a leader considers truncating its region's log.
    pub log_gc: Duration,
    /// How often truncated log is given back to the disk.
    pub purge: Duration,
    /// Silence after which a peer is reported as down.
    pub peer_down: Duration,
    /// Time without a leader after which a peer is no longer sure that it is one.
    pub lonely: Duration,
    /// How long hosts support each other, and how often they ask.
    pub support: SupportConfig,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tick: TICK,
            heartbeat_ticks: HEARTBEAT_TICKS,
            election_ticks: ELECTION_TICKS,
            log_gc: Duration::from_secs(5),
            purge: Duration::from_secs(10),
            peer_down: Duration::from_secs(10),
            lonely: Duration::from_secs(60),
            support: SupportConfig::default(),
        }
    }
}

impl Timing {
    /// Length of the shortest election timeout.
    pub fn election(&self) -> Duration {
        self.tick * self.election_ticks as u32
    }

    /// How long a peer keeps still where a promise made elsewhere or before a restart may stand: after a process start
    /// (no votes, no campaign) and after a split (no campaign). Longer than any promise, by a quarter for clocks.
    pub fn quiet(&self) -> Duration {
        self.election().max(self.support.period * 5 / 4)
    }
}
