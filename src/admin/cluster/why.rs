//! `braid admin why`: why nothing is moving.

use anyhow::Result;
use braid_proto::pb::{BalanceRequest, BalanceResponse, StoreListRequest};
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::admin::operator::list::{self, OperatorList};
use crate::admin::scheduler::{self, list::SchedulerList};
use crate::admin::store::view::{DrainView, StoreView};
use crate::admin::table::{Table, count};

/// Everything that says why things stand still.
#[derive(Serialize)]
pub struct Why {
    /// Nothing is under way, and nothing is wanted.
    balanced: bool,
    /// What the rest waits for, operators under way too.
    waits_for: Vec<String>,
    /// What is not as it should be and cannot be helped now.
    stays: Vec<String>,
    drains: Vec<Drain>,
    #[serde(flatten)]
    schedulers: SchedulerList,
    #[serde(flatten)]
    operators: OperatorList,
}

/// A store that is being emptied.
#[derive(Serialize)]
struct Drain {
    store: u64,
    #[serde(flatten)]
    drain: DrainView,
}

/// Asks for all of it.
pub async fn run(connection: &mut Connection) -> Result<Why> {
    let balance = connection.ask(BalanceRequest {}).await?;
    let stores = connection.ask(StoreListRequest {}).await?.stores.into_iter().map(StoreView::from);
    let drains = stores.filter_map(|store| Some(Drain { store: store.id, drain: store.drain? })).collect();
    let (schedulers, _) = scheduler::shown(connection).await?;
    let operators = list::run(connection, false, None).await?;
    let BalanceResponse { balanced, waits_for, stays, .. } = balance;
    Ok(Why { balanced, waits_for, stays, drains, schedulers, operators })
}

impl Answer for Why {
    fn text(&self) -> String {
        let mut table = Table::sheet();
        let under_way = self.operators.operators.len();
        table.say(
            "state",
            match (self.balanced, under_way) {
                (true, _) => "balanced: nothing is to be moved".to_owned(),
                (false, 0) => "not balanced, and nothing is under way".to_owned(),
                (false, _) => format!("not balanced, {} under way", count(under_way as u64, "operator")),
            },
        );
        table.say_lines("waits for", self.waits_for.iter().cloned(), "nothing");
        if !self.stays.is_empty() {
            table.say_lines("stays so", self.stays.iter().cloned(), "nothing");
        }
        for Drain { store, drain } in &self.drains {
            table.say(&format!("drain of s{store}"), drain.shown());
        }
        let operators = if under_way == 0 { String::new() } else { format!("\n{}", self.operators.text()) };
        format!("{table}\n{}{operators}", self.schedulers.text())
    }
}
