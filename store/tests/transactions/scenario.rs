//! Runs crash points: those of one kind of crash together, because one crash meets transactions at every step.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::pb::{outcome_response, refusal, region_response};
use futures::future::join_all;
use tokio::time::Instant;

use crate::POINTS;
use crate::cluster::{Cluster, LOOK, World, anchor};
use crate::coordinator::{Coordinator, LIMIT, Part, TIME_TO_LIVE, Told};
use crate::faults::Carrying;
use crate::sequencer::Losing;
use crate::witness::{Expect, Witness};

/// The store whose leadership ends, and the letter of the region it leads.
const VICTIM: u64 = 2;
const VICTIMS_REGION: char = 'n';
/// Keys of a wipe: a dozen chunks.
const WIPES: usize = 3_300;

/// What crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing but the coordinator.
    Coordinator,
    /// The process of a region's leader.
    Leader,
    /// The leader's connections to its followers.
    Isolation,
    /// Nothing: leadership is handed over.
    Transfer,
    /// Answers for shares that were done.
    ShareAnswers,
    /// The sequencer, before the number is asked for.
    Sequencer,
    /// The answer with the number.
    NumberAnswer,
    /// The sequencer, after it has given the number.
    NumberAndSequencer,
}

/// Where the coordinator is when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has locked the primary.
    PrimaryLocked,
    /// And some others.
    SomeLocked,
    /// And all others.
    AllLocked,
    /// It has locked all at the same time, and the primary last.
    AllLockedAtOnce,
    /// It has begun so, and the primary was not locked.
    OthersLocked,
    /// It has given up its locks, and only the primary heard of it.
    PrimaryReleased,
    /// Only a participant heard of it.
    ParticipantReleased,
    /// It has sent the decision and did not read the answer.
    DecisionSent,
    /// The same, of a transaction that also wipes many keys in the victim's region.
    WipeSent,
    /// The decision of such a transaction is applied, and its chunks are under way.
    WipeDecided,
    /// The decision is applied at the primary, and no other region has heard of it.
    DecidedNotCarried,
    /// The victim has made some chunks of a wipe, and not all.
    Wiping,
}

/// What it does after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing, ever.
    Dies,
    /// Whatever is left to do.
    Decides,
    /// The same, so slowly that its locks' time to live is over long before; but it is heard of.
    DecidesLate,
    /// It is not heard of until it is given up, and then goes on.
    WakesUpTooLate,
    /// Its lock of the primary arrives when the others were told that there is none.
    LocksPrimaryTooLate,
    /// Its lock of the primary arrives when somebody else leads there.
    LocksPrimaryElsewhere,
    /// It decides, and everything it ever sent arrives a second time.
    DecidesAndRepeats,
    /// It gives up, and everything it ever sent arrives a second time.
    ReleasesAndRepeats,
    /// It sends its decision to a leader that is deposed and does not know it, and dies without an answer.
    DecidesInVain,
    /// Its decision is refused; it sends it again.
    DecidesAgain,
    /// Its decision is refused; it gives up.
    DecidesAndReleases,
    /// Its decision is refused; it dies.
    DecidesAndDies,
}

/// A crash point.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// What crashes.
    pub crash: Crash,
    /// Its name, once among those of its crash.
    pub name: &'static str,
    /// The regions of the transaction by their letters.
    pub over: &'static str,
    /// Where the coordinator is.
    pub step: Step,
    /// What it does after.
    pub then: Then,
    /// What comes of it.
    pub expect: Expect,
}

impl Point {
    fn parts(&self) -> Vec<Part> {
        let wipes = |letter| match self.step {
            Step::WipeSent | Step::WipeDecided | Step::Wiping if letter == VICTIMS_REGION => WIPES,
            _ => 0,
        };
        self.over.chars().map(|letter| Part { letter, wipes: wipes(letter) }).collect()
    }
}

/// Runs every point of these crashes, one kind after the other.
async fn run(crashes: &[Crash]) {
    let mut cluster = Cluster::start().await;
    let mut stale = 0;
    for crash in crashes {
        let begun = Instant::now();
        let points: Vec<Point> = POINTS.iter().filter(|point| point.crash == *crash).copied().collect();
        assert!(!points.is_empty(), "{crash:?} has no crash point");
        stale += run_one(&mut cluster, *crash, &points).await;
        println!("{crash:?}: {} points in {:?}", points.len(), begun.elapsed());
    }
    assert!(stale > 0, "no replica has ever answered");
    println!("{stale} snapshots came from replicas");
}

async fn run_one(cluster: &mut Cluster, crash: Crash, points: &[Point]) -> usize {
    cluster.arrange().await;
    let world = Arc::clone(&cluster.world);
    world.faults.carry(match crash {
        // Until the crash has happened no share arrives anywhere.
        Crash::Leader | Crash::Isolation | Crash::Transfer => Carrying::Fails,
        Crash::ShareAnswers => Carrying::AnswersOnce,
        _ => Carrying::Works,
    });
    let (wiping, others): (Vec<Point>, Vec<Point>) = points.iter().partition(|point| point.step == Step::Wiping);
    let mut runs = join_all(others.into_iter().zip(1..).map(|(point, number)| Run::begin(&world, point, number))).await;
    for (point, number) in wiping.into_iter().zip(100..) {
        runs.push(Run::begin(&world, point, number).await);
    }
    strike(cluster, crash, &mut runs).await;
    let stale = join_all(runs.into_iter().map(Run::end)).await;
    cluster.heal().await;
    cluster.forgets_all_locks(LIMIT).await;
    stale.into_iter().sum()
}

/// Has it happen, and brings back what the points do not do without.
async fn strike(cluster: &mut Cluster, crash: Crash, runs: &mut [Run]) {
    let world = Arc::clone(&cluster.world);
    let faults = &world.faults;
    match crash {
        Crash::Coordinator | Crash::ShareAnswers => {}
        Crash::Leader => {
            cluster.kill(VICTIM).await;
            faults.carry(Carrying::Works);
        }
        Crash::Isolation => {
            faults.isolate(VICTIM);
            faults.carry(Carrying::Works);
            runs.iter()
                .filter(|run| run.point.then == Then::DecidesInVain)
                .for_each(|run| run.coordinator.send_decision());
            // A lease that was granted before may still be good: not for long.
            let anchor = anchor(VICTIMS_REGION);
            while world.leader(&anchor).await.1 == VICTIM {
                tokio::time::sleep(LOOK).await;
            }
        }
        Crash::Transfer => {
            cluster.lead(VICTIMS_REGION, VICTIM % 3 + 1).await;
            faults.carry(Carrying::Works);
        }
        Crash::Sequencer => {
            world.sequencer.stop();
            let decisions = runs.iter().filter(|run| run.point.then != Then::Dies);
            join_all(decisions.map(|run| async {
                // A certain failure: nobody has a number, and nobody ever will for this request.
                let refused = run.coordinator.try_decide().await;
                let certain = matches!(&refused, Err(region_response::Result::Refusal(refused))
                    if matches!(refused.reason, Some(refusal::Reason::TimedOut(_))));
                assert!(certain, "{}: {refused:?}", run.point.name);
            }))
            .await;
            world.sequencer.restart();
        }
        Crash::NumberAnswer => world.sequencer.lose(Losing::Answer),
        Crash::NumberAndSequencer => world.sequencer.lose(Losing::Sequencer),
    }
    let next = match crash {
        Crash::NumberAnswer | Crash::NumberAndSequencer => runs,
        _ => return,
    };
    let (lost, newest) = (world.sequencer.lost(), world.sequencer.newest());
    for run in next {
        let decision = run.coordinator.decide();
        let restart = async {
            if crash == Crash::NumberAndSequencer {
                world.sequencer.stopped().await;
                world.sequencer.restart();
            }
        };
        let (told, ()) = tokio::join!(decision, restart);
        match (crash, told) {
            (Crash::NumberAnswer, Told::Revision(revision)) => {
                assert_eq!(revision, newest + 1, "the number it was given")
            }
            (_, Told::Revision(revision)) => {
                assert!(revision > newest + 1, "{revision} is not the number that was lost")
            }
            other => panic!("{}: {other:?}", run.point.name),
        }
        run.told = told;
    }
    assert_eq!(world.sequencer.lost(), lost + 1);
}

/// One point under way.
struct Run {
    point: Point,
    coordinator: Coordinator,
    witness: Witness,
    told: Told,
}

impl Run {
    /// Goes to the point's step.
    async fn begin(world: &Arc<World>, point: Point, number: u64) -> Self {
        let number = number + 1_000 * (point.crash as u64 + 1);
        let mut coordinator =
            Coordinator::seed(world, &format!("{:?}-{}", point.crash, point.name), number, &point.parts()).await;
        let witness = Witness::watch(&coordinator);
        match point.step {
            Step::OthersLocked => coordinator.lock_others().await,
            Step::AllLockedAtOnce => coordinator.lock_at_once().await,
            _ => coordinator.lock().await,
        }
        if point.then != Then::Dies && point.then != Then::WakesUpTooLate {
            coordinator.keep_holding();
        }
        let mut told = Told::Nothing;
        match point.step {
            Step::PrimaryLocked | Step::OthersLocked => {}
            Step::SomeLocked => coordinator.lock().await,
            _ => coordinator.lock_all().await,
        }
        match point.step {
            Step::PrimaryLocked | Step::SomeLocked | Step::AllLocked => {}
            Step::OthersLocked | Step::AllLockedAtOnce => {}
            Step::PrimaryReleased => coordinator.release(0).await,
            Step::ParticipantReleased => coordinator.release(1).await,
            Step::DecisionSent | Step::WipeSent => coordinator.send_decision(),
            Step::WipeDecided => told = coordinator.decide().await,
            Step::DecidedNotCarried => {
                let arrived = world.faults.arrived();
                told = coordinator.decide().await;
                assert_eq!(world.faults.arrived(), arrived, "{}: no share has arrived", point.name);
                assert_eq!(coordinator.outcome().await, outcome_response::Outcome::Committed, "{}", point.name);
            }
            Step::Wiping => {
                world.faults.isolate_after_chunks(VICTIM, 4);
                world.faults.carry(Carrying::OnlyOf(coordinator.txn));
                coordinator.send_decision();
                let isolated = tokio::time::timeout(LIMIT, world.faults.isolated(VICTIM)).await;
                assert!(isolated.is_ok(), "{}: the wipe never began", point.name);
            }
        }
        Self { point, coordinator, witness, told }
    }

    /// Goes on from there, and judges what came of it. Returns what [`Witness::judge`] does.
    async fn end(mut self) -> usize {
        let name = self.point.name;
        let coordinator = &mut self.coordinator;
        match self.point.then {
            Then::Dies | Then::DecidesInVain | Then::DecidesAndDies => coordinator.fall_silent(),
            // It was told already if the crash came with its decision.
            Then::Decides if self.told != Told::Nothing => {}
            Then::Decides | Then::DecidesAgain => {
                coordinator.lock_all().await;
                self.told = coordinator.decide().await;
            }
            Then::DecidesLate => {
                let slow = TIME_TO_LIVE + Duration::from_secs(1);
                tokio::time::sleep(slow).await;
                coordinator.lock_all().await;
                tokio::time::sleep(slow / 2).await;
                self.told = coordinator.decide().await;
            }
            Then::WakesUpTooLate => {
                let given_up = async {
                    while coordinator.outcome().await != outcome_response::Outcome::Over {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                let given_up = tokio::time::timeout(LIMIT, given_up).await;
                assert!(given_up.is_ok(), "{name}: a coordinator that is not heard of is given up");
                assert!(!coordinator.hold().await, "{name}: it hears that it is over");
                self.told = coordinator.decide().await;
            }
            Then::LocksPrimaryTooLate => {
                let freed = async {
                    while coordinator.is_locked(1).await {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                let freed = tokio::time::timeout(LIMIT, freed).await;
                assert!(freed.is_ok(), "{name}: without a primary the others are freed");
                assert!(!coordinator.try_lock(0).await, "{name}: the primary was said not to be there");
            }
            Then::LocksPrimaryElsewhere => {
                assert!(!coordinator.try_lock(0).await, "{name}: this leader may not know what the last one said");
                for part in 1..coordinator.parts.len() {
                    coordinator.release(part).await;
                }
            }
            Then::DecidesAndRepeats => {
                self.told = coordinator.decide().await;
                let Told::Revision(revision) = self.told else { panic!("{name}: {:?}", self.told) };
                assert!(self.witness.sees_it_at(revision).await, "{name}: not there at {revision}");
                coordinator.fall_silent();
                coordinator.send_late_copies(revision).await;
            }
            Then::ReleasesAndRepeats => {
                for part in 0..coordinator.parts.len() {
                    coordinator.release(part).await;
                }
                self.told = Told::Over;
                coordinator.fall_silent();
                coordinator.send_late_copies(coordinator.world.sequencer.newest()).await;
            }
            Then::DecidesAndReleases => {
                for part in 0..coordinator.parts.len() {
                    coordinator.release(part).await;
                }
                self.told = Told::Over;
            }
        }
        coordinator.fall_silent();
        let stale = self.witness.judge(self.point.expect, self.told).await;
        // A record that is done, or a transaction that is over, is forgotten.
        let forgotten = async {
            while self.coordinator.outcome().await != outcome_response::Outcome::Over {
                tokio::time::sleep(LOOK).await;
            }
        };
        let forgotten = tokio::time::timeout(LIMIT, forgotten).await;
        assert!(forgotten.is_ok(), "{name}: its record is not forgotten");
        stale
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_may_die_be_slow_or_repeat_itself_at_every_step() {
    run(&[Crash::Coordinator, Crash::ShareAnswers]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_may_die_at_every_step() {
    run(&[Crash::Leader, Crash::Transfer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_may_be_cut_off_at_every_step() {
    run(&[Crash::Isolation]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sequencer_may_die_at_every_step() {
    run(&[Crash::NumberAnswer, Crash::NumberAndSequencer, Crash::Sequencer]).await;
}

/// Every point runs: no kind of crash is named in the table and left out by the tests.
#[test]
fn every_crash_point_is_named_once() {
    for (at, point) in POINTS.iter().enumerate() {
        let same = |other: &&Point| other.crash == point.crash && other.name == point.name;
        assert_eq!(POINTS[at..].iter().filter(same).count(), 1, "{point:?}");
    }
}
