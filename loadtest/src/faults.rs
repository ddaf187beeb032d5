//! Breaks a cluster while histories of it are recorded, and judges them: does it keep its promises when things go wrong?
//!
//! 1. A phase runs one kind of load with its checkers: many clients that ask everything of few keys, with a watch over
//!    everything beside them (`linear`, `watching`), or steady writers (`writer`, `check`).
//! 2. Meanwhile `schedule` deals one blow after the other, each kind equally often in random order: never two at a time,
//!    so that a majority is always left.
//! 3. After the last blow everything is healed, and the load must go on: a cluster that stays silent fails.
//! 4. The histories are checked. What must not have happened is a violation; what could not be tried is said.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::check;
use crate::client::Address;
use crate::linear;
use crate::linear::history::Outcome;
use crate::linear::workload::Keys;
use crate::writer;

pub mod admin;
pub mod schedule;
pub mod targets;
pub mod watching;

use schedule::{Blow, Schedule};
use targets::Targets;

/// What can be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// kill -9 of a member, which is started again after a while.
    Kill,
    /// A member stands still for a while, connections and all (SIGSTOP).
    Pause,
    /// A member is asked to stop (SIGTERM) and started again at once.
    Restart,
    /// A region is cut in two.
    Split,
    /// A region gets another leader.
    TransferLeader,
    /// A replica of a region moves to another store.
    MovePeer,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::Pause, Self::Restart, Self::Split, Self::TransferLeader, Self::MovePeer];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Restart => "restart",
            Self::Split => "split",
            Self::TransferLeader => "transfer-leader",
            Self::MovePeer => "move-peer",
        }
    }

    /// Whether it is asked of braid's admin service; others are done to processes.
    pub fn is_asked(self) -> bool {
        matches!(self, Self::Split | Self::TransferLeader | Self::MovePeer)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|fault| fault.name() == text)
            .ok_or_else(|| format!("{text:?} is not one of {}", names()))
    }
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Everything is strictly serializable, and a watch over everything shows exactly what happened. The cluster must be
    /// empty.
    Serializability,
    /// Nothing acknowledged is lost, done twice or out of order.
    Durability,
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serializability" => Ok(Self::Serializability),
            "durability" => Ok(Self::Durability),
            _ => Err(format!("{text:?} is not one of serializability, durability")),
        }
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where clients ask.
    pub endpoints: Vec<Address>,
    /// What is judged, one after the other.
    pub checks: Vec<Check>,
    /// What is done meanwhile.
    pub faults: Vec<Fault>,
    /// Length of each check.
    pub duration: Duration,
    /// From one blow to the next.
    pub every: Duration,
    /// Clients of each check.
    pub clients: u32,
    /// Prefixes of the keys, for both checks.
    pub prefixes: Vec<String>,
    /// Other seeds do and ask other things.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// Blows that were dealt, by fault.
    pub dealt: BTreeMap<Fault, u64>,
    /// Faults that could not be dealt, with the last reason. They may have been dealt at other times.
    pub refused: BTreeMap<Fault, String>,
    /// What was done and seen, a line for each check.
    pub seen: Vec<String>,
    /// What must not have happened.
    pub violations: Vec<String>,
}

impl Verdict {
    /// Faults that were asked for and never dealt.
    pub fn never_dealt(&self, asked: &[Fault]) -> Vec<Fault> {
        asked.iter().copied().filter(|fault| !self.dealt.contains_key(fault)).collect()
    }

    fn blows(&mut self, blows: Vec<Blow>) {
        for blow in blows {
            match blow.refused {
                None => *self.dealt.entry(blow.fault).or_default() += 1,
                Some(why) => {
                    self.refused.insert(blow.fault, why);
                }
            }
        }
    }

    fn violated(&mut self, violations: &[check::Violation]) {
        self.violations.extend(violations.iter().map(ToString::to_string));
    }
}

/// How long the load may stand still once everything is healed.
const HEAL: Duration = Duration::from_secs(90);
/// Answers that show that the load goes on.
const PROGRESS: u64 = 100;

/// Does all of it. Fails if nothing can be judged; violations are part of the verdict. `tell` hears of each step.
pub async fn run(plan: &Plan, targets: &mut Targets, mut tell: impl FnMut(&str)) -> anyhow::Result<Verdict> {
    ensure!(!plan.checks.is_empty(), "there is nothing to check");
    ensure!(!plan.faults.is_empty(), "there is no fault to deal");
    ensure!(plan.duration > plan.every, "--seconds must be more than --every, or nothing happens");
    let mut verdict = Verdict::default();
    let mut schedule = Schedule::new(plan, targets.count())?;
    for check in &plan.checks {
        match check {
            Check::Serializability => serializability(plan, &mut schedule, targets, &mut verdict, &mut tell).await?,
            Check::Durability => durability(plan, &mut schedule, targets, &mut verdict, &mut tell).await?,
        }
    }
    Ok(verdict)
}

async fn serializability(
    plan: &Plan,
    schedule: &mut Schedule,
    targets: &mut Targets,
    verdict: &mut Verdict,
    tell: &mut impl FnMut(&str),
) -> anyhow::Result<()> {
    const KEYS: u64 = 5;
    let mut asked = linear::run::Plan::new(plan.endpoints.clone(), Keys::new(&plan.prefixes, KEYS)?);
    (asked.clients, asked.seed) = (plan.clients, plan.seed);
    // One watch for each endpoint to begin with: each member that is broken breaks one.
    let mut recorders = Vec::new();
    for first in 0..plan.endpoints.len() {
        let mut endpoints = plan.endpoints.clone();
        endpoints.rotate_left(first);
        recorders.push(watching::Recorder::start(&endpoints).await?);
    }
    let mut run = linear::run::Run::start(asked).await.context("serializability")?;
    tell("serializability: clients ask everything of few keys, and watches follow");
    verdict.blows(schedule.run(plan, targets, tell).await?);
    if let Err(error) = run.answered_more(PROGRESS, HEAL).await {
        verdict.violations.push(format!("progress: after everything was healed {error:#}"));
        return Ok(());
    }
    let history = run.stop().await?;
    let judged = linear::check(&history)?;
    verdict.violated(&judged.violations);
    let (watches, mut events, mut streams) = (recorders.len(), 0, 0);
    for recorder in recorders {
        let shown = recorder.finish(watching::newest(&history)).await?;
        verdict.violated(&watching::check(&history, &shown));
        events += shown.seen.len();
        streams += shown.streams;
    }
    let count = |what: fn(&Outcome) -> bool| history.ops.iter().filter(|op| what(&op.outcome)).count();
    verdict.seen.push(format!(
        "serializability: {} requests answered, {} of unknown outcome ({} of them took effect), {} refused; {watches} \
         watches saw {events} events over {streams} streams",
        count(|outcome| matches!(outcome, Outcome::Answered { .. })),
        count(|outcome| *outcome == Outcome::Unknown),
        judged.unknown_done,
        count(|outcome| matches!(outcome, Outcome::Refused(_))),
    ));
    Ok(())
}

async fn durability(
    plan: &Plan,
    schedule: &mut Schedule,
    targets: &mut Targets,
    verdict: &mut Verdict,
    tell: &mut impl FnMut(&str),
) -> anyhow::Result<()> {
    let mut writing = writer::Plan::new(plan.endpoints.clone());
    writing.clients = plan.clients;
    writing.layout.prefixes = plan.prefixes.iter().map(|prefix| format!("{prefix}durable/")).collect();
    writing.layout.keys = writing.layout.keys.max(plan.clients);
    let mut writer = writer::Writer::start(writing).await.context("durability")?;
    tell("durability: steady writers");
    verdict.blows(schedule.run(plan, targets, tell).await?);
    if let Err(error) = writer.acked_more(PROGRESS, HEAL).await {
        verdict.violations.push(format!("progress: after everything was healed {error:#}"));
        return Ok(());
    }
    let (history, state) = writer.stop().await?;
    verdict.violated(&check::all(&history, &state));
    verdict.seen.push(format!(
        "durability: {} puts acknowledged, {} of unknown outcome, {} reads; {} keys at revision {} afterwards",
        history.acked().count(),
        history.unknown(),
        history.reads.len(),
        state.keys.len(),
        state.revision
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_by_their_names() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert!("murder".parse::<Fault>().unwrap_err().contains("transfer-leader"));
        assert!("speed".parse::<Check>().unwrap_err().contains("durability"));
    }

    #[test]
    fn what_was_never_dealt_is_known() {
        let mut verdict = Verdict::default();
        let blow = |fault, refused: Option<&str>| Blow { fault, refused: refused.map(str::to_owned) };
        verdict.blows(vec![
            blow(Fault::Kill, None),
            blow(Fault::Split, Some("no")),
            blow(Fault::MovePeer, Some("no store")),
            blow(Fault::Split, None),
        ]);
        assert_eq!(verdict.never_dealt(&[Fault::Kill, Fault::Split, Fault::MovePeer]), [Fault::MovePeer]);
        assert_eq!(verdict.refused[&Fault::MovePeer], "no store");
    }
}
