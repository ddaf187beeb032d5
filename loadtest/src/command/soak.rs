//! `loadtest soak`: writes steadily for a while and then judges what the cluster made of it. Whoever wants to know
//! whether a cluster keeps its promises breaks it meanwhile, by hand.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Endpoints, Output};
use crate::check;
use crate::writer::{Plan, Writer};

/// Violations that are shown; further ones are only counted.
const SHOWN: usize = 20;

/// Flags of `soak`.
#[derive(Debug, Args)]
pub struct Soak {
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to write
    #[arg(long, value_name = "S", default_value_t = 30)]
    seconds: u64,
    /// Clients, each with one operation in flight
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: u32,
    /// Keys
    #[arg(long, value_name = "N", default_value_t = 400)]
    keys: u32,
    /// Prefixes of the keys, used in turn: give one in each region to write to all of them. They must be empty
    #[arg(long, value_name = "PREFIX,..", value_delimiter = ',', default_value = "soak/")]
    prefixes: Vec<String>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Serialize)]
struct Verdict {
    acked: usize,
    unknown: usize,
    reads: usize,
    keys: usize,
    revision: i64,
    violations: usize,
    first_violations: Vec<String>,
}

impl Soak {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut plan = Plan::new(self.endpoints.endpoints);
        plan.clients = self.clients;
        plan.layout.keys = self.keys;
        plan.layout.prefixes = self.prefixes;
        let writer = Writer::start(plan).await?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(self.seconds)) => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        let (history, state) = writer.stop().await?;
        let violations = check::all(&history, &state);
        let verdict = Verdict {
            acked: history.acked().count(),
            unknown: history.unknown(),
            reads: history.reads.len(),
            keys: state.keys.len(),
            revision: state.revision,
            violations: violations.len(),
            first_violations: violations.iter().take(SHOWN).map(ToString::to_string).collect(),
        };
        self.output.print(&verdict, print)?;
        anyhow::ensure!(verdict.violations == 0, "{} violations", verdict.violations);
        anyhow::ensure!(verdict.acked > 0, "not one put was acknowledged");
        Ok(())
    }
}

fn print(verdict: &Verdict) {
    let Verdict { acked, unknown, reads, keys, revision, violations, first_violations } = verdict;
    println!("{acked} puts acknowledged, {unknown} of unknown outcome, {reads} reads");
    println!("{keys} keys at revision {revision} afterwards");
    first_violations.iter().for_each(|text| println!("VIOLATION: {text}"));
    match violations - first_violations.len() {
        0 if *violations == 0 => println!("nothing acknowledged was lost, no revision used twice, order kept"),
        0 => {}
        more => println!("and {more} more"),
    }
}
