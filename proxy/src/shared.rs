//! What all services of a proxy share.

use std::sync::Arc;
use std::time::Duration;

use braid_placement_client::{Numbers, PlacementClient};
use braid_proto::etcd::etcdserverpb::ResponseHeader;
use tonic::metadata::MetadataMap;

use crate::config::ProxyConfig;
use crate::in_flight::InFlight;
use crate::presence::Presence;
use braid_store_client::Regions;
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::locks::LockTerms;

/// How long an answer that must come even without a sequencer looks for the current revision.
const REVISION_PATIENCE: Duration = Duration::from_millis(500);

/// What all services of a proxy share.
pub struct Shared {
    /// How the proxy is set up.
    pub config: ProxyConfig,
    /// The regions.
    pub regions: Arc<Regions>,
    /// The sequencer's client.
    pub numbers: Arc<Numbers>,
    /// Placement's client.
    pub placement: Arc<PlacementClient>,
    /// The term in which a region's leader has last taken a lock of ours, as far as we have heard.
    pub lock_terms: LockTerms,
    /// What placement says about proxies and itself.
    pub presence: Presence,
    /// Requests under way.
    pub in_flight: Arc<InFlight>,
}

impl Shared {
    /// How long a request that has just arrived is tried.
    pub fn patience(&self, metadata: &MetadataMap) -> Patience {
        Patience::of(metadata, self.config.request_timeout)
    }

    /// The header of an answer of revision `revision`.
    pub fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.config.cluster_id.0,
            member_id: self.config.member_id,
            revision,
            raft_term: self.presence.raft_term(),
        })
    }

    /// Fills what a store has left open in a header.
    pub fn complete(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        self.header(header.unwrap_or_default().revision)
    }

    /// The current revision, or without a sequencer the newest that this process has heard of.
    pub async fn revision(&self) -> i64 {
        match bound::take(&self.numbers, Patience::within(REVISION_PATIENCE)).await {
            Ok(bound) => bound.revision,
            Err(_) => self.numbers.heard().1,
        }
    }
}
