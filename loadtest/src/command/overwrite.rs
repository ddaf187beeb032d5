//! `loadtest overwrite`: overwrites the same keys steadily on three braid servers that compact by themselves, and shows
//! disk and latency while history is dropped.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Output, mebibytes};
use crate::cluster::{Binary, System, disk_folder};
use crate::histogram::Summary;
use crate::overwrite::{Plan, Report, Window, run};

/// Flags of `overwrite`.
#[derive(Debug, Args)]
pub struct Overwrite {
    /// The braid program
    #[arg(long, value_name = "FILE", default_value = "target/release/braid")]
    braid: PathBuf,
    /// Length of the run
    #[arg(long, value_name = "S", default_value_t = 240)]
    seconds: u64,
    /// Length of a window, one line each
    #[arg(long, value_name = "S", default_value_t = 5)]
    window: u64,
    /// Puts a second
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate: u32,
    /// Clients, each with one put under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: u32,
    /// Keys
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 4_096)]
    value_bytes: usize,
    /// The servers' --auto-compaction-retention
    #[arg(long, value_name = "RETENTION", default_value = "20s")]
    retention: String,
    /// A further flag of the servers, as --flag=value; may be repeated
    #[arg(long = "server-flag", value_name = "FLAG", allow_hyphen_values = true)]
    flags: Vec<String>,
    /// Folder for the servers' data
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl Overwrite {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let plan = Plan {
            time: Duration::from_secs(self.seconds),
            window: Duration::from_secs(self.window),
            rate: self.rate,
            clients: self.clients,
            keys: self.keys,
            value_bytes: self.value_bytes,
            retention: self.retention,
            flags: self.flags,
        };
        let binary = Binary::new(System::Braid, self.braid)?;
        let folder = disk_folder(self.work_dir.as_deref())?;
        let human = self.output == Output::Human;
        if human {
            println!(
                "   end     puts     p50 ms     p99 ms     max ms     kv MiB   disk MiB  dropped  passes  compacted"
            );
        }
        let report = run(&binary, &plan, folder.path(), |window| {
            if human {
                line(window);
            }
        });
        self.output.print(&report.await?, summary)
    }
}

fn line(window: &Window) {
    let Window { end_seconds, puts, kv_bytes, disk_bytes, rows_dropped, passes, compacted } = window;
    let [p50, p99, max] = [puts.p50_us, puts.p99_us, puts.max_us].map(|micros| micros / 1e3);
    let [kv, disk] = [*kv_bytes, *disk_bytes].map(mebibytes);
    println!(
        "{end_seconds:>5.0}s {:>8} {p50:>10.2} {p99:>10.2} {max:>10.2} {kv:>10.1} {disk:>10.1} {rows_dropped:>8} \
         {passes:>7} {compacted:>10}",
        puts.count
    );
}

fn summary(report: &Report) {
    let show = |what: &str, puts: &Summary| {
        let [p50, p99, p999, max] = [puts.p50_us, puts.p99_us, puts.p999_us, puts.max_us].map(|micros| micros / 1e3);
        println!(
            "{what:<28} {:>8} puts   p50 {p50:>7.2}   p99 {p99:>7.2}   p99.9 {p999:>7.2}   max {max:>7.2} ms",
            puts.count
        );
    };
    show("while history was dropped", &report.while_dropping);
    show("otherwise", &report.otherwise);
    let (dropping, otherwise) = report.p99_medians_us;
    println!(
        "median p99 of a window: {:.2} ms while history was dropped, {:.2} ms otherwise",
        dropping / 1e3,
        otherwise / 1e3
    );
    let (early, late) = report.kv_bytes_max;
    println!(
        "most in the kv folders: {:.1} MiB in the second quarter, {:.1} MiB in the last",
        mebibytes(early),
        mebibytes(late)
    );
}
