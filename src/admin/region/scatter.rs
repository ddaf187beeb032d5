//! `braid admin region scatter`.

use anyhow::Result;
use braid_proto::pb::ScatterRequest;
use serde::Serialize;

use super::list::bounds;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::admin::table::count;
use crate::args::admin::region::ScatterArgs;

/// How many regions are going to be scattered.
#[derive(Serialize)]
pub struct Scatter {
    regions: u32,
}

/// Asks for what `args` name to be scattered.
pub async fn run(connection: &mut Connection, args: ScatterArgs) -> Result<Scatter> {
    let (start, end) = bounds(args.start.as_ref(), args.end.as_ref())?;
    let region_ids = args.ids.iter().map(|id| id.0).collect();
    let answer = connection.order(ScatterRequest { start, end, region_ids }, "scatter").await?;
    Ok(Scatter { regions: answer.regions })
}

impl Answer for Scatter {
    fn text(&self) -> String {
        let regions = count(self.regions.into(), "region");
        format!("{regions} to be scattered; `braid admin rebalance` follows it\n")
    }
}
