//! Raft snapshots between real hosts: records of leases come with them, and the index of their keys is there afterwards.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use braid_host::config::{HostConfig, Timing};
use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, TransportConfig};
use braid_host::{DataRange, Entry, Host, Outcome, PeerHandle, RegionMachine, SplitSpec, StateMachine};
use braid_proto::id::{ClusterId, RegionId, Term};
use braid_proto::pb::{Domain, LeaseRow, Peer, RegionEntry, StoredLease};
use parking_lot::Mutex;
use prost::Message;
use rocksdb::ColumnFamilyDescriptor;
use tokio::runtime::Runtime;

use super::attached::{Leased, agree, key, rows};
use super::*;

const CLUSTER: ClusterId = ClusterId(77);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const KEPT_ENTRIES: u64 = 20;

/// The engine as a state machine: what is proposed is applied.
#[derive(Default)]
struct Machine {
    replicas: Mutex<HashMap<u64, Arc<Replica>>>,
    /// Raft snapshots that were taken in.
    taken: AtomicUsize,
}

struct Replica(RegionData);

impl StateMachine for Machine {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        column_families(&EngineOptions { block_cache_bytes: 4 << 20, memtable_bytes: 1 << 20 }, &Boundary::default())
    }

    fn open_region(&self, db: Arc<DB>, peer: PeerHandle) -> Arc<dyn RegionMachine> {
        let region = peer.region();
        let replica = Arc::new(Replica(RegionData::open(db, &region, Arc::default())));
        self.replicas.lock().insert(region.id, Arc::clone(&replica));
        replica
    }

    fn data_ranges(&self, region: &Region) -> Vec<DataRange> {
        data_ranges(region)
    }

    fn before_clear(&self, db: &DB, region: &Region) -> Result<(), String> {
        forget(db, region).map_err(|damage| damage.0)
    }

    fn on_snapshot(&self, db: &DB, region: &Region) -> Result<(), String> {
        self.taken.fetch_add(1, Ordering::AcqRel);
        collect(db, region).map_err(|damage| damage.0)
    }
}

impl RegionMachine for Replica {
    fn apply(&self, entries: &[Entry], batch: WriteBatch) {
        let decoded = entries.iter().map(|entry| RegionEntry::decode(entry.data.clone()).expect("an entry"));
        let (mut txns, mut leases) = (Vec::new(), Vec::new());
        for entry in decoded {
            txns.extend(entry.txns);
            leases.extend(entry.leases);
        }
        self.0.apply(&txns, &[], &leases, batch).expect("applied");
    }

    fn on_leader(&self, _: Term) {}

    fn on_follower(&self, _: Term, _: Option<Peer>) {}

    fn on_region(&self, region: &Region) {
        self.0.on_region(region);
    }

    fn approximate_size(&self) -> (u64, u64) {
        self.0.approximate_size()
    }
}

fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

struct Hosts {
    open: BTreeMap<u64, (Host, Arc<Machine>)>,
    registry: LocalRegistry,
    runtime: Runtime,
    dir: TempDir,
    model: Leased,
    leases: BTreeMap<i64, StoredLease>,
    random: Random,
}

impl Hosts {
    fn start(&mut self, id: u64) {
        let config = HostConfig {
            log_keep_entries: KEPT_ENTRIES,
            log_purge_bytes: 8 << 20,
            ..HostConfig::new(self.dir.path().join(id.to_string()), Domain::Store, CLUSTER, id)
        };
        let timing = Timing {
            tick: Duration::from_millis(25),
            // A leader must not lose its quorum because the machine is busy with other tests.
            election_ticks: 20,
            log_gc: Duration::from_millis(20),
            ..Timing::default()
        };
        let machine = Arc::new(Machine::default());
        let runtime = self.runtime.handle().clone();
        let (book, local) = (AddressBook::default(), self.registry.clone());
        let transport = GrpcTransport::new(runtime, CLUSTER, book, local, TransportConfig::default());
        let host = Host::open_with(config, timing, Arc::clone(&machine) as _, Arc::new(transport)).expect("a host");
        self.registry.register(Domain::Store, id, host.inbound());
        self.open.insert(id, (host, machine));
    }

    fn stop(&mut self, id: u64) {
        self.registry.unregister(Domain::Store, id);
        let (host, _) = self.open.remove(&id).expect("an open host");
        host.shutdown();
    }

    /// Asks whoever leads `region` until it is done.
    fn lead(&self, region: u64, ask: &dyn Fn(&PeerHandle, Term, mpsc::Sender<Outcome>)) {
        eventually("a leader does it", || {
            let handles = self.open.values().filter_map(|(host, _)| host.handle(RegionId(region)));
            let (handle, term) =
                handles.map(|handle| (handle.clone(), handle.term())).find(|(handle, term)| handle.is_leader(*term))?;
            let (tell, told) = mpsc::channel();
            ask(&handle, term, tell);
            match told.recv().expect("an outcome") {
                Outcome::Applied => Some(()),
                Outcome::Dropped => None,
                Outcome::Unknown => panic!("no peer is destroyed here"),
            }
        });
    }

    /// An entry with changes inside `side`, and with the record of a lease that lies there.
    fn write(&mut self, side: &Region) {
        let txn = self.model.txn(&mut self.random, &side.range());
        let id = 1 + self.random.below(9) as i64;
        let record = (self.random.below(3) > 0).then(|| StoredLease { ttl: txn.revision, ..Default::default() });
        let row = LeaseRow { id, lease: record.clone() };
        let here = side.range().contains(&braid_proto::key::lease_key(id));
        if here {
            match record {
                Some(record) => self.leases.insert(id, record),
                None => self.leases.remove(&id),
            };
        }
        let leases = if here { vec![row] } else { Vec::new() };
        let entry = RegionEntry { txns: vec![txn], leases, ..Default::default() };
        let data = Bytes::from(entry.encode_to_vec());
        self.lead(side.id, &|handle, term, tell| {
            handle.propose(term, data.clone(), Box::new(move |outcome| _ = tell.send(outcome)));
        });
    }

    /// Everything about leases is on `host` once it has applied what the others have.
    fn check(&mut self, host: u64, sides: &[&Region]) {
        for side in sides {
            let applied = |host: &Host| Some(host.handle(side.region_id())?.applied_index());
            let newest = self.open.values().filter_map(|(host, _)| applied(host)).max().expect("a replica");
            eventually("the host catches up", || {
                let (host, machine) = &self.open[&host];
                let handle = host.handle(side.region_id())?;
                // Nothing is being installed, and what was is open.
                let there = handle.replacements().is_some() && handle.applied_index() >= newest;
                let replica = machine.replicas.lock().get(&side.id).cloned().filter(|_| there)?;
                (*replica.0.snapshot().expect("readable").range() == side.range()).then_some(())
            });
        }
        let (open, machine) = &self.open[&host];
        let mut found = Vec::new();
        for side in sides {
            let replica = Arc::clone(&machine.replicas.lock()[&side.id]);
            agree(&replica.0, side, &self.model, &mut self.random);
            found.extend(replica.0.leases().expect("readable"));
        }
        assert_eq!(rows(&open.db()), self.model.rows(), "host {host}");
        assert_eq!(found, self.leases.clone().into_iter().collect::<Vec<_>>(), "host {host}");
    }
}

#[test]
fn leases_and_the_index_of_their_keys_come_through_raft_snapshots() {
    let peers = [1, 2, 3].map(|host| Peer::voter(70 + host, host)).to_vec();
    let whole = Region { peers, ..region() };
    let mut hosts = Hosts {
        open: BTreeMap::new(),
        registry: LocalRegistry::default(),
        runtime: Runtime::new().expect("a runtime"),
        dir: tempfile::tempdir().expect("a temporary folder"),
        model: Leased { revision: 1, ..Default::default() },
        leases: BTreeMap::new(),
        random: Random(0x1ea5e),
    };
    // The third was never told of the region: it gets all of it by snapshot.
    for host in [1, 2] {
        hosts.start(host);
        hosts.open[&host].0.create_regions(vec![whole.clone()]).expect("created");
    }
    for _ in 0..60 {
        hosts.write(&whole);
    }
    hosts.start(3);
    hosts.check(3, &[&whole]);
    assert!(hosts.open[&3].1.taken.load(Ordering::Acquire) > 0);

    // It is away while the region is split and changes by more than the log holds: what it has goes, and less comes.
    hosts.stop(3);
    let (left, right) = (Region { end: key(60), ..whole.clone() }, Region { id: 8, start: key(60), ..whole });
    let spec = SplitSpec { key: key(60), child_id: RegionId(8), child_peer_ids: vec![81, 82, 83] };
    hosts.lead(7, &|handle, term, tell| {
        handle.propose_split(term, spec.clone(), Box::new(move |outcome| _ = tell.send(outcome)));
    });
    let mut attempts = 0..20;
    loop {
        for _ in 0..3 * KEPT_ENTRIES {
            hosts.write(&left);
            hosts.write(&right);
        }
        hosts.start(3);
        hosts.check(3, &[&left, &right]);
        if hosts.open[&3].1.taken.load(Ordering::Acquire) > 0 {
            break;
        }
        assert!(attempts.next().is_some(), "the log is never truncated");
        hosts.stop(3);
    }
    // As if it had always been there, also after a restart.
    for _ in 0..20 {
        hosts.write(&left);
        hosts.write(&right);
    }
    for host in 1..=3 {
        hosts.check(host, &[&left, &right]);
    }
    hosts.stop(3);
    hosts.start(3);
    hosts.check(3, &[&left, &right]);
    (1..=3).for_each(|host| hosts.stop(host));
}
