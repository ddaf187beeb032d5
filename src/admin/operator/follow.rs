//! Follows an operator until it has ended.

use std::time::Duration;

use anyhow::{Result, anyhow};
use braid_proto::id::RegionId;

use super::list;
use super::view::OperatorView;
use crate::admin::connection::Connection;
use crate::admin::follow::{Look, follow};
use crate::args::types::Output;

/// How `operator` ended.
pub async fn run(
    connection: &mut Connection,
    output: Output,
    operator: OperatorView,
    patience: Duration,
) -> Result<OperatorView> {
    let (id, region) = (operator.id, operator.region);
    let what = format!("{} on {}", operator.name(), RegionId(region));
    let ended = follow(connection, output, patience, &what, async |connection: &mut Connection| {
        let list = list::run(connection, true, Some(region)).await?;
        Ok(look(list.operators.into_iter().find(|seen| seen.id == id)))
    });
    ended.await?.ok_or_else(|| {
        anyhow!(
            "placement's leader has changed and {} with it; `braid admin region show {}` shows what has come of it",
            operator.name(),
            RegionId(region)
        )
    })
}

/// None: nobody knows it any more.
fn look(seen: Option<OperatorView>) -> Look<Option<OperatorView>> {
    match seen {
        Some(operator) if operator.is_running() => Look::Going { share: operator.share(), said: operator.progress() },
        ended => Look::Ended(ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::operator::view::tests::operator;

    #[test]
    fn it_is_followed_while_it_runs() {
        assert!(matches!(look(Some(operator("running", ""))), Look::Going { share: 0.5, .. }));
        assert!(matches!(look(Some(operator("failed", "failed: x"))), Look::Ended(Some(_))));
        assert!(matches!(look(None), Look::Ended(None)));
    }
}
