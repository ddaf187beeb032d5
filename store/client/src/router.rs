//! The route table, kept up to date: from placement when a key is unknown, from what stores say in refusals otherwise.
//!
//! Only one question to placement is under way at a time. Whoever comes meanwhile waits for it, and asks again only if
//! its key was not among the answers: a cold or stale cache costs placement one question, not one for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_placement_client::{ClientError, PlacementClient};
use braid_proto::id::StoreId;
use braid_proto::key::KeyRange;
use braid_proto::pb::{Region, RouteRequest};
use bytes::Bytes;
use parking_lot::RwLock;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::route::{Pieces, Route, RouteTable};
use crate::stores::Stores;

/// Regions asked for at once: a page of the map costs placement little more than one region of it.
const ROUTES_PAGE: u32 = 256;

/// Why a key has no route.
#[derive(Debug, Error)]
pub enum NoRoute {
    /// Placement did not answer in time.
    #[error(transparent)]
    Placement(#[from] ClientError),
    /// The cluster is not bootstrapped.
    #[error("the cluster is not ready: {0}")]
    NotReady(String),
    /// Placement knows no region for the key: it has not heard of a split's outcome yet.
    #[error("placement knows no region for the key")]
    Gap,
    /// Others were served first, until the deadline.
    #[error("too many requests wait for placement")]
    Queue,
}

/// The route table and the one who fills it.
pub struct Router {
    placement: Arc<PlacementClient>,
    stores: Arc<Stores>,
    table: RwLock<RouteTable>,
    /// Questions to placement that were answered.
    answered: AtomicU64,
    /// Held by whoever asks placement; what the last answer covered.
    asking: Mutex<KeyRange>,
}

impl Router {
    /// An empty table.
    pub fn new(placement: Arc<PlacementClient>, stores: Arc<Stores>) -> Self {
        Self { placement, stores, table: RwLock::default(), answered: AtomicU64::new(0), asking: Mutex::default() }
    }

    /// The region that holds `key`, an internal key.
    ///
    /// # Errors
    /// It is not known, and placement did not say before the deadline.
    pub async fn find(&self, key: &[u8], deadline: Instant) -> Result<Arc<Route>, NoRoute> {
        if let Some(route) = self.known(key) {
            return Ok(route);
        }
        self.refresh(key, deadline).await?;
        self.known(key).ok_or(NoRoute::Gap)
    }

    /// The regions of `range` with their parts of it.
    ///
    /// # Errors
    /// Some are not known, and placement did not say before the deadline.
    pub async fn pieces(&self, range: &KeyRange, deadline: Instant) -> Result<Vec<(Arc<Route>, KeyRange)>, NoRoute> {
        let mut asked: Option<Bytes> = None;
        loop {
            let missing = match self.table.read().pieces(range) {
                Pieces::Known(pieces) => return Ok(pieces),
                Pieces::Unknown(missing) => missing,
            };
            // Each answer must take us further along the range.
            if asked.is_some_and(|asked| missing <= asked) {
                return Err(NoRoute::Gap);
            }
            self.refresh(&missing, deadline).await?;
            asked = Some(missing);
        }
    }

    /// Whether `route` is still what is known about `key`.
    pub fn is_current(&self, route: &Arc<Route>, key: &[u8]) -> bool {
        self.table.read().find(key).is_some_and(|known| Arc::ptr_eq(known, route))
    }

    /// Takes in regions that a store has told us.
    pub fn learn(&self, regions: Vec<Region>) {
        let mut table = self.table.write();
        for region in regions {
            table.learn(region, StoreId::INVALID);
        }
    }

    /// Asks placement for the region of `key` and those after it, unless someone else just has.
    ///
    /// # Errors
    /// Placement did not answer before the deadline, or has no region for the key.
    pub async fn refresh(&self, key: &[u8], deadline: Instant) -> Result<(), NoRoute> {
        let seen = self.answered.load(Ordering::Acquire);
        let mut covered = timeout_at(deadline, self.asking.lock()).await.map_err(|_| NoRoute::Queue)?;
        if self.answered.load(Ordering::Acquire) != seen && covered.contains(key) {
            return Ok(());
        }
        let request = RouteRequest { key: Bytes::copy_from_slice(key), limit: ROUTES_PAGE };
        let answer = self.placement.get_routes(request, deadline).await?;
        metrics::counter!("braid_proxy_route_refreshes_total").increment(1);
        if !answer.not_ready.is_empty() {
            return Err(NoRoute::NotReady(answer.not_ready));
        }
        self.stores.learn(&answer.stores);
        let last = answer.routes.last().and_then(|route| route.region.as_ref()).ok_or(NoRoute::Gap)?;
        *covered = KeyRange { start: Bytes::copy_from_slice(key), end: last.end.clone() };
        let mut table = self.table.write();
        for route in answer.routes {
            table.learn(route.region.unwrap_or_default(), StoreId(route.leader_store));
        }
        drop(table);
        self.answered.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn known(&self, key: &[u8]) -> Option<Arc<Route>> {
        self.table.read().find(key).cloned()
    }
}
