//! The data regions as a state machine of the host: which column families, which data, one [`RegionPeer`] a region.

use std::sync::Arc;

use braid_host::{DataRange, PeerHandle, RegionMachine, StateMachine};
use braid_proto::id::RegionId;
use braid_proto::pb::{Refusal, Region};
use rocksdb::{ColumnFamilyDescriptor, DB, WriteBatch};

use crate::engine;
use crate::region::{Peers, RegionPeer, Shared};
use crate::watch::Publisher;

/// Every region peer of this store, by region.
pub struct Regions {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    engine: engine::EngineOptions,
}

impl Regions {
    /// No regions yet: the host opens them.
    pub fn new(shared: Arc<Shared>, engine: engine::EngineOptions) -> Self {
        Self { shared, peers: Arc::default(), engine }
    }

    /// The peer of `region` on this store.
    pub fn get(&self, region: RegionId) -> Option<Arc<RegionPeer>> {
        self.peers.get(&region).map(|peer| Arc::clone(&peer))
    }

    /// What is told about a region that has no peer here: where its keys are, if it went into another one.
    pub fn missing(&self, region: RegionId) -> Refusal {
        self.shared.ended.refusal(&self.peers, region)
    }

    /// What tells whoever follows them.
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.shared.publisher
    }

    /// How many peers this store has.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// The peers for which time goes on.
    pub fn ticking(&self) -> Vec<Arc<RegionPeer>> {
        self.shared.busy.ticking().into_iter().filter_map(|region| self.get(region)).collect()
    }

    /// All peers of this store, in no order.
    pub fn all(&self) -> Vec<Arc<RegionPeer>> {
        self.peers.iter().map(|peer| Arc::clone(&peer)).collect()
    }
}

impl StateMachine for Regions {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        engine::column_families(&self.engine, &self.shared.boundary)
    }

    fn open_region(&self, db: Arc<DB>, peer: PeerHandle) -> Arc<dyn RegionMachine> {
        let region = RegionPeer::open(db, peer, Arc::clone(&self.shared), &self.peers);
        self.peers.insert(region.id(), Arc::clone(&region));
        region
    }

    fn data_ranges(&self, region: &Region) -> Vec<DataRange> {
        engine::data_ranges(region)
    }

    fn opened(&self, db: &Arc<DB>) -> Result<(), String> {
        self.shared.boundary.open(db).map_err(|damage| damage.0)
    }

    fn snapshot_mark(&self) -> i64 {
        self.shared.boundary.get()
    }

    fn on_snapshot_mark(&self, mark: i64) -> Result<(), String> {
        self.shared.boundary.raise(mark).map(drop).map_err(|damage| damage.0)
    }

    fn merge(&self, db: &DB, target: &Region, source: &Region, batch: &mut WriteBatch) -> Result<(), String> {
        engine::merge(db, &self.shared.boundary, target, source, batch).map_err(|damage| damage.0)
    }

    fn before_clear(&self, db: &DB, region: &Region) -> Result<(), String> {
        engine::forget(db, region).map_err(|damage| damage.0)
    }

    fn on_snapshot(&self, db: &DB, region: &Region) -> Result<(), String> {
        engine::collect(db, region).map_err(|damage| damage.0)
    }
}
