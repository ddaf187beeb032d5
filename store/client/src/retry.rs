//! What to do about a refusal. Pure: one table, from a refusal and the number of attempts to the next step.
//!
//! | refusal            | it happened? | write                            | read                     |
//! |--------------------|--------------|----------------------------------|--------------------------|
//! | not leader, hint   | no           | ask the hinted store             | the same                 |
//! | not leader         | no           | ask the next peer                | the same                 |
//! | epoch mismatch     | no           | learn the regions, ask again     | the same                 |
//! | region not found   | no           | ask placement, and the next peer | the same                 |
//! | busy, timed out    | no           | ask the same store again         | the same                 |
//! | disk full          | no           | etcd's no-space error            | ask the next peer        |
//! | too large          | no           | the way over several regions     | the same                 |
//! | unknown            | perhaps      | etcd's timeout error, no retry   | ask the next peer        |
//!
//! The first two repeats come at once, because routes are usually stale by one step; after that the pause doubles. A
//! waiting request is woken early when its route changes. Every fourth attempt asks placement as well, in case the
//! stores that answer are all out of date. The request's deadline bounds the whole.

use std::time::Duration;

use braid_proto::error::{self, EtcdStatus};
use braid_proto::id::StoreId;
use braid_proto::pb::{Refusal, Region, refusal::Reason};

/// Why a write whose connection broke has an unknown outcome: the words of [`crate::stores`], which tell this case
/// from a leader that lost its office.
pub const CONNECTION_LOST: &str = "connection lost";

/// Repeats that come without a pause.
const IMMEDIATE: u32 = 2;
/// First pause, doubled from attempt to attempt.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause: an election takes one or two seconds, so this is how late its end may be noticed.
const PAUSE_MAX: Duration = Duration::from_millis(320);
/// How often placement is asked while stores keep refusing.
const REFRESH_EVERY: u32 = 4;

/// Whether a request may be repeated when nobody knows whether it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may: it changes nothing.
    Read,
    /// It may not.
    Write,
}

/// What a refusal teaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Lesson {
    /// Nothing: the same store may do it next time.
    Nothing,
    /// This store leads.
    Leader(StoreId),
    /// The store that refused does not lead or cannot be reached.
    NotThisStore,
    /// These regions hold the keys.
    Regions(Vec<Region>),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Try again.
    Again {
        /// Take this in first.
        lesson: Lesson,
        /// Ask placement for the route.
        refresh: bool,
        /// Then wait so long, or until the route changes.
        pause: Duration,
        /// Label of the metric.
        reason: &'static str,
    },
    /// Take the way of transactions over several regions.
    Spread,
    /// Tell the client.
    Fail(EtcdStatus),
}

/// What follows from `refusal`, the answer to attempt number `attempt`, counted from 0.
pub fn decide(kind: Kind, refusal: Refusal, attempt: u32) -> Step {
    let again = |reason, lesson| Step::Again {
        lesson,
        refresh: attempt % REFRESH_EVERY == REFRESH_EVERY - 1,
        pause: pause(attempt),
        reason,
    };
    let refreshed = |reason, lesson| Step::Again { lesson, refresh: true, pause: pause(attempt), reason };
    match (refusal.reason, kind) {
        (Some(Reason::NotLeader(not_leader)), _) => match not_leader.leader {
            Some(leader) => again("not_leader", Lesson::Leader(StoreId(leader.store_id))),
            None => again("no_leader", Lesson::NotThisStore),
        },
        (Some(Reason::EpochMismatch(mismatch)), _) if mismatch.current.is_empty() => {
            refreshed("epoch", Lesson::Nothing)
        }
        (Some(Reason::EpochMismatch(mismatch)), _) => again("epoch", Lesson::Regions(mismatch.current)),
        (Some(Reason::RegionNotFound(_)), _) => refreshed("region_not_found", Lesson::NotThisStore),
        (Some(Reason::Busy(busy)), _) => Step::Again {
            lesson: Lesson::Nothing,
            refresh: false,
            pause: pause(attempt).max(Duration::from_millis(busy.retry_after_ms.into()).min(PAUSE_MAX)),
            reason: "busy",
        },
        (Some(Reason::TimedOut(_)), _) => again("timed_out", Lesson::Nothing),
        (Some(Reason::DiskFull(_)), Kind::Write) => Step::Fail(error::NO_SPACE),
        (Some(Reason::Unknown(unknown)), Kind::Write) if unknown.why == CONNECTION_LOST => {
            Step::Fail(error::TIMEOUT_CONNECTION_LOST)
        }
        (Some(Reason::TooLarge(_)), _) => Step::Spread,
        // A reason that this version does not know may be one that happened.
        (Some(Reason::Unknown(_)) | None, Kind::Write) => Step::Fail(error::TIMEOUT_LEADER_FAIL),
        (Some(Reason::DiskFull(_) | Reason::Unknown(_)) | None, Kind::Read) => {
            again("unanswered", Lesson::NotThisStore)
        }
    }
}

/// How long to wait after attempt number `attempt`.
pub fn pause(attempt: u32) -> Duration {
    match attempt.checked_sub(IMMEDIATE) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_MIN.saturating_mul(1 << doublings.min(16)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests;
