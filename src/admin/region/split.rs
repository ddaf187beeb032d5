//! `braid admin region split`: at a key, or where a region's size or load has its middle.

use std::time::Duration;

use anyhow::{Context as _, Result};
use braid_proto::id::RegionId;
use braid_proto::key::user_key;
use braid_proto::pb::AdminSplitRequest;
use braid_proto::pb::split_region_request::By as SplitBy;
use serde::Serialize;

use super::view::RegionShape;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::args::admin::region::{By, SplitArgs};
use crate::args::types::{Id, Key};
use crate::key_text::escape;

/// A split by size or load is waited for by placement itself, and not longer than this.
const SPLIT_PATIENCE: Duration = Duration::from_secs(40);

/// The two regions that came of one.
#[derive(Serialize)]
pub struct RegionSplit {
    left: RegionShape,
    right: RegionShape,
}

/// Splits what `args` name.
pub async fn run(connection: &mut Connection, args: SplitArgs) -> Result<RegionSplit> {
    let (request, what) = order(args).context("give a key, or a region and what it is to be split by")?;
    if request.key.is_empty() {
        connection.be_patient(SPLIT_PATIENCE);
    }
    let answer = connection.order(request, what).await?;
    let part = |region: Option<_>| region.as_ref().map(RegionShape::from).context("the answer lacks a region");
    Ok(RegionSplit { left: part(answer.left)?, right: part(answer.right)? })
}

/// The request, and what it is about.
fn order(args: SplitArgs) -> Option<(AdminSplitRequest, String)> {
    match args {
        SplitArgs { at: Some(Key(key)), .. } | SplitArgs { key: Some(Key(key)), .. } => {
            let what = format!("split at {:?}", escape(&key));
            Some((AdminSplitRequest { key: user_key(&key), ..Default::default() }, what))
        }
        SplitArgs { region: Some(Id(region_id)), by: Some(by), .. } => {
            let (by, name) = match by {
                By::Size => (SplitBy::Size, "size"),
                By::Load => (SplitBy::Load, "load"),
            };
            let request = AdminSplitRequest { region_id, by: by.into(), ..Default::default() };
            Some((request, format!("split {} by {name}", RegionId(region_id))))
        }
        _ => None,
    }
}

impl Answer for RegionSplit {
    fn text(&self) -> String {
        let mut table = RegionShape::table();
        self.left.row(&mut table);
        self.right.row(&mut table);
        table.to_string()
    }
}
