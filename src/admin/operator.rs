//! `braid admin operator`.

use anyhow::{Context as _, Result};
use braid_proto::id::RegionId;
use braid_proto::pb::OperatorCancelRequest;
use serde::Serialize;

use super::answer::{Answer, print};
use super::confirm::confirm;
use super::connection::Connection;
use super::table::count;
use crate::args::admin::scheduler::{CancelArgs, OperatorCommand};
use crate::args::types::Output;

pub mod follow;
pub mod list;
pub mod view;

/// Runs one command.
pub async fn run(connection: &mut Connection, output: Output, command: OperatorCommand) -> Result<()> {
    match command {
        OperatorCommand::List { ended, region } => {
            print(output, &list::run(connection, ended, region.map(|region| region.0)).await?)
        }
        OperatorCommand::Cancel(args) => print(output, &cancel(connection, args).await?),
    }
}

/// How many operators were cancelled.
#[derive(Serialize)]
struct Cancelled {
    cancelled: u32,
}

async fn cancel(connection: &mut Connection, args: CancelArgs) -> Result<Cancelled> {
    let (region_id, what) = if args.all {
        let what = "cancel all operators".to_owned();
        let risk = "Every change of a region that is under way stops where it stands; schedulers begin anew what they \
                    still want, unless they are paused.";
        confirm(args.yes.yes, &what, risk)?;
        (0, what)
    } else {
        let region = args.region.context("give a region, or --all")?.0;
        (region, format!("cancel the operator of {}", RegionId(region)))
    };
    let answer = connection.order(OperatorCancelRequest { region_id }, what).await?;
    Ok(Cancelled { cancelled: answer.cancelled })
}

impl Answer for Cancelled {
    fn text(&self) -> String {
        format!("{} cancelled\n", count(self.cancelled.into(), "operator"))
    }
}
