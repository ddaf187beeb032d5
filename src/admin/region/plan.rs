//! `braid admin region merge`, `add-peer`, `remove-peer`, `move-peer`: begin an operator and perhaps follow it.

use anyhow::{Context as _, Result};
use braid_proto::pb::RegionPlanRequest;
use braid_proto::pb::region_plan_request::Plan;

use crate::admin::answer::print;
use crate::admin::connection::Connection;
use crate::admin::operator::follow;
use crate::admin::operator::view::{Begun, OperatorView};
use crate::args::admin::Wait;
use crate::args::types::Output;

/// Begins `plan`, which is to do `what`.
pub async fn run(connection: &mut Connection, output: Output, plan: Plan, what: &str, wait: Wait) -> Result<()> {
    let answer = connection.order(RegionPlanRequest { plan: Some(plan) }, what).await?;
    let operator = OperatorView::from(answer.operator.context("the answer lacks the operator")?);
    if !wait.wait {
        return print(output, &Begun { operator });
    }
    let ended = follow::run(connection, output, operator, wait.patience()).await?;
    print(output, &Begun { operator: ended.clone() })?;
    ended.verdict()
}
