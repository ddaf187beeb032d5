//! Which blow comes when: each kind equally often, in an order that the seed decides.

use std::time::Duration;

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::admin::Admin;
use super::targets::Targets;
use super::{Fault, Plan};
use crate::random::Random;

/// One blow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blow {
    /// Its kind.
    pub fault: Fault,
    /// Why it was not dealt; none: it was.
    pub refused: Option<String>,
}

/// Deals blows.
#[derive(Debug)]
pub struct Schedule {
    random: Random,
    faults: Deck<Fault>,
    /// Members by number.
    members: Deck<usize>,
    admin: Admin,
}

/// Things that are dealt in random order, all of them before any comes again.
#[derive(Debug)]
struct Deck<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    fn new(all: Vec<T>) -> Self {
        Self { all, left: Vec::new() }
    }

    /// The next one; none if there is nothing to deal.
    fn draw(&mut self, random: &mut Random) -> Option<T> {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let count = self.left.len() as u64;
        (count > 0).then(|| self.left.swap_remove(random.below(count) as usize))
    }
}

impl Schedule {
    /// For a cluster of which so many members can be broken.
    pub fn new(plan: &Plan, members: usize) -> anyhow::Result<Self> {
        anyhow::ensure!(!plan.prefixes.is_empty(), "there must be at least one prefix");
        // Both checks use these prefixes; what lies behind them is cut too.
        let keys = plan.prefixes.iter().flat_map(|prefix| {
            ["", "02", "durable/", "durable/0000000200"].map(|end| Bytes::from(format!("{prefix}{end}")))
        });
        let admin = Admin::new(&plan.endpoints, keys.collect(), plan.seed);
        let (faults, members) = (Deck::new(plan.faults.clone()), Deck::new((0..members).collect()));
        Ok(Self { random: Random::new(plan.seed, 3), faults, members, admin })
    }

    /// Deals blows until the time is over or the user interrupts. All members run when this returns.
    pub async fn run(
        &mut self,
        plan: &Plan,
        targets: &mut Targets,
        tell: &mut impl FnMut(&str),
    ) -> anyhow::Result<Vec<Blow>> {
        let end = Instant::now() + plan.duration;
        // A Ctrl-C during a blow counts as well.
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut blows = Vec::new();
        // Room for the last blow to heal before the end.
        while Instant::now() + plan.every < end {
            tokio::select! {
                () = sleep(plan.every / 2) => {}
                _ = interrupts.recv() => {
                    tell("interrupted: what was recorded so far is judged");
                    return Ok(blows);
                }
            }
            let Some(fault) = self.faults.draw(&mut self.random) else { break };
            let (what, refused) = match self.deal(fault, plan.every / 2, targets).await? {
                Ok(what) => (what, None),
                Err(why) => (format!("not done: {why}"), Some(why)),
            };
            tell(&format!("{fault}: {what}"));
            blows.push(Blow { fault, refused });
        }
        tokio::select! {
            () = sleep_until(end) => {}
            _ = interrupts.recv() => {}
        }
        Ok(blows)
    }

    /// Deals one blow and heals it after `down`. The inner error is why it could not be dealt; the outer one is a
    /// cluster that does not come back.
    async fn deal(
        &mut self,
        fault: Fault,
        down: Duration,
        targets: &mut Targets,
    ) -> anyhow::Result<Result<String, String>> {
        if fault.is_asked() {
            let dealt = self.admin.deal(fault).await.map_err(|error| format!("{error:#}"));
            sleep(down).await;
            return Ok(dealt);
        }
        if let Some(lacks) = targets.lacks(fault) {
            sleep(down).await;
            return Ok(Err(lacks));
        }
        let Some(number) = self.members.draw(&mut self.random) else {
            return Ok(Err("there is no member to break".to_owned()));
        };
        let name = targets.name(number);
        match fault {
            Fault::Kill => {
                targets.kill(number)?;
                sleep(down).await;
                targets.start(number)?;
            }
            Fault::Restart => {
                targets.stop(number)?;
                targets.start(number)?;
            }
            _ => {
                targets.pause(number)?;
                sleep(down).await;
                targets.resume(number)?;
            }
        }
        let begin = Instant::now();
        targets.ready(number).await?;
        Ok(Ok(format!("{name}, back after {:.1} s", begin.elapsed().as_secs_f64())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(seed: u64) -> Schedule {
        let plan = Plan {
            endpoints: vec!["127.0.0.1:1".parse().unwrap()],
            checks: Vec::new(),
            faults: Fault::ALL.to_vec(),
            duration: Duration::from_secs(1),
            every: Duration::from_secs(1),
            clients: 1,
            prefixes: vec!["a/".into()],
            seed,
        };
        Schedule::new(&plan, 3).unwrap()
    }

    #[test]
    fn every_fault_and_member_comes_equally_often_and_the_seed_decides_the_order() {
        let drawn = |seed| {
            let mut schedule = schedule(seed);
            let faults: Vec<_> = (0..24).map(|_| schedule.faults.draw(&mut schedule.random).unwrap()).collect();
            let members: Vec<_> = (0..9).map(|_| schedule.members.draw(&mut schedule.random).unwrap()).collect();
            (faults, members)
        };
        let (faults, members) = drawn(1);
        assert!(Fault::ALL.iter().all(|fault| faults.iter().filter(|drawn| *drawn == fault).count() == 4));
        assert!((0..3).all(|member| members.iter().filter(|drawn| **drawn == member).count() == 3));
        assert_eq!(drawn(1), (faults, members));
        assert_ne!(drawn(1), drawn(2));
    }
}
