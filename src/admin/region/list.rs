//! `braid admin region list`.

use anyhow::{Result, bail};
use braid_proto::key::user_key;
use braid_proto::pb::RegionListRequest;
use bytes::Bytes;
use serde::Serialize;

use super::view::RegionView;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::args::admin::region::ListArgs;
use crate::args::types::Key;

/// Regions in key order.
#[derive(Serialize)]
pub struct RegionList {
    regions: Vec<RegionView>,
}

/// The internal keys of a range of etcd keys; an empty one has no bound there.
pub fn bounds(start: Option<&Key>, end: Option<&Key>) -> Result<(Bytes, Bytes)> {
    if let (Some(start), Some(end)) = (start, end)
        && start.0 >= end.0
    {
        bail!("--start must be a key below --end");
    }
    let internal = |key: Option<&Key>| key.map(|key| user_key(&key.0)).unwrap_or_default();
    Ok((internal(start), internal(end)))
}

/// Asks for the regions that `args` are about.
pub async fn run(connection: &mut Connection, args: ListArgs) -> Result<RegionList> {
    let (start, end) = bounds(args.start.as_ref(), args.end.as_ref())?;
    let store_id = args.store.map_or(0, |store| store.0);
    let request = RegionListRequest { start, end, store_id, region_id: 0, limit: args.limit.unwrap_or(0) };
    let answer = connection.ask(request).await?;
    Ok(RegionList { regions: answer.regions.iter().map(RegionView::from).collect() })
}

impl Answer for RegionList {
    fn text(&self) -> String {
        let mut table = RegionView::table();
        self.regions.iter().for_each(|region| region.row(&mut table));
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_internal_keys() {
        let key = |text: &str| text.parse::<Key>().unwrap();
        let (start, end) = bounds(Some(&key("a")), Some(&key("b"))).unwrap();
        assert_eq!((&start[..], &end[..]), (&b"\x20a"[..], &b"\x20b"[..]));
        assert_eq!(bounds(None, None).unwrap(), (Bytes::new(), Bytes::new()));
        for (start, end) in [("b", "a"), ("a", "a")] {
            let error = bounds(Some(&key(start)), Some(&key(end))).unwrap_err().to_string();
            assert_eq!(error, "--start must be a key below --end");
        }
    }
}
