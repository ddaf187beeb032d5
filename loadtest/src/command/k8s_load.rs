//! `loadtest k8s-load`: fills a cluster with the data set that `k8s-verify` expects.

use clap::Args;

use super::{Endpoints, Output, mebibytes};
use crate::dataset::{Dataset, ITEMS_MAX};
use crate::loader::{Loaded, Loader};
use crate::progress;

/// Flags of `k8s-load`.
#[derive(Debug, Args)]
pub struct K8sLoad {
    #[command(flatten)]
    pub(super) endpoints: Endpoints,
    /// How many objects
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    keys: u64,
    /// Seed of the data set
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Value to write: an object's n-th put has version n
    #[arg(long, value_name = "N", default_value_t = 1)]
    version: u64,
    /// Puts in flight
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl K8sLoad {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.keys <= ITEMS_MAX, "the data set has no more than {ITEMS_MAX} objects");
        let (dataset, version) = (Dataset::new(self.seed), self.version);
        let bar = progress::counting("loading", self.keys);
        let entry = move |index| (dataset.key_of(index), dataset.value_of(index, version));
        let loader = Loader::spread(&self.endpoints.endpoints, self.clients.into());
        let loaded = loader.load(self.keys, entry, &bar).await?;
        bar.finish_and_clear();
        self.output.print(&loaded, print)
    }
}

fn print(loaded: &Loaded) {
    let Loaded { puts, retries, bytes, revision, seconds, puts_per_second, latency } = loaded;
    println!("{puts} keys, {:.1} MiB, in {seconds:.1} s: {puts_per_second:.0} puts/s", mebibytes(*bytes));
    println!("latency {:.2} ms p50, {:.2} ms p99", latency.p50_us / 1e3, latency.p99_us / 1e3);
    println!("{retries} attempts had to be repeated; the last revision is {revision}");
}
