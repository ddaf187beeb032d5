//! The flags of `braid admin`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::types::{Id, Key, Output, Url};

/// `braid admin`.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Client addresses of the cluster; the first one that answers is used
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = "http://127.0.0.1:2379", global = true)]
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
    /// Whether the cluster has begun, who leads placement, the newest revision
    Status,
}

/// `braid admin store`.
#[derive(Subcommand, Clone, Debug)]
pub enum StoreCommand {
    /// Lists the stores
    List,
}

/// `braid admin region`.
#[derive(Subcommand, Clone, Debug)]
pub enum RegionCommand {
    /// Lists the regions in key order
    List,
    /// Compares the replicas of regions; exits with 1 if some differ or cannot be compared
    Check {
        /// Only this region, as `region list` prints it
        #[arg(long, value_name = "ID")]
        region: Option<Id<'r'>>,
    },
    /// Cuts the region that holds a key in two; the right one starts with the key
    Split {
        /// The key, \xNN for bytes that cannot be typed
        #[arg(long)]
        key: Key,
    },
    /// Makes another replica of a region its leader
    TransferLeader {
        /// The region, as `region list` prints it
        #[arg(long, value_name = "ID")]
        region: Id<'r'>,
        /// The store whose replica shall lead
        #[arg(long, value_name = "ID")]
        to_store: Id<'s'>,
    },
}
