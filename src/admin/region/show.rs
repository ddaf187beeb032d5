//! `braid admin region show` and `region at-key`.

use anyhow::{Context as _, Result};
use braid_proto::id::RegionId;
use braid_proto::key::user_key;
use braid_proto::pb::RegionListRequest;
use bytes::{BufMut as _, BytesMut};
use serde::Serialize;

use super::view::RegionView;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::args::types::Key;
use crate::key_text::escape;

/// One region.
#[derive(Serialize)]
pub struct RegionShow {
    region: RegionView,
}

/// The region of that id.
pub async fn by_id(connection: &mut Connection, id: u64) -> Result<RegionShow> {
    let answer = connection.ask(RegionListRequest { region_id: id, ..Default::default() }).await?;
    let region = answer.regions.first().map(RegionView::from);
    let region =
        region.with_context(|| format!("no region {}; `braid admin region list` shows the regions", RegionId(id)))?;
    Ok(RegionShow { region })
}

/// The region that holds `key`.
pub async fn at_key(connection: &mut Connection, key: &Key) -> Result<RegionShow> {
    let start = user_key(&key.0);
    // The range that holds this key only.
    let mut end = BytesMut::from(&start[..]);
    end.put_u8(0);
    let request = RegionListRequest { start, end: end.freeze(), limit: 1, ..Default::default() };
    let answer = connection.ask(request).await?;
    let region = answer.regions.first().map(RegionView::from).with_context(|| {
        format!("no region holds {:?} yet; `braid admin status` says what the cluster waits for", escape(&key.0))
    })?;
    Ok(RegionShow { region })
}

impl Answer for RegionShow {
    fn text(&self) -> String {
        self.region.sheet().to_string()
    }
}
