//! `braid admin operator list`.

use anyhow::Result;
use braid_proto::pb::OperatorListRequest;
use serde::Serialize;

use super::view::OperatorView;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;

/// Operators under way, then those that have ended, the last one first.
#[derive(Serialize)]
pub struct OperatorList {
    pub operators: Vec<OperatorView>,
}

/// Asks for operators; of one region only, if it is given.
pub async fn run(connection: &mut Connection, ended: bool, region: Option<u64>) -> Result<OperatorList> {
    let answer = connection.ask(OperatorListRequest { ended, region_id: region.unwrap_or(0) }).await?;
    Ok(OperatorList { operators: answer.operators.into_iter().map(OperatorView::from).collect() })
}

impl Answer for OperatorList {
    fn text(&self) -> String {
        let mut table = OperatorView::table();
        self.operators.iter().for_each(|operator| operator.row(&mut table));
        table.to_string()
    }
}
