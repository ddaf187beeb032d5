//! Tells placement once a second what this store is and leads, and learns the other stores' addresses.

use std::sync::Arc;
use std::time::Duration;

use braid_host::Host;
use braid_host::transport::AddressBook;
use braid_placement_client::PlacementClient;
use braid_proto::id::{ClusterId, PeerId, RegionId, StoreId};
use braid_proto::pb::{Domain, LonelyPeer, RegionEpoch, Store, StoreHeartbeatRequest, StoreStats};
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use crate::compaction::{Compaction, Heard};
use crate::engine;
use crate::machine::Regions;
use crate::region::Shared;
use crate::reports::Reports;

/// Between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one heartbeat looks for a placement leader.
const PATIENCE: Duration = Duration::from_secs(3);

/// Lonely peers that one heartbeat names; the others have their turn once these are told what they are.
const LONELY_MAX: usize = 64;
/// Only one heartbeat of so many looks for them: it is a look at every peer.
const LONELY_BEATS: u64 = 4;

/// What the heartbeat task needs.
pub struct Heartbeat {
    /// Cluster this store belongs to.
    pub cluster_id: ClusterId,
    /// This store.
    pub store_id: StoreId,
    /// Its raft host.
    pub host: Arc<Host>,
    /// Its regions.
    pub regions: Arc<Regions>,
    /// Numbers and space.
    pub shared: Arc<Shared>,
    /// Drops compacted history.
    pub compaction: Arc<Compaction>,
    /// Notified when placement should hear of this store before its time.
    pub news: Arc<Notify>,
    /// Why placement does not want this store any more; empty: it does.
    pub refused: watch::Sender<String>,
    /// Whom to tell.
    pub placement: Arc<PlacementClient>,
    /// Where the addresses of other stores go.
    pub addresses: AddressBook,
    /// What placement knows of the regions.
    pub reports: Reports,
    /// Heartbeats that were tried.
    pub beats: u64,
}

impl Heartbeat {
    /// Beats until `stop` says so.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut full = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.news.notified() => {}
                _ = stop.changed() => return,
            }
            full = tokio::select! {
                full = self.beat(full) => full,
                // Without a placement leader a heartbeat takes seconds; a stop does not wait for it.
                _ = stop.changed() => return,
            };
        }
    }

    /// One heartbeat. Returns whether the next one must be full.
    async fn beat(&mut self, full: bool) -> bool {
        self.shared.space.refresh(self.host.data_bytes() + engine::memtable_bytes(&self.host.db()));
        // If this does not arrive, the next one is full.
        let leaders = self.reports.gather(&self.regions, &self.shared, full);
        let stats = self.stats();
        self.beats += 1;
        let lonely = if self.beats.is_multiple_of(LONELY_BEATS) { self.lonely() } else { Vec::new() };
        let request = StoreHeartbeatRequest {
            cluster_id: self.cluster_id.0,
            store_id: self.store_id.0,
            incarnation: self.host.incarnation().0,
            stats: Some(stats),
            leaders,
            full,
            dropped_below: self.compaction.dropped_below(),
            lonely,
        };
        match self.placement.store_heartbeat(request, tokio::time::Instant::now() + PATIENCE).await {
            Ok(answer) => {
                self.learn(&answer.stores);
                self.destroy(&answer.gone);
                self.look(answer.compacted, answer.drop_below);
                if !answer.failed.is_empty() {
                    tracing::error!(store = %self.store_id, why = answer.failed, "placement refuses this store");
                    self.refused.send_replace(answer.failed);
                }
                answer.want_full
            }
            Err(error) => {
                tracing::warn!(store = %self.store_id, %error, "placement did not take the heartbeat");
                self.look(0, 0);
                true
            }
        }
    }

    fn stats(&self) -> StoreStats {
        let leaders = self.reports.led();
        let (capacity_bytes, available_bytes, used_bytes) = self.shared.space.sizes();
        let regions = self.regions.len() as u32;
        metrics::gauge!("braid_store_regions").set(f64::from(regions));
        metrics::gauge!("braid_store_leaders").set(leaders as f64);
        metrics::gauge!("braid_store_leases").set(self.shared.busy.leases() as f64);
        StoreStats {
            capacity_bytes,
            available_bytes,
            used_bytes,
            regions,
            leaders: leaders as u32,
            heard_revision: self.shared.numbers.heard().1,
        }
    }

    /// Peers that may have been removed while they were away.
    fn lonely(&self) -> Vec<LonelyPeer> {
        let lonely = self.host.lonely(LONELY_MAX).into_iter();
        let told = |(region, peer, epoch): (RegionId, PeerId, RegionEpoch)| LonelyPeer {
            region_id: region.0,
            peer_id: peer.0,
            epoch: Some(epoch),
        };
        lonely.map(told).collect()
    }

    /// Destroys peers that belong to no region any more.
    fn destroy(&self, gone: &[LonelyPeer]) {
        for peer in gone {
            let (region, id) = (RegionId(peer.region_id), PeerId(peer.peer_id));
            if self.host.destroy_peer(region, id, peer.epoch.unwrap_or_default()) {
                tracing::info!(%region, peer = %id, "destroyed: placement knows the region without this peer");
            }
        }
    }

    /// Passes on what is compacted: a busy store hears it first from the sequencer, an idle one only from placement.
    fn look(&self, compacted: i64, drop_below: i64) {
        let numbers = &self.shared.numbers;
        let compacted = compacted.max(numbers.compacted());
        self.compaction.look(Heard { compacted, drop_below, newest: numbers.heard().1 });
    }

    fn learn(&self, stores: &[Store]) {
        for store in stores.iter().filter(|store| store.id != self.store_id.0) {
            self.addresses.set(Domain::Store, store.id, &store.peer_addr);
        }
    }
}
