//! Revisions follow real time: what was sent after an answer came takes a higher revision than that answer showed, or
//! sees at least that one. This holds for whatever keys.

use super::history::{History, Op, Outcome, Place, Request};
use super::words::op_text;
use crate::check::Violation;

/// The highest revision that was shown before a request was sent.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// The revision.
    pub revision: i64,
    /// The request whose answer showed it; none for the one at which all began.
    pub shown_by: Option<usize>,
}

/// The floor of each request.
pub fn floors(history: &History) -> Vec<Floor> {
    let ops = &history.ops;
    let mut by_sent: Vec<usize> = (0..ops.len()).collect();
    let mut by_ended = by_sent.clone();
    by_sent.sort_unstable_by_key(|&op| ops[op].sent);
    by_ended.sort_unstable_by_key(|&op| ops[op].ended);
    let mut past = by_ended.into_iter().peekable();
    let mut highest = Floor { revision: history.base, shown_by: None };
    let mut floors = vec![highest; ops.len()];
    for op in by_sent {
        // Ended at the very moment the other was sent: nobody can tell which came first.
        while let Some(before) = past.next_if(|&before| ops[before].ended < ops[op].sent) {
            if let Some(revision) = ops[before].shown().filter(|&revision| revision > highest.revision) {
                highest = Floor { revision, shown_by: Some(before) };
            }
        }
        floors[op] = highest;
    }
    floors
}

/// Checks it.
pub fn check(history: &History, floors: &[Floor]) -> Vec<Violation> {
    let judged = history.ops.iter().zip(floors).filter_map(|(op, floor)| {
        let text = judge(op, floor.revision)?;
        let before = match floor.shown_by {
            Some(before) => format!("\n  before: {}", op_text(&history.ops[before])),
            None => format!("\n  before: the start of the history showed @{}", history.base),
        };
        Some(Violation { property: "real time", text: format!("{text}{before}\n  then:   {}", op_text(op)) })
    });
    judged.collect()
}

fn judge(op: &Op, floor: i64) -> Option<String> {
    if let (Outcome::Refused(why), Request::Range(range)) = (&op.outcome, &op.request) {
        let wrong = why.contains("future revision") && range.revision <= floor;
        return wrong.then(|| format!("@{} was called future after @{floor} had been shown", range.revision));
    }
    let shown = op.shown()?;
    match op.place()? {
        Place::Took(revision) if revision <= floor => {
            Some(format!("@{revision} was taken after @{floor} had been shown"))
        }
        Place::Saw(_) if shown < floor => Some(format!("@{shown} was shown after @{floor} had been shown")),
        Place::Saw(seen) if seen > shown => Some(format!("@{seen} was read when the newest was @{shown}")),
        Place::Took(_) | Place::Saw(_) => None,
    }
}
