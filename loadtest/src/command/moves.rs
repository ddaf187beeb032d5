//! `loadtest moves`: what splits, transfers of leadership, moves of a replica and a rebalance cost.

use clap::Args;

use super::mebibytes;
use super::started::{Started, seconds};
use crate::scale::fill::DataSet;
use crate::scale::foreground::Window;
use crate::scale::moves::{Move, Plan, Report, Split, Transfer, run};
use crate::scale::unless_interrupted;

/// Shown by `moves --help`.
const AFTER: &str = "\
Three stores are loaded and a fourth one is added. Schedulers stand still while single operations are timed, then all
of them go on until the cluster is balanced. A gap is the longest time without an acknowledged put in the region while
four clients put its keys one after the other; `before` is the same in the second before the change.

Example:
  loadtest moves --braid-bin target/release/braid --gigabytes 5 --rate 1000";

/// Flags of `moves`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Moves {
    #[command(flatten)]
    started: Started,
    /// GB of keys and values (10^9 bytes)
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    gigabytes: f64,
    /// Keys and values of one region at the beginning
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    region_mebibytes: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    value_bytes: usize,
    /// Percent of each value that compress to nothing
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    compressible: u8,
    /// Operations per second of the steady load, half of them puts, half linearizable gets
    #[arg(long, value_name = "N", default_value_t = 500.0)]
    rate: f64,
    /// Most operations of the steady load in flight
    #[arg(long, value_name = "N", default_value_t = 256)]
    clients: usize,
    /// Clients while loading
    #[arg(long, value_name = "N", default_value_t = 32)]
    load_clients: u64,
    /// Puts of one transaction while loading
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=128))]
    load_batch: u64,
    /// How often each single operation is timed
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Length of the stretch before the rebalance that it is compared with
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,
    /// How long a move or the rebalance may take
    #[arg(long, value_name = "S", default_value_t = 1200.0)]
    balance_seconds: f64,
}

impl Moves {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (binary, folder, plan) = (self.started.binary()?, self.started.folder()?, self.plan()?);
        let report = unless_interrupted(run(&binary, &plan, folder.path(), |step| eprintln!("{step}"))).await?;
        self.started.output.print(&report, print)
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        Ok(Plan {
            data: DataSet::of_gigabytes(self.gigabytes, "bench/", self.value_bytes, self.compressible)?,
            region_bytes: self.region_mebibytes << 20,
            placements: self.started.placements(),
            proxies: self.started.proxies(),
            fillers: self.load_clients,
            batch: self.load_batch,
            clients: self.clients,
            rate: self.rate,
            repeat: self.repeat,
            before: seconds("--seconds", self.seconds)?,
            patience: seconds("--balance-seconds", self.balance_seconds)?,
            store_flags: self.started.store_flags.clone(),
            seed: self.started.seed,
        })
    }
}

fn print(report: &Report) {
    let Report { splits, transfers, moves, rebalance, .. } = report;
    println!(
        "{:.2} GB in {} regions, loaded in {:.1} s\n",
        report.user_bytes as f64 / 1e9,
        report.regions,
        report.load_seconds
    );
    println!("milliseconds              times     least    median      most");
    let lines = |what: &str, seconds: Vec<f64>| line(what, seconds.into_iter().map(|seconds| seconds * 1e3).collect());
    let split = |what: fn(&Split) -> f64| splits.iter().map(what).collect();
    lines("split: answer", split(|split| split.answer_seconds));
    lines("  both halves serve", split(|split| split.serving_seconds));
    lines("  gap of puts", split(|split| split.gap_seconds));
    lines("  before", split(|split| split.gap_before_seconds));
    let transfer = |what: fn(&Transfer) -> f64| transfers.iter().map(what).collect();
    lines("transfer-leader: answer", transfer(|transfer| transfer.answer_seconds));
    lines("  placement knows", transfer(|transfer| transfer.known_seconds));
    lines("  gap of puts", transfer(|transfer| transfer.gap_seconds));
    lines("  before", transfer(|transfer| transfer.gap_before_seconds));
    let moved = |what: fn(&Move) -> f64| moves.iter().map(what).collect();
    lines("move of a replica: done", moved(|moved| moved.seconds));
    lines("  gap of puts", moved(|moved| moved.gap_seconds));
    lines("  before", moved(|moved| moved.gap_before_seconds));
    for Move { user_bytes, approximate_bytes, seconds, .. } in moves {
        println!(
            "moved {:.1} MiB of keys and values ({:.1} MiB on disk) in {seconds:.2} s",
            mebibytes(*user_bytes),
            mebibytes(*approximate_bytes)
        );
    }
    println!(
        "\nrebalance: {:.1} s, {} replicas moved, {:.1} MiB, {} operators; replicas {:?}, leaders {:?}",
        rebalance.seconds,
        rebalance.replicas_moved,
        mebibytes(rebalance.bytes_moved),
        rebalance.operators,
        rebalance.replicas.values().collect::<Vec<_>>(),
        rebalance.leaders.values().collect::<Vec<_>>()
    );
    println!("steady load     seconds   put p50   put p99   get p50   get p99  failed   (ms)");
    for (what, window) in [("before", &report.before), ("during", &report.during)] {
        let Window { seconds, puts, gets, failed } = window;
        let [a, b, c, d] = [puts.p50_us, puts.p99_us, gets.p50_us, gets.p99_us].map(|micros| micros / 1e3);
        println!("{what:<15}{seconds:>8.1}{a:>10.2}{b:>10.2}{c:>10.2}{d:>10.2}{failed:>8}");
    }
    let (puts, gets) = report.p99_ratio;
    println!("p99 during the rebalance in relation to before: puts {puts:.2}, gets {gets:.2}");
    report.errors.iter().for_each(|(error, count)| println!("FAILED          {count} x {error}"));
}

fn line(what: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (figures.first(), figures.last()) else { return };
    println!("{what:<24}{:>7}{least:>10.1}{:>10.1}{most:>10.1}", figures.len(), figures[figures.len() / 2]);
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Cli, Command};

    fn plan(flags: &[&str]) -> anyhow::Result<Plan> {
        let cli = Cli::try_parse_from(["loadtest", "moves"].iter().chain(flags))?;
        let Command::Moves(moves) = cli.command else { panic!("another command") };
        moves.plan()
    }

    #[test]
    fn gigabytes_are_turned_into_keys() {
        let plan = plan(&["--gigabytes", "5", "--value-bytes", "984"]).unwrap();
        assert_eq!((plan.data.space.count, plan.region_bytes), (5_000_000, 64 << 20));
    }

    #[test]
    fn wrong_flags_are_told_what_would_be_right() {
        for (flags, want) in [
            (&["--gigabytes", "0"][..], "--gigabytes"),
            (&["--compressible", "101"], "0 to 100"),
            (&["--load-batch", "0"], "--load-batch"),
        ] {
            let error = format!("{:#}", plan(flags).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
