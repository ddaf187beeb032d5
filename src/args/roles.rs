//! The flags of each role.

use std::path::PathBuf;

use clap::Args;

use super::compaction::CompactionArgs;
use super::groups::{ClientArgs, LabelArgs, MemberArgs, ProcessArgs, StorageArgs};
use super::types::{Key, Url};

/// `braid server`.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Common to every process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The placement member, and the name and address of the store.
    #[command(flatten)]
    pub member: MemberArgs,
    /// What is compacted without being asked.
    #[command(flatten)]
    pub compaction: CompactionArgs,
    /// The proxy.
    #[command(flatten)]
    pub client: ClientArgs,
    /// The store.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// The store's place.
    #[command(flatten)]
    pub labels: LabelArgs,
}

/// `braid placement`.
#[derive(Args, Clone, Debug)]
pub struct PlacementArgs {
    /// Common to every process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The placement member.
    #[command(flatten)]
    pub member: MemberArgs,
    /// What is compacted without being asked.
    #[command(flatten)]
    pub compaction: CompactionArgs,
}

/// `braid store`.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// Common to every process.
    #[command(flatten)]
    pub process: ProcessArgs,

    /// This store's name, one of its own in the cluster
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub name: String,

    /// Folder for everything this process keeps; the default is NAME.braid
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Peer addresses of the placement members
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub placement_endpoints: Vec<Url>,

    /// Where other processes of the cluster are served
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = "http://localhost:2380")]
    pub listen_peer_urls: Vec<Url>,

    /// What other processes of the cluster dial; the default is --listen-peer-urls
    #[arg(long, alias = "initial-advertise-peer-urls", value_name = "URL", value_delimiter = ',')]
    pub advertise_peer_urls: Vec<Url>,

    /// The data.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// The store's place.
    #[command(flatten)]
    pub labels: LabelArgs,
}

/// `braid proxy`.
#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Common to every process.
    #[command(flatten)]
    pub process: ProcessArgs,

    /// This proxy's name in the member list
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub name: String,

    /// Peer addresses of the placement members
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub placement_endpoints: Vec<Url>,

    /// The clients.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `braid dev`. Its defaults for logs and the client address are set in [`super::command`].
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Common to every process.
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Folder for everything the cluster keeps
    #[arg(long, value_name = "DIR", default_value = "braid-dev-data")]
    pub data_dir: PathBuf,

    /// Stores in the process; with three or more of them every region has three copies
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub stores: Option<u32>,

    /// Regions that an empty folder starts with, cut evenly over keys of printable ASCII
    #[arg(long, alias = "initial-regions", value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub regions: Option<u32>,

    /// Keys at which an empty folder is cut into regions, instead of --regions; \xNN for other bytes
    #[arg(long, alias = "initial-split-keys", value_name = "KEYS", value_delimiter = ',')]
    pub split_keys: Vec<Key>,

    /// What is compacted without being asked.
    #[command(flatten)]
    pub compaction: CompactionArgs,
    /// The proxy.
    #[command(flatten)]
    pub client: ClientArgs,
    /// The stores.
    #[command(flatten)]
    pub storage: StorageArgs,
}
