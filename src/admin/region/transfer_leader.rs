//! `braid admin region transfer-leader ID --to STORE`.

use anyhow::Result;
use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::AdminTransferLeaderRequest;
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::admin::table::Table;

/// Who leads now.
#[derive(Serialize)]
pub struct TransferLeader {
    region: u64,
    leader_store: u64,
}

/// Makes the replica of `region` on `store` its leader.
pub async fn run(connection: &mut Connection, region: u64, store: u64) -> Result<TransferLeader> {
    let request = AdminTransferLeaderRequest { region_id: region, to_store: store };
    connection.order(request, format_args!("make {} lead {}", StoreId(store), RegionId(region))).await?;
    Ok(TransferLeader { region, leader_store: store })
}

impl Answer for TransferLeader {
    fn text(&self) -> String {
        let mut table = Table::new(&["REGION", "LEADER"]);
        table.row(vec![RegionId(self.region).to_string(), StoreId(self.leader_store).to_string()]);
        table.to_string()
    }
}
