//! `braid admin`: asks a running cluster, prints what it says.
//!
//! 1. [`connection`] dials the first endpoint that answers, [`ask`] knows which call carries which request.
//! 2. A command asks, and makes an [`answer`] of what it hears: a table for people, JSON for programs.
//! 3. What cannot be undone is asked back first ([`confirm`]); what takes its time can be followed ([`follow`]).
//!
//! Exit codes: 0 if what was asked for is done, 1 if it was refused or a check found something, 2 for a command line that
//! cannot be read. Only `health` has its own.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::admin::{AdminArgs, AdminCommand};

mod answer;
mod ask;
mod cluster;
mod confirm;
mod connection;
mod follow;
mod operator;
mod region;
mod scheduler;
mod store;
mod table;

use connection::Connection;

/// Runs one command.
pub async fn run(args: AdminArgs) -> Result<ExitCode> {
    let connection = Connection::open(&args.endpoints, args.timeout());
    let output = args.output;
    if matches!(args.command, AdminCommand::Health) {
        return Ok(cluster::health::run(connection, output).await);
    }
    let mut connection = connection.await?;
    let connection = &mut connection;
    match args.command {
        AdminCommand::Store(command) => store::run(connection, output, command).await,
        AdminCommand::Region(command) => region::run(connection, output, command).await,
        AdminCommand::Scheduler(command) => scheduler::run(connection, output, command).await,
        AdminCommand::Operator(command) => operator::run(connection, output, command).await,
        AdminCommand::Rebalance { status: true, .. } => cluster::rebalance::status(connection, output).await,
        AdminCommand::Rebalance { timeout, .. } => cluster::rebalance::run(connection, output, timeout).await,
        AdminCommand::Why => answer::print(output, &cluster::why::run(connection).await?),
        AdminCommand::Status => answer::print(output, &cluster::status::run(connection).await?),
        AdminCommand::Health => unreachable!("is run above"),
    }
    .map(|()| ExitCode::SUCCESS)
}
