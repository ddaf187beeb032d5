//! One API server's watches: on pods, node leases and events, all on one stream.
//!
//! Every update that the worker was told is done must come along once, and revisions must not fall. How long news takes
//! counts from the start of the update, whoever made it: all workers share a clock.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::Status;

use super::objects::{EVENTS, NODE_LEASES, PODS};
use super::{Client, STAMP_BYTES, Trouble, wrong};
use crate::client::prefix_end;
use crate::histogram::Latencies;
use crate::runner::Clock;
use crate::watch::stream::{Target, WatchStream};
use crate::watch::wire::WatchMessage;

/// How long news may be under way at the end.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the watches were told.
pub struct Watcher {
    /// What stamps count from.
    begin: Instant,
    clock: Option<Clock>,
    latencies: Latencies,
    /// Highest revision at each watch.
    last: [i64; 3],
    /// Own updates that were acknowledged and have not come along.
    missing: HashSet<i64>,
    /// The newest revisions that came along without being acknowledged here: most are other workers' updates.
    early: BTreeSet<i64>,
    /// How the stream ended.
    broken: Option<String>,
    progress: Rc<Notify>,
}

/// So many are remembered; an acknowledgement does not come that late.
const EARLY_MAX: usize = 100_000;

impl Watcher {
    /// Opens the stream and follows it, on a task of the worker's thread, for as long as somebody holds what this gives.
    pub async fn start(client: &Client) -> Result<Rc<RefCell<Self>>, Trouble> {
        let targets = [PODS, NODE_LEASES, EVENTS].map(|prefix| Target {
            key: Bytes::from_static(prefix.as_bytes()),
            end: prefix_end(prefix.as_bytes()),
            start_revision: 0,
        });
        let stream = WatchStream::open(client.channel.clone(), targets.to_vec()).await;
        let stream = stream.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let watcher = Rc::new(RefCell::new(Self {
            begin: client.common.begin,
            clock: None,
            latencies: Latencies::new(),
            last: [0; 3],
            missing: HashSet::new(),
            early: BTreeSet::new(),
            broken: None,
            progress: Rc::new(Notify::new()),
        }));
        tokio::task::spawn_local(follow(stream, Rc::downgrade(&watcher)));
        Ok(watcher)
    }

    /// From when to when latencies count.
    pub fn begin(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    /// An own update was acknowledged at this revision.
    pub fn acknowledged(&mut self, revision: i64) {
        if !self.early.remove(&revision) {
            self.missing.insert(revision);
        }
    }

    /// What was measured.
    pub fn take_latencies(&mut self) -> Latencies {
        std::mem::take(&mut self.latencies)
    }

    fn message(&mut self, watch: usize, message: &WatchMessage) -> Result<(), String> {
        let now = Instant::now();
        for event in message.events() {
            let event = event.map_err(|_| "an event that cannot be read".to_owned())?;
            let last = &mut self.last[watch];
            if event.revision < *last {
                return Err(format!("DISORDER: revision {} came after {last}", event.revision));
            }
            // What one revocation deletes has one revision; every put of this workload has its own.
            if event.revision == *last && !event.value.is_empty() {
                return Err(format!("REPEATED: revision {last} came twice"));
            }
            *last = event.revision;
            if !self.missing.remove(&event.revision) {
                if self.early.len() == EARLY_MAX {
                    self.early.pop_first();
                }
                self.early.insert(event.revision);
            }
            if let (Some(clock), Some(stamp)) = (self.clock, event.value.first_chunk::<STAMP_BYTES>()) {
                let start = self.begin + Duration::from_nanos(u64::from_le_bytes(*stamp));
                if clock.counts(start) {
                    self.latencies.record(now.saturating_duration_since(start));
                }
            }
        }
        self.progress.notify_one();
        Ok(())
    }
}

async fn follow(mut stream: WatchStream, watcher: Weak<RefCell<Watcher>>) {
    loop {
        let message = stream.next().await;
        let Some(watcher) = watcher.upgrade() else { return };
        let mut watcher = watcher.borrow_mut();
        let taken = message.map_err(|error| format!("{error:#}"));
        if let Err(why) = taken.and_then(|(watch, message)| watcher.message(watch, &message)) {
            watcher.broken = Some(why);
            watcher.progress.notify_one();
            return;
        }
    }
}

/// Waits until every own update has come along.
pub async fn complete(watcher: &RefCell<Watcher>) -> Result<(), Trouble> {
    let progress = Rc::clone(&watcher.borrow().progress);
    let all_seen = async {
        loop {
            let heard = progress.notified();
            {
                let watcher = watcher.borrow();
                if let Some(why) = &watcher.broken {
                    return Err(wrong(format_args!("an API server's watch: {why}")));
                }
                if watcher.missing.is_empty() {
                    return Ok(());
                }
            }
            heard.await;
        }
    };
    match timeout(PATIENCE, all_seen).await {
        Ok(result) => result,
        Err(_) => {
            let watcher = watcher.borrow();
            let (count, first) = (watcher.missing.len(), watcher.missing.iter().min());
            Err(wrong(format_args!("LOST: {count} updates were not seen by a watch, the first at {first:?}")))
        }
    }
}
