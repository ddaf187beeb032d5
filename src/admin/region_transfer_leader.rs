//! `braid admin region transfer-leader --region ID --to-store ID`.

use anyhow::{Result, bail};
use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::AdminTransferLeaderRequest;
use serde::Serialize;

use super::{Answer, Connection, Table};

/// Who leads now.
#[derive(Serialize)]
pub struct TransferLeader {
    region: u64,
    leader_store: u64,
}

/// Makes the replica of `region` on `store` its leader.
pub async fn run(mut connection: Connection, region: u64, store: u64) -> Result<TransferLeader> {
    let request = connection.request(AdminTransferLeaderRequest { region_id: region, to_store: store });
    let result = connection.client.region_transfer_leader(request).await;
    let answer = connection.answer(result, |answer| answer.header.as_ref())?;
    if !answer.failed.is_empty() {
        bail!("cannot make {} lead {}: {}", StoreId(store), RegionId(region), answer.failed);
    }
    Ok(TransferLeader { region, leader_store: store })
}

impl Answer for TransferLeader {
    fn table(&self) -> Table {
        let mut table = Table::new(&["REGION", "LEADER"]);
        table.row(vec![RegionId(self.region).to_string(), StoreId(self.leader_store).to_string()]);
        table
    }
}
