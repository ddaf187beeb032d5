//! `braid admin region list`.

use anyhow::Result;
use braid_proto::pb::RegionListRequest;
use serde::Serialize;

use super::region_view::RegionView;
use super::{Answer, Connection, Table};

/// All regions in key order.
#[derive(Serialize)]
pub struct RegionList {
    regions: Vec<RegionView>,
}

/// Asks for all regions.
pub async fn run(mut connection: Connection) -> Result<RegionList> {
    let request = connection.request(RegionListRequest::default());
    let result = connection.client.region_list(request).await;
    let answer = connection.answer(result, |answer| answer.header.as_ref())?;
    Ok(RegionList { regions: answer.regions.iter().map(RegionView::from).collect() })
}

impl Answer for RegionList {
    fn table(&self) -> Table {
        let mut table = RegionView::table();
        self.regions.iter().for_each(|region| region.row(&mut table));
        table
    }
}
