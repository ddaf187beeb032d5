//! The commit protocol of transactions over several regions survives the death of its coordinator, of any region's leader
//! and of the sequencer, at every step: [`POINTS`] names where each of them dies, and every row of it runs on three real
//! stores.
//!
//! What must be true after each (`transactions/scenario.rs`, `transactions/witness.rs`): all keys can be read and written again within a lock's time
//! to live and what an election takes; the transaction has happened everywhere at one revision or nowhere; no reader ever
//! saw half of it, at any revision, at any time; what the coordinator was told is true; no revision is used twice; no lock
//! and no record is left.

#[path = "transactions/cluster.rs"]
mod cluster;
#[path = "transactions/coordinator.rs"]
mod coordinator;
#[path = "transactions/faults.rs"]
mod faults;
#[path = "transactions/reads.rs"]
mod reads;
#[path = "transactions/scenario.rs"]
mod scenario;
#[path = "transactions/sequencer.rs"]
mod sequencer;
#[path = "transactions/splits.rs"]
mod splits;
#[path = "transactions/witness.rs"]
mod witness;

use scenario::{Crash, Point, Step, Then};
use witness::Expect;

/// The leader of region 2 is the one that dies: where a transaction begins in region 1 it leads a participant, where it
/// begins in region 2 it leads the primary.
const PARTICIPANT: &str = "anu";
const PRIMARY: &str = "nu";

/// Every crash point: who dies how, where the coordinator is then, what it does after, and what must come of it.
#[rustfmt::skip]
const POINTS: &[Point] = &[
    // The coordinator dies, or is only slow, or its messages come twice.
    Point { crash: Crash::Coordinator, name: "no-crash", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "primary-locked", over: PARTICIPANT, step: Step::PrimaryLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "some-locked", over: PARTICIPANT, step: Step::SomeLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "all-locked", over: PARTICIPANT, step: Step::AllLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "at-once", over: PARTICIPANT, step: Step::AllLockedAtOnce, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "at-once-dies", over: PARTICIPANT, step: Step::AllLockedAtOnce, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "others-locked", over: PARTICIPANT, step: Step::OthersLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "primary-too-late", over: PARTICIPANT, step: Step::OthersLocked, then: Then::LocksPrimaryTooLate, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "primary-released", over: PARTICIPANT, step: Step::PrimaryReleased, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "participant-released", over: PARTICIPANT, step: Step::ParticipantReleased, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "decision-sent", over: PARTICIPANT, step: Step::DecisionSent, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "decision-sent-wipe", over: PARTICIPANT, step: Step::WipeSent, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "slow", over: PARTICIPANT, step: Step::PrimaryLocked, then: Then::DecidesLate, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "back-too-late", over: PARTICIPANT, step: Step::AllLocked, then: Then::WakesUpTooLate, expect: Expect::Over },
    Point { crash: Crash::Coordinator, name: "late-copies", over: PARTICIPANT, step: Step::AllLocked, then: Then::DecidesAndRepeats, expect: Expect::Done },
    Point { crash: Crash::Coordinator, name: "late-copies-over", over: PARTICIPANT, step: Step::AllLocked, then: Then::ReleasesAndRepeats, expect: Expect::Over },
    // A leader's process dies: its memory and its connections are gone.
    Point { crash: Crash::Leader, name: "p-primary-locked", over: PRIMARY, step: Step::PrimaryLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Leader, name: "p-primary-locked-on", over: PRIMARY, step: Step::PrimaryLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "p-all-locked", over: PRIMARY, step: Step::AllLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Leader, name: "p-all-locked-on", over: PRIMARY, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "p-others-locked", over: PRIMARY, step: Step::OthersLocked, then: Then::LocksPrimaryElsewhere, expect: Expect::Over },
    Point { crash: Crash::Leader, name: "p-decided", over: PRIMARY, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "p-wiping", over: PRIMARY, step: Step::Wiping, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "s-primary-locked", over: PARTICIPANT, step: Step::PrimaryLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "s-some-locked", over: PARTICIPANT, step: Step::SomeLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Leader, name: "s-all-locked", over: PARTICIPANT, step: Step::AllLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Leader, name: "s-all-locked-on", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Leader, name: "s-decided", over: PARTICIPANT, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    // A leader is cut off from its followers but not from its callers, and does not know that it is deposed.
    Point { crash: Crash::Isolation, name: "p-primary-locked", over: PRIMARY, step: Step::PrimaryLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Isolation, name: "p-all-locked-on", over: PRIMARY, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Isolation, name: "p-decided-in-vain", over: PRIMARY, step: Step::AllLocked, then: Then::DecidesInVain, expect: Expect::Over },
    Point { crash: Crash::Isolation, name: "p-others-locked", over: PRIMARY, step: Step::OthersLocked, then: Then::LocksPrimaryElsewhere, expect: Expect::Over },
    Point { crash: Crash::Isolation, name: "p-decided", over: PRIMARY, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Isolation, name: "s-all-locked", over: PARTICIPANT, step: Step::AllLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Isolation, name: "s-all-locked-on", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Isolation, name: "s-decided", over: PARTICIPANT, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Isolation, name: "s-wiping", over: PARTICIPANT, step: Step::Wiping, then: Then::Dies, expect: Expect::Done },
    // Leadership is handed over, as before every planned stop.
    Point { crash: Crash::Transfer, name: "p-primary-locked", over: PRIMARY, step: Step::PrimaryLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Transfer, name: "p-all-locked", over: PRIMARY, step: Step::AllLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Transfer, name: "p-all-locked-on", over: PRIMARY, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Transfer, name: "p-others-locked", over: PRIMARY, step: Step::OthersLocked, then: Then::LocksPrimaryElsewhere, expect: Expect::Over },
    Point { crash: Crash::Transfer, name: "p-decided", over: PRIMARY, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Transfer, name: "p-wiping", over: PRIMARY, step: Step::WipeDecided, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::Transfer, name: "s-some-locked", over: PARTICIPANT, step: Step::SomeLocked, then: Then::Dies, expect: Expect::Over },
    Point { crash: Crash::Transfer, name: "s-all-locked-on", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    Point { crash: Crash::Transfer, name: "s-decided", over: PARTICIPANT, step: Step::DecidedNotCarried, then: Then::Dies, expect: Expect::Done },
    // The answer for a share is lost after it was done.
    Point { crash: Crash::ShareAnswers, name: "answers", over: PARTICIPANT, step: Step::DecisionSent, then: Then::Dies, expect: Expect::Done },
    Point { crash: Crash::ShareAnswers, name: "answers-wipe", over: PARTICIPANT, step: Step::WipeSent, then: Then::Dies, expect: Expect::Done },
    // The sequencer is dead when the decision is to get its number, for longer than a store waits for one.
    Point { crash: Crash::Sequencer, name: "decides-again", over: PARTICIPANT, step: Step::AllLocked, then: Then::DecidesAgain, expect: Expect::Done },
    Point { crash: Crash::Sequencer, name: "gives-up", over: PARTICIPANT, step: Step::AllLocked, then: Then::DecidesAndReleases, expect: Expect::Over },
    Point { crash: Crash::Sequencer, name: "dies-too", over: PARTICIPANT, step: Step::AllLocked, then: Then::DecidesAndDies, expect: Expect::Over },
    Point { crash: Crash::Sequencer, name: "never-decides", over: PARTICIPANT, step: Step::SomeLocked, then: Then::Dies, expect: Expect::Over },
    // The number is given, and the answer is lost.
    Point { crash: Crash::NumberAnswer, name: "lost", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
    // The number is given, and the sequencer dies before anybody hears of it; the next one takes over in time.
    Point { crash: Crash::NumberAndSequencer, name: "lost-for-good", over: PARTICIPANT, step: Step::AllLocked, then: Then::Decides, expect: Expect::Done },
];
