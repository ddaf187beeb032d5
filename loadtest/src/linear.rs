//! Judges whether a cluster was strictly serializable: whether the whole KV behaved as one object, one request after the
//! other, in an order that real time allows.
//!
//! Checking that for an object of many keys is hard in general (the order has to be searched for), but every answer of
//! an etcd carries its place in the order: what changes something carries the revision it took, what changes nothing the
//! revision it saw. So the order is claimed by the server and only has to be verified, which takes n log n:
//!
//! 1. Clients record what they asked, when, and what was answered (`run`, `workload`, `history`). Values are unique, so a
//!    value tells which write it came from. A mutating request without an answer is *unknown*: it took any one revision
//!    after it was sent, or none.
//! 2. Revisions that no answer claims may be holes, or belong to unknown requests. What happened at them is read from the
//!    cluster's own history, by reads of the whole key space at old revisions (`evidence` says which are needed, `run`
//!    reads them). That makes the check exact, without a search: each such revision's change must be what one unknown
//!    request would have done there, each request at most once (`unknown`).
//! 3. All changes are replayed in the order of their revisions (`replay`, `state`), and every answer is compared with what
//!    the replayed state gives at its revision (`differ`); a difference is named by what it means (`blame`).
//! 4. Revisions must follow real time (`order`): what was sent after an answer came takes a higher revision than that
//!    answer showed, or sees at least that one.
//! 5. Beside this, money that is moved between keys must add up in every answer that shows all of it (`invariant`). This
//!    follows from the rest; it is checked without the replay, so that a mistake there cannot hide it.
//!
//! Why no checker crate does it: those on the registry search for an order (Wing and Gong's algorithm, exponential in the
//! number of concurrent or unknown operations) and cannot be told the one that the revisions give. `stateright` has the
//! best kept of them, with operations of unknown outcome; the tests use it as a second opinion on thousands of small
//! histories, right ones and corrupted ones, and both must agree.
//!
//! Not judged: leases, watches, compaction, sorted and filtered ranges, nested transactions, headers inside of a
//! transaction's answer. Nobody else may write to the cluster meanwhile.

use std::collections::BTreeSet;

use crate::check::Violation;

mod blame;
mod differ;
mod evidence;
pub mod history;
mod invariant;
mod order;
mod replay;
pub mod run;
pub mod state;
mod unknown;
mod words;
pub mod workload;

pub use evidence::{Missing, missing};
use history::History;

/// What a history shows.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// What must not have happened.
    pub violations: Vec<Violation>,
    /// Requests of unknown outcome of which the history shows that they took effect.
    pub unknown_done: usize,
    /// Revisions at which nothing happened.
    pub holes: usize,
}

impl Verdict {
    /// The broken properties, each once.
    pub fn properties(&self) -> BTreeSet<&'static str> {
        self.violations.iter().map(|violation| violation.property).collect()
    }
}

/// Judges a history. Fails if it cannot be judged: it holds requests that are not supported, values that are not unique,
/// or lacks reads of revisions nobody claimed (see `missing`).
pub fn check(history: &History) -> anyhow::Result<Verdict> {
    let index = history::Index::new(history)?;
    let missing = missing(history)?;
    anyhow::ensure!(
        missing.is_empty(),
        "what happened at {} revisions is not known, such as {}: read the whole key space there",
        missing.revisions.len(),
        missing.revisions[0]
    );
    let floors = order::floors(history);
    let replayed = replay::replay(history, &index, &floors);
    let mut verdict = Verdict { unknown_done: replayed.unknown_done, holes: replayed.holes, violations: Vec::new() };
    verdict.violations.extend(replayed.violations);
    verdict.violations.extend(order::check(history, &floors));
    verdict.violations.extend(invariant::check(history));
    Ok(verdict)
}
