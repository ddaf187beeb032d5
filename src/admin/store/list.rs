//! `braid admin store list`.

use anyhow::{Context as _, Result};
use braid_proto::id::StoreId;
use braid_proto::pb::StoreListRequest;
use serde::Serialize;

use super::view::StoreView;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;

/// All stores, by id.
#[derive(Serialize)]
pub struct StoreList {
    pub stores: Vec<StoreView>,
}

/// Asks for all stores.
pub async fn run(connection: &mut Connection) -> Result<StoreList> {
    let answer = connection.ask(StoreListRequest {}).await?;
    let mut stores: Vec<StoreView> = answer.stores.into_iter().map(StoreView::from).collect();
    stores.sort_by_key(|store| store.id);
    Ok(StoreList { stores })
}

impl StoreList {
    /// The store of that id.
    pub fn named(&self, id: u64) -> Result<&StoreView> {
        let found = self.stores.iter().find(|store| store.id == id);
        found.with_context(|| format!("there is no store {}; `braid admin store list` shows the stores", StoreId(id)))
    }
}

impl Answer for StoreList {
    fn text(&self) -> String {
        let mut table = StoreView::table();
        self.stores.iter().for_each(|store| store.row(&mut table));
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::store::view::tests::store;

    #[test]
    fn stores_are_listed_with_what_matters() {
        let list = StoreList { stores: vec![store(3, "up", None)] };
        assert_eq!(
            list.text(),
            "STORE  NAME     STATE  HEARD    ADDRESS        REGIONS  LEADERS  USED  FREE  WEIGHT  LABELS         VERSION\n\
             s3     store-3  up     0 s ago  10.0.0.1:2380  5        2        0 B   0 B   1.5     rack=7,zone=a\n"
        );
        assert_eq!(list.named(3).unwrap().name, "store-3");
        let error = list.named(4).unwrap_err().to_string();
        assert_eq!(error, "there is no store s4; `braid admin store list` shows the stores");
    }
}
