//! The past of a follow: read from disk, page by page, until what happens now can take over.
//!
//! 1. Pages of a snapshot each, up to the revision that nothing applied later can be at or below: what comes late is
//!    found by a later page. Nothing waits meanwhile.
//! 2. Once little is left: under the region's lock one more snapshot is taken, and from that moment on what is applied is
//!    kept beside. The rest of the past, now without a limit, is queued, and what was kept behind it.
//!
//! Blocks: it runs on a thread where it may.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::pb::{RegionEvent, RegionEvents};
use braid_store_core::pipeline::busy;
use braid_store_core::view::Damaged;

use super::feed::{Follow, Full};
use super::live::fell_behind;
use crate::engine::{Cursor, Page, PastEvent, Snapshot, known};
use crate::region::RegionPeer;

/// How a step ended.
enum Step {
    /// All of it is queued.
    Done,
    /// There is more.
    More,
    /// The follow has ended.
    Over,
}

/// Why it cannot go on.
enum Failed {
    Damaged(Damaged),
    Full,
}

impl From<Damaged> for Failed {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

impl From<Full> for Failed {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

/// Reads the past of `follow` and lets it go live, or ends it.
pub fn run(region: &RegionPeer, follow: &Arc<Follow>) {
    metrics::counter!("braid_watch_catch_ups_total").increment(1);
    match catch_up(region, follow) {
        Ok(()) => {}
        Err(Failed::Full) => {
            fell_behind(follow);
            follow.end_with(None, 0);
        }
        Err(Failed::Damaged(damage)) => {
            region.poison(&damage.0);
            follow.end_with(Some(busy("the region's data is damaged")), 0);
        }
    }
}

/// Goes live at once if nothing has happened above `after`. False: the past must be read.
pub fn at_once(region: &RegionPeer, follow: &Arc<Follow>) -> bool {
    let mut live = region.live().lock();
    if region.data().max_applied() > follow.after {
        return false;
    }
    match live.join(follow, region.data()) {
        Ok(Some(_)) => live.go_live(follow).is_ok(),
        Ok(None) => true,
        // Reading the past will say so.
        Err(_) => false,
    }
}

fn catch_up(region: &RegionPeer, follow: &Arc<Follow>) -> Result<(), Failed> {
    let mut cursor = (follow.after, u32::MAX);
    while has_room(follow) {
        let (snapshot, frontier) = region.data().moment()?;
        if frontier <= cursor.0 {
            break;
        }
        match page(&snapshot, follow, &mut cursor, frontier)? {
            Step::Done => break,
            Step::More => {}
            Step::Over => return Ok(()),
        }
    }
    let Some(snapshot) = region.live().lock().join(follow, region.data())? else { return Ok(()) };
    while has_room(follow) {
        match page(&snapshot, follow, &mut cursor, i64::MAX)? {
            Step::Done => {
                region.live().lock().go_live(follow)?;
                break;
            }
            Step::More => {}
            Step::Over => break,
        }
    }
    Ok(())
}

/// Waits for room. False: the follow has ended.
fn has_room(follow: &Follow) -> bool {
    follow.feed.wait_for_room(&|| !follow.is_gone())
}

/// Queues the next page up to `upto`, and moves `cursor` behind it.
fn page(snapshot: &Snapshot, follow: &Arc<Follow>, cursor: &mut Cursor, upto: i64) -> Result<Step, Failed> {
    let (events, next) = match snapshot.past(&follow.range, *cursor, upto, follow.prev_kv)? {
        Page::Events { events, next } => (events, next),
        Page::Compacted(boundary) => {
            follow.end_with(None, boundary);
            return Ok(Step::Over);
        }
    };
    for events in by_revision(follow.id, events) {
        if !follow.tell_past(events)? {
            return Ok(Step::Over);
        }
    }
    *cursor = next.unwrap_or((upto, u32::MAX));
    // What the last page of all covers is said by going live.
    if upto < i64::MAX || next.is_some() {
        follow.progress.fetch_max(known(*cursor), Ordering::SeqCst);
    }
    Ok(if next.is_some() { Step::More } else { Step::Done })
}

/// One message for each revision.
fn by_revision(id: u64, events: Vec<PastEvent>) -> Vec<RegionEvents> {
    let mut messages: Vec<RegionEvents> = Vec::new();
    for PastEvent { revision, sub, event } in events {
        let event = RegionEvent { sub, event: Some(event) };
        match messages.last_mut().filter(|last| last.revision == revision) {
            Some(last) => last.events.push(event),
            None => messages.push(RegionEvents { ids: vec![id], revision, events: vec![event] }),
        }
    }
    messages
}
