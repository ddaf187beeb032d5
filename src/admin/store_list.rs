//! `braid admin store list`.

use std::collections::BTreeMap;

use anyhow::Result;
use braid_proto::id::StoreId;
use braid_proto::pb::{StoreListRequest, StoreState};
use serde::Serialize;

use super::table::size;
use super::{Answer, Connection, Table};

/// All stores.
#[derive(Serialize)]
pub struct StoreList {
    stores: Vec<StoreView>,
}

#[derive(Serialize)]
struct StoreView {
    id: u64,
    state: String,
    peer_addr: String,
    labels: BTreeMap<String, String>,
    version: String,
    seconds_since_heartbeat: u64,
    regions: u32,
    leaders: u32,
    used_bytes: u64,
    available_bytes: u64,
    capacity_bytes: u64,
}

/// Asks for all stores.
pub async fn run(mut connection: Connection) -> Result<StoreList> {
    let request = connection.request(StoreListRequest {});
    let result = connection.client.store_list(request).await;
    let answer = connection.answer(result, |answer| answer.header.as_ref())?;
    let mut stores: Vec<StoreView> = answer.stores.into_iter().map(StoreView::from).collect();
    stores.sort_by_key(|store| store.id);
    Ok(StoreList { stores })
}

impl From<StoreState> for StoreView {
    fn from(state: StoreState) -> Self {
        let store = state.store.unwrap_or_default();
        let stats = state.stats.unwrap_or_default();
        Self {
            id: store.id,
            state: state.state,
            peer_addr: store.peer_addr,
            labels: store.labels.into_iter().collect(),
            version: store.version,
            seconds_since_heartbeat: state.seconds_since_heartbeat,
            regions: stats.regions,
            leaders: stats.leaders,
            used_bytes: stats.used_bytes,
            available_bytes: stats.available_bytes,
            capacity_bytes: stats.capacity_bytes,
        }
    }
}

impl Answer for StoreList {
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "STORE", "STATE", "HEARD", "ADDRESS", "REGIONS", "LEADERS", "USED", "FREE", "LABELS", "VERSION",
        ]);
        for store in &self.stores {
            let labels: Vec<String> = store.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            table.row(vec![
                StoreId(store.id).to_string(),
                store.state.clone(),
                format!("{} s ago", store.seconds_since_heartbeat),
                store.peer_addr.clone(),
                store.regions.to_string(),
                store.leaders.to_string(),
                size(store.used_bytes),
                size(store.available_bytes),
                labels.join(","),
                store.version.clone(),
            ]);
        }
        table
    }
}
