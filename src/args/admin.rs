//! The flags of `braid admin`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::types::{Output, Url, endpoint};

pub mod region;
pub mod scheduler;
pub mod store;

use region::RegionCommand;
use scheduler::{OperatorCommand, SchedulerCommand};
use store::StoreCommand;

/// `braid admin`.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Client addresses of the cluster; the first one that answers is used
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = "http://127.0.0.1:2379", global = true, value_parser = endpoint)]
    pub endpoints: Vec<Url>,

    /// How the answer looks
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    pub output: Output,

    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, global = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub command_timeout: u64,

    /// What to do.
    #[command(subcommand)]
    pub command: AdminCommand,
}

impl AdminArgs {
    /// How long to wait for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.command_timeout)
    }
}

/// What can be looked at or changed.
#[derive(Subcommand, Clone, Debug)]
pub enum AdminCommand {
    /// The processes that hold data
    #[command(subcommand)]
    Store(StoreCommand),
    /// The ranges that the keys are cut into
    #[command(subcommand)]
    Region(RegionCommand),
    /// What moves, splits and merges regions by itself, and how it is set
    #[command(subcommand)]
    Scheduler(SchedulerCommand),
    /// Changes of regions that are under way
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Shows how far the cluster is from balance and follows it until it is balanced; exits with 1 if it does not get there
    Rebalance {
        /// Only say how far it is now; exits with 1 if it is not balanced
        #[arg(long)]
        status: bool,
        /// Seconds after which to give up
        #[arg(long, value_name = "SECONDS", default_value_t = 3600, conflicts_with = "status", value_parser = clap::value_parser!(u64).range(1..))]
        timeout: u64,
    },
    /// What is wrong with the cluster; exits with 0 if nothing is, with 1 for warnings, with 2 for errors or no answer
    Health,
    /// Why nothing is moving: what each scheduler says, and what operators wait for
    Why,
    /// Whether the cluster has begun, who leads placement, the newest revision
    Status,
}

/// Whether to stay until what was begun has ended.
#[derive(Args, Clone, Copy, Debug)]
pub struct Wait {
    /// Follow it until it has ended; exits with 1 if it does not end well
    #[arg(long)]
    pub wait: bool,
    /// Seconds after which --wait gives up; what was begun goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "wait", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}

impl Wait {
    /// How long to follow.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Whether to ask first.
#[derive(Args, Clone, Copy, Debug)]
pub struct Yes {
    /// Do not ask; needed where there is no terminal to ask on
    #[arg(long)]
    pub yes: bool,
}
