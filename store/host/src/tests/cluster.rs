//! Hosts on temporary folders, and what tests do with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use braid_proto::id::{ClusterId, RegionId, Term};
use braid_proto::pb::{Domain, Peer, Region, RegionEpoch};
use rocksdb::DB;
use tempfile::TempDir;

use super::kv::{CF, Kv};
use super::net::{Net, Port};
use crate::config::{HostConfig, Timing};
use crate::support::SupportConfig;
use crate::{Host, OpenError, Outcome, PeerHandle};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Node {
    pub host: Host,
    pub kv: Arc<Kv>,
}

pub struct Cluster {
    pub net: Arc<Net>,
    pub nodes: BTreeMap<u64, Node>,
    pub timing: Timing,
    pub keep_entries: u64,
    dir: TempDir,
}

/// Short ticks; support in proportion.
pub fn timing() -> Timing {
    Timing {
        tick: Duration::from_millis(25),
        // A leader must not lose its quorum because the machine is busy with other tests.
        election_ticks: 20,
        log_gc: Duration::from_millis(50),
        purge: Duration::from_millis(200),
        support: SupportConfig {
            period: Duration::from_millis(400),
            margin: Duration::from_millis(10),
            interval: Duration::from_millis(80),
        },
        ..Timing::default()
    }
}

/// A region with one peer on each of `hosts`.
pub fn region(id: u64, start: &str, end: &str, hosts: &[u64]) -> Region {
    Region {
        id,
        start: start.to_owned().into(),
        end: end.to_owned().into(),
        epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers: hosts.iter().map(|host| Peer::voter(id * 10 + host, *host)).collect(),
    }
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

impl Cluster {
    /// `hosts` hosts without regions.
    pub fn new(hosts: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster =
            Self { net: Arc::default(), nodes: BTreeMap::new(), timing: timing(), keep_entries: 10_000, dir };
        (1..=hosts).for_each(|host| cluster.start(host));
        cluster
    }

    /// Three hosts with one region over all keys.
    pub fn three() -> Self {
        let cluster = Self::new(3);
        cluster.create(&[region(1, "", "", &[1, 2, 3])]);
        cluster
    }

    pub fn create(&self, regions: &[Region]) {
        for (id, node) in &self.nodes {
            let own = regions.iter().filter(|region| region.peers.iter().any(|peer| peer.store_id == *id));
            node.host.create_regions(own.cloned().collect()).unwrap();
        }
    }

    pub fn folder(&self, host: u64) -> PathBuf {
        self.dir.path().join(host.to_string())
    }

    pub fn config(&self, host: u64) -> HostConfig {
        HostConfig {
            log_purge_bytes: 8 << 20,
            log_keep_entries: self.keep_entries,
            ..HostConfig::new(self.folder(host), Domain::Store, ClusterId(77), host)
        }
    }

    pub fn try_start(&mut self, host: u64) -> Result<(), OpenError> {
        let kv = Arc::new(Kv::default());
        let port = Arc::new(Port(Arc::clone(&self.net)));
        let opened = Host::open_with(self.config(host), self.timing, Arc::clone(&kv) as _, port)?;
        self.net.attach(host, opened.inbound());
        self.nodes.insert(host, Node { host: opened, kv });
        Ok(())
    }

    pub fn start(&mut self, host: u64) {
        self.try_start(host).unwrap();
    }

    pub fn stop(&mut self, host: u64) {
        self.net.detach(host);
        let node = self.nodes.remove(&host).unwrap();
        node.host.shutdown();
    }

    /// Whether `host` says so of its peer of region 1, or of what became of it.
    pub fn heard(&self, host: u64, event: &super::kv::Event) -> bool {
        self.nodes[&host].kv.regions.get(&1).is_some_and(|region| region.events.lock().contains(event))
    }

    pub fn handle(&self, host: u64, region: u64) -> Option<PeerHandle> {
        self.nodes.get(&host)?.host.handle(RegionId(region))
    }

    /// Waits for a leader of `region` that may serve (first entry applied), among `hosts`.
    pub fn leader_among(&self, region: u64, hosts: &[u64]) -> (u64, PeerHandle, Term) {
        eventually(&format!("leader of r{region} among {hosts:?}"), || {
            hosts.iter().find_map(|host| {
                let handle = self.handle(*host, region)?;
                let term = handle.term();
                let events = self.nodes[host].kv.regions.get(&region)?.events.lock().clone();
                let told = events.contains(&super::kv::Event::Leader(term.0));
                (handle.is_leader(term) && told).then_some((*host, handle, term))
            })
        })
    }

    pub fn leader(&self, region: u64) -> (u64, PeerHandle, Term) {
        let hosts: Vec<u64> = self.nodes.keys().copied().collect();
        self.leader_among(region, &hosts)
    }

    /// Puts through whoever leads, until it is applied.
    pub fn put(&self, region: u64, key: &str, value: &str) {
        let hosts: Vec<u64> = self.nodes.keys().copied().collect();
        self.put_among(region, key, value, &hosts);
    }

    pub fn put_among(&self, region: u64, key: &str, value: &str, hosts: &[u64]) {
        eventually(&format!("put {key}"), || {
            let (_, handle, term) = self.leader_among(region, hosts);
            (propose(&handle, term, key, value).recv().unwrap() == Outcome::Applied).then_some(())
        });
    }

    pub fn get(&self, host: u64, key: &str) -> Option<String> {
        get(&self.nodes[&host].host.db(), key)
    }

    pub fn await_value(&self, host: u64, key: &str, value: &str) {
        eventually(&format!("{key} = {value} on {host}"), || {
            (self.get(host, key).as_deref() == Some(value)).then_some(())
        });
    }
}

pub fn get(db: &DB, key: &str) -> Option<String> {
    let value = db.get_cf(db.cf_handle(CF).unwrap(), key).unwrap()?;
    Some(String::from_utf8(value).unwrap())
}

/// Proposes and returns where the outcome arrives.
pub fn propose(handle: &PeerHandle, term: Term, key: &str, value: &str) -> mpsc::Receiver<Outcome> {
    let (tell, told) = mpsc::channel();
    handle.propose(term, format!("{key}={value}").into(), Box::new(move |outcome| _ = tell.send(outcome)));
    told
}
