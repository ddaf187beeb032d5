//! The flags of `braid admin region`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{Wait, Yes};
use crate::args::types::{Id, Key};

/// `braid admin region`.
#[derive(Subcommand, Clone, Debug)]
pub enum RegionCommand {
    /// Lists the regions in key order
    List(ListArgs),
    /// Shows a region: its keys, its peers, its load, what is under way on it
    Show {
        /// The region, as `region list` prints it
        id: Id<'r'>,
    },
    /// Shows the region that holds a key
    AtKey {
        /// The key, \xNN for bytes that cannot be typed
        key: Key,
    },
    /// Compares the replicas of regions; exits with 1 if some differ or cannot be compared
    Check {
        /// Only this region, as `region list` prints it
        #[arg(long, value_name = "ID")]
        region: Option<Id<'r'>>,
    },
    /// Cuts a region in two: at a key, with which the right one starts, or where its size or its load has its middle
    Split(SplitArgs),
    /// Makes a region part of its neighbour
    Merge {
        /// The region that ends, as `region list` prints it
        id: Id<'r'>,
        /// The neighbour that takes its keys
        #[arg(long, value_name = "ID")]
        into: Id<'r'>,
        /// Follow it.
        #[command(flatten)]
        wait: Wait,
    },
    /// Makes another replica of a region its leader
    TransferLeader {
        /// The region, as `region list` prints it
        id: Id<'r'>,
        /// The store whose replica shall lead
        #[arg(long, value_name = "ID")]
        to: Id<'s'>,
    },
    /// Gives a region one replica more
    AddPeer {
        /// The region, as `region list` prints it
        id: Id<'r'>,
        /// The store that shall hold it
        #[arg(long, value_name = "ID")]
        store: Id<'s'>,
        /// Follow it.
        #[command(flatten)]
        wait: Wait,
    },
    /// Takes a replica of a region away
    RemovePeer {
        /// The region, as `region list` prints it
        id: Id<'r'>,
        /// The store that holds it
        #[arg(long, value_name = "ID")]
        store: Id<'s'>,
        /// Follow it.
        #[command(flatten)]
        wait: Wait,
        /// Do not ask.
        #[command(flatten)]
        yes: Yes,
    },
    /// Moves a replica of a region to another store
    MovePeer {
        /// The region, as `region list` prints it
        id: Id<'r'>,
        /// The store that holds it
        #[arg(long, value_name = "ID")]
        from: Id<'s'>,
        /// The store that shall hold it
        #[arg(long, value_name = "ID")]
        to: Id<'s'>,
        /// Follow it.
        #[command(flatten)]
        wait: Wait,
    },
    /// Spreads regions over the stores anew
    Scatter(ScatterArgs),
}

/// `braid admin region list`.
#[derive(Args, Clone, Debug, Default)]
pub struct ListArgs {
    /// Only regions with keys from this one on
    #[arg(long, value_name = "KEY")]
    pub start: Option<Key>,
    /// Only regions with keys below this one
    #[arg(long, value_name = "KEY")]
    pub end: Option<Key>,
    /// Only regions with a replica on this store
    #[arg(long, value_name = "ID")]
    pub store: Option<Id<'s'>>,
    /// At most so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

/// `braid admin region split`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("where").required(true).args(["at", "key", "region"]))]
pub struct SplitArgs {
    /// The key to cut at, \xNN for bytes that cannot be typed
    #[arg(value_name = "KEY")]
    pub at: Option<Key>,
    /// The same as KEY
    #[arg(long, value_name = "KEY")]
    pub key: Option<Key>,
    /// The region to cut where its size or its load has its middle
    #[arg(long, value_name = "ID", requires = "by")]
    pub region: Option<Id<'r'>>,
    /// What both halves shall have about the same of
    #[arg(long, value_enum, requires = "region")]
    pub by: Option<By>,
}

/// What a region is cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Bytes.
    Size,
    /// Reads and writes.
    Load,
}

/// `braid admin region scatter`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "all", "start", "end"]))]
pub struct ScatterArgs {
    /// The regions, as `region list` prints them
    #[arg(value_name = "ID", conflicts_with_all = ["all", "start", "end"])]
    pub ids: Vec<Id<'r'>>,
    /// All regions
    #[arg(long, conflicts_with_all = ["start", "end"])]
    pub all: bool,
    /// Regions with keys from this one on
    #[arg(long, value_name = "KEY")]
    pub start: Option<Key>,
    /// Regions with keys below this one
    #[arg(long, value_name = "KEY")]
    pub end: Option<Key>,
}
