//! The command line: one file for each subcommand, each with its flags and what it prints.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::client::Address;
use crate::cluster::{Binary, System};
use crate::watch::ShapeChange;

mod capacity;
mod compare;
mod differential;
mod faults;
mod growth;
mod k8s_load;
mod k8s_verify;
mod lease_memory;
mod lease_storm;
mod moves;
mod overwrite;
mod run;
mod serializability;
mod soak;
mod started;
mod watch_catch_up;
mod watch_memory;
mod watch_regions;

/// Loads, measures and checks any etcd v3 endpoint.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Break a cluster in every way while clients record what they see, and print the verdict
    Faults(faults::Faults),
    /// Fill a cluster with objects shaped like a Kubernetes registry
    K8sLoad(k8s_load::K8sLoad),
    /// Read back what k8s-load wrote and compare every byte
    K8sVerify(k8s_verify::K8sVerify),
    /// Measure one workload
    Run(run::Run),
    /// Measure three braid servers side by side with three etcd members
    Compare(compare::Compare),
    /// Run random programs and compare every answer with a model of etcd's semantics
    Differential(differential::Differential),
    /// Ask everything at once on few keys, then check that the answers are strictly serializable; break things meanwhile
    Serializability(serializability::Serializability),
    /// Overwrite the same keys on servers that compact by themselves: disk and latency while history is dropped
    Overwrite(overwrite::Overwrite),
    /// Write steadily, then check that nothing acknowledged was lost; break things meanwhile
    Soak(soak::Soak),
    /// Let a great many leases expire in the same second: how long that takes, and what puts feel of it
    LeaseStorm(lease_storm::LeaseStorm),
    /// Grant a great many leases: memory, keep-alives, a restart
    LeaseMemory(lease_memory::LeaseMemory),
    /// Show throughput at growing numbers of stores, each with an equal share of a CPU
    Growth(growth::Growth),
    /// Time splits, transfers of leadership, moves of a replica and a rebalance, under a steady load
    Moves(moves::Moves),
    /// Show latency, memory and disk as a data set grows
    Capacity(capacity::Capacity),
    /// Open many watches on one server and show what each costs in memory
    WatchMemory(watch_memory::WatchMemory),
    /// Time a watch from the past on an empty cluster, on a full one and after a restart
    WatchCatchUp(watch_catch_up::WatchCatchUp),
    /// Watch everything on braid with many regions, of which one is busy
    WatchRegions(watch_regions::WatchRegions),
}

impl Cli {
    /// Does what the command line says. Gives the program's exit code; an error stands for failure.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let done = match self.command {
            Command::Faults(command) => return block_on(async { Ok(command.run().await) }),
            Command::K8sLoad(command) => block_on(command.run()),
            Command::K8sVerify(command) => block_on(command.run()),
            Command::Run(command) => command.run(),
            Command::Compare(command) => command.run(),
            Command::Differential(command) => block_on(command.run()),
            Command::Serializability(command) => block_on(command.run()),
            Command::Overwrite(command) => block_on(command.run()),
            Command::Soak(command) => block_on(command.run()),
            Command::LeaseStorm(command) => block_on(command.run()),
            Command::LeaseMemory(command) => block_on(command.run()),
            Command::Growth(command) => block_on(command.run()),
            Command::Moves(command) => block_on(command.run()),
            Command::Capacity(command) => block_on(command.run()),
            Command::WatchMemory(command) => block_on(command.run()),
            Command::WatchCatchUp(command) => block_on(command.run()),
            Command::WatchRegions(command) => command.run(),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// Where the servers are.
#[derive(Debug, Clone, Args)]
struct Endpoints {
    /// Endpoints, separated by commas; all are used in turn
    #[arg(long, value_name = "URL,..", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    endpoints: Vec<Address>,
}

/// Shape of the watches; the default depends on the workload and is part of the report.
#[derive(Debug, Clone, Copy, Args)]
struct WatchShape {
    /// Watch streams that all watches share [default: 10; 100 where each watch has its own key]
    #[arg(long, value_name = "N")]
    watch_streams: Option<usize>,
    /// TCP connections that the watch streams share [default: 10]
    #[arg(long, value_name = "N")]
    watch_connections: Option<usize>,
    /// Writers, each with one put in flight [default: 64]
    #[arg(long, value_name = "N")]
    writers: Option<usize>,
    /// Closed loop: puts that the slowest watch may be behind [default: 256]
    #[arg(long, value_name = "N")]
    ahead: Option<usize>,
}

impl WatchShape {
    fn change(self) -> ShapeChange {
        ShapeChange {
            streams: self.watch_streams,
            connections: self.watch_connections,
            writers: self.writers,
            ahead: self.ahead,
        }
    }
}

/// Form of the result on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Human,
    /// One JSON object.
    Json,
}

impl Output {
    fn print<T: Serialize>(self, value: &T, human: impl FnOnce(&T)) -> anyhow::Result<()> {
        match self {
            Self::Human => human(value),
            Self::Json => println!("{}", serde_json::to_string_pretty(value)?),
        }
        Ok(())
    }
}

/// Runs a future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

/// The etcd program that a flag names: a file, auto or none.
fn etcd_binary(flag: &Path) -> anyhow::Result<Option<Binary>> {
    match flag.to_str() {
        Some("none") => Ok(None),
        Some("auto") => Binary::find_etcd().map(Some),
        _ => Binary::new(System::Etcd, flag).map(Some),
    }
}

/// Flags with which an empty braid cluster begins with so many regions for leases.
fn lease_region_flags(regions: u32) -> Vec<String> {
    match regions {
        1 => Vec::new(),
        _ => vec!["--initial-lease-regions".into(), regions.to_string()],
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_are_separated_by_commas() {
        let cli =
            Cli::try_parse_from(["loadtest", "k8s-load", "--keys", "5", "--endpoints", "a:1,http://b:2"]).unwrap();
        let Command::K8sLoad(command) = cli.command else { panic!("another command") };
        assert_eq!(command.endpoints.endpoints[1].url(), "http://b:2");
        assert!(Cli::try_parse_from(["loadtest", "k8s-load", "--endpoints", "nonsense"]).is_err());
    }
}
