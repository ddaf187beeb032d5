//! `braid admin`: asks a running cluster, prints what it says, exits with 1 if it refused or a check found something.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::args::admin::{AdminArgs, AdminCommand, RegionCommand, StoreCommand};
use crate::args::types::Output;

mod connection;
mod region_check;
mod region_list;
mod region_split;
mod region_transfer_leader;
mod region_view;
mod status;
mod store_list;
mod table;

use connection::Connection;
use table::Table;

/// An answer that can be printed for people and for programs.
trait Answer: Serialize {
    /// What people see.
    fn table(&self) -> Table;
}

/// Runs one command.
pub async fn run(args: AdminArgs) -> Result<()> {
    let connection = Connection::open(&args.endpoints, args.timeout()).await?;
    let output = args.output;
    match args.command {
        AdminCommand::Store(StoreCommand::List) => print(output, &store_list::run(connection).await?),
        AdminCommand::Region(RegionCommand::List) => print(output, &region_list::run(connection).await?),
        AdminCommand::Region(RegionCommand::Check { region }) => {
            let check = region_check::run(connection, region.map(|region| region.0)).await?;
            print(output, &check)?;
            check.verdict()
        }
        AdminCommand::Region(RegionCommand::Split { key }) => print(output, &region_split::run(connection, key).await?),
        AdminCommand::Region(RegionCommand::TransferLeader { region, to_store }) => {
            print(output, &region_transfer_leader::run(connection, region.0, to_store.0).await?)
        }
        AdminCommand::Status => print(output, &status::run(connection).await?),
    }
}

fn print<A: Answer>(output: Output, answer: &A) -> Result<()> {
    let text = match output {
        Output::Table => answer.table().to_string(),
        Output::Json => serde_json::to_string_pretty(answer).context("writing the answer as JSON")? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader (`head`, `grep -q`) has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing the answer"),
    }
}
