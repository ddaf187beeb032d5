//! `braid admin region split --key K`.

use anyhow::{Context as _, Result, bail};
use braid_proto::key::user_key;
use braid_proto::pb::AdminSplitRequest;
use serde::Serialize;

use super::region_view::RegionShape;
use super::{Answer, Connection, Table};
use crate::args::types::Key;
use crate::key_text::escape;

/// The two regions that came of one.
#[derive(Serialize)]
pub struct RegionSplit {
    left: RegionShape,
    right: RegionShape,
}

/// Splits the region that holds `key`.
pub async fn run(mut connection: Connection, key: Key) -> Result<RegionSplit> {
    let request = connection.request(AdminSplitRequest { key: user_key(&key.0), ..Default::default() });
    let result = connection.client.region_split(request).await;
    let answer = connection.answer(result, |answer| answer.header.as_ref())?;
    if !answer.failed.is_empty() {
        bail!("cannot split at {:?}: {}", escape(&key.0), answer.failed);
    }
    let part = |region: Option<_>| region.as_ref().map(RegionShape::from).context("the answer lacks a region");
    Ok(RegionSplit { left: part(answer.left)?, right: part(answer.right)? })
}

impl Answer for RegionSplit {
    fn table(&self) -> Table {
        let mut table = RegionShape::table();
        self.left.row(&mut table);
        self.right.row(&mut table);
        table
    }
}
