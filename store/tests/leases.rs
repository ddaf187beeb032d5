//! Leases over regions survive the death of whoever has to do with them, at every step of attaching, revoking and expiring:
//! [`POINTS`] names at which message something happens, and what, and every row of it runs on three real stores.
//!
//! What must be true after each (`leases/scenario.rs`): the lease goes, and its keys at one revision; no reader ever saw
//! half of them, at any revision, at any time; no key has a lease that is gone; a lease that is kept alive all the time has
//! its keys; no lock is left.

#[path = "transactions/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod cluster;
#[path = "transactions/faults.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod faults;
#[path = "leases/scenario.rs"]
mod scenario;
#[path = "transactions/sequencer.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod sequencer;

use scenario::{Blow, Ending, Message, Point};

/// The record of every lease is in region 1, which store 1 leads; its keys are in regions 1, 2 and 3, each led by the store of
/// its number.
#[rustfmt::skip]
const POINTS: &[Point] = &[
    // Nobody dies: a message is only late, until others have gone on, and comes twice.
    Point { blow: Blow::Nothing, at: Message::Close, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::Nothing, at: Message::Lock, answer: false, ending: Ending::Expires },
    Point { blow: Blow::Nothing, at: Message::Decide, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::Nothing, at: Message::Commit, answer: false, ending: Ending::Revoked },
    // The store that leads the record's region dies, and with it whoever carries the revocation out.
    Point { blow: Blow::KillsRecord, at: Message::Close, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::KillsRecord, at: Message::Close, answer: true, ending: Ending::Expires },
    Point { blow: Blow::KillsRecord, at: Message::Lock, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::KillsRecord, at: Message::Decide, answer: false, ending: Ending::Expires },
    Point { blow: Blow::KillsRecord, at: Message::Decide, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::KillsRecord, at: Message::Commit, answer: false, ending: Ending::Revoked },
    // The store that leads another region with keys dies.
    Point { blow: Blow::KillsAttached, at: Message::Close, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::KillsAttached, at: Message::Lock, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::KillsAttached, at: Message::Lock, answer: true, ending: Ending::Expires },
    Point { blow: Blow::KillsAttached, at: Message::Decide, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::KillsAttached, at: Message::Commit, answer: true, ending: Ending::Revoked },
    // The record's leader is cut off from its followers and does not know that it is deposed; it comes back.
    Point { blow: Blow::IsolatesRecord, at: Message::Close, answer: false, ending: Ending::Expires },
    Point { blow: Blow::IsolatesRecord, at: Message::Lock, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::IsolatesRecord, at: Message::Decide, answer: false, ending: Ending::Revoked },
    // The regions are led by others all of a sudden.
    Point { blow: Blow::MovesRecord, at: Message::Close, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::MovesRecord, at: Message::Decide, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::MovesAttached, at: Message::Close, answer: true, ending: Ending::Expires },
    Point { blow: Blow::MovesAttached, at: Message::Lock, answer: false, ending: Ending::Revoked },
    // The sequencer dies, and the next one begins above.
    Point { blow: Blow::Sequencer, at: Message::Close, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::Sequencer, at: Message::Decide, answer: false, ending: Ending::Expires },
    // A region with keys is split between them.
    Point { blow: Blow::Splits, at: Message::Close, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::Splits, at: Message::Close, answer: true, ending: Ending::Revoked },
    // The question whether there is such a lease, and its answer, while the region that asks has its first put with it.
    Point { blow: Blow::Nothing, at: Message::Register, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::Nothing, at: Message::Register, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::KillsRecord, at: Message::Register, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::KillsAttached, at: Message::Register, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::IsolatesRecord, at: Message::Register, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::MovesAttached, at: Message::Register, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::MovesRecord, at: Message::Register, answer: false, ending: Ending::Revoked },
    Point { blow: Blow::Splits, at: Message::Register, answer: true, ending: Ending::Revoked },
    Point { blow: Blow::Splits, at: Message::Register, answer: false, ending: Ending::Revoked },
];

macro_rules! blows {
    ($($name:ident: $blow:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            scenario::run(Blow::$blow).await;
        }
    )*};
}

blows! {
    messages_come_late_and_twice: Nothing,
    the_leader_of_the_record_dies: KillsRecord,
    the_leader_of_keys_dies: KillsAttached,
    the_leader_of_the_record_is_deposed: IsolatesRecord,
    the_record_is_led_by_another_store: MovesRecord,
    keys_are_led_by_another_store: MovesAttached,
    the_sequencer_dies: Sequencer,
    a_region_is_split: Splits,
}
