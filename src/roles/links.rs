//! How a process reaches the rest of the cluster: placement, the sequencer, the regions.

use std::sync::Arc;

use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::id::ClusterId;
use braid_proto::service::NumberService;
use braid_store_client::Regions;

use super::waiting::drawn_id;

/// What every part of a process shares.
pub struct Links {
    /// Placement.
    pub placement: Arc<PlacementClient>,
    /// The sequencer.
    pub numbers: Arc<Numbers>,
    /// The regions; a store of this process adds itself when it opens.
    pub regions: Arc<Regions>,
}

impl Links {
    /// Links into `cluster_id`. `member`: the sequencer of this process's placement member, if it has one.
    pub fn new(cluster_id: ClusterId, placement: Arc<PlacementClient>, member: Option<Arc<dyn NumberService>>) -> Self {
        let numbers = Numbers::start(NumbersConfig::new(drawn_id(), cluster_id.0), Arc::clone(&placement), member);
        let regions = Regions::connect(cluster_id, Arc::clone(&placement));
        Self { placement, numbers, regions }
    }
}
