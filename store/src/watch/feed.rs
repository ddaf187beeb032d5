//! What goes to one proxy: a bounded queue of news, and the follows that it is told about.
//!
//! Locks, outermost first: a region's [`super::live::Live`]; a follow's `out`; a feed's `follows`; a feed's `queue`.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_proto::id::{RegionId, Term};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Joined, Left, Refusal, RegionEvents, StoreFrontier, WatchNews, watch_news};
use parking_lot::{Condvar, Mutex};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, Semaphore};

use crate::region::RegionPeer;

/// Messages and bytes of events that wait for one proxy. Beyond it the follows concerned are left. What else waits is
/// bounded by the follows: one `Joined` and one `Left` each, and one frontier behind each batch that was taken.
const NEWS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 64 << 20;
/// Catching up leaves the rest of the queue to what happens now.
const PAST_BYTES_MAX: usize = BYTES_MAX / 4;
const PAST_NEWS_MAX: usize = NEWS_MAX / 4;
/// What waits beside a follow that reads its past; it must find room in the queue at the end.
const WAITING_NEWS_MAX: usize = NEWS_MAX / 4;
const WAITING_BYTES_MAX: usize = BYTES_MAX / 4;
/// News of one message.
const BATCH_NEWS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;
/// Follows of one proxy that read their past at once.
const CATCH_UPS: usize = 4;
/// Between two looks whether a follow that waits for room is still wanted.
const ROOM_LOOK: Duration = Duration::from_millis(100);

/// One connected proxy.
pub struct Feed {
    /// Names it in this process.
    pub id: u64,
    /// What it follows.
    pub follows: Mutex<Follows>,
    /// Permits to read the past.
    pub catch_ups: Arc<Semaphore>,
    queue: Mutex<Queue>,
    filled: Notify,
    room: Condvar,
    /// Newest revision of events that no frontier has covered yet; 0: none.
    owed: AtomicI64,
    /// Newest revision that a frontier is wanted for.
    pub nudged: AtomicI64,
}

#[derive(Default)]
struct Queue {
    news: VecDeque<(WatchNews, usize)>,
    /// How many of them may be taken; the others wait for a frontier.
    ready: usize,
    bytes: usize,
    closed: bool,
}

/// See [`Feed::follows`].
#[derive(Default)]
pub struct Follows {
    /// All of them.
    pub by_id: HashMap<u64, Arc<Follow>>,
    /// Regions with follows, and how many.
    pub regions: FxHashMap<RegionId, (Weak<RegionPeer>, usize)>,
    /// Those that read their past.
    pub catching_up: HashMap<u64, Arc<Follow>>,
    /// The frontier that was said last.
    pub said: Option<StoreFrontier>,
}

/// A range of a region that a proxy follows.
pub struct Follow {
    /// Who is told.
    pub feed: Arc<Feed>,
    /// The proxy's name for it.
    pub id: u64,
    /// Where.
    pub region: Weak<RegionPeer>,
    /// Its id.
    pub region_id: RegionId,
    /// The region's leader's term when it began.
    pub term: Term,
    /// What is followed.
    pub range: KeyRange,
    /// Events above it are wanted.
    pub after: i64,
    /// Whether what was there before is wanted too.
    pub prev_kv: bool,
    /// Everything up to here has been queued; `i64::MAX` once it is live.
    pub progress: AtomicI64,
    /// Held while anything is queued for it, so that nothing comes after its `Left`.
    pub out: Mutex<Phase>,
}

/// How far a follow is.
#[derive(Debug)]
pub enum Phase {
    /// It reads its past; what happens meanwhile it will find there.
    Past,
    /// It reads the rest of its past; what has happened since waits here.
    Joining {
        /// In the order of the log.
        waiting: Vec<RegionEvents>,
        /// Their size.
        bytes: usize,
    },
    /// It is told what happens.
    Live,
    /// It was left, or is not wanted any more.
    Gone,
}

/// Why nothing more can be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Feed {
    /// A feed of nothing.
    pub fn new(id: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            follows: Mutex::default(),
            catch_ups: Arc::new(Semaphore::new(CATCH_UPS)),
            queue: Mutex::default(),
            filled: Notify::new(),
            room: Condvar::new(),
            owed: AtomicI64::new(0),
            nudged: AtomicI64::new(0),
        })
    }

    /// Queues events of the past, unless there is no room.
    pub fn push_past(&self, events: RegionEvents) -> Result<(), Full> {
        self.push_live(events)?;
        self.flush();
        Ok(())
    }

    /// Queues events that have just happened, unless there is no room. They are taken with the frontier that follows at
    /// once, or after [`Self::flush`].
    pub fn push_live(&self, events: RegionEvents) -> Result<(), Full> {
        let bytes = events.encoded_len();
        let mut queue = self.queue.lock();
        let full = queue.news.len() >= NEWS_MAX || (queue.bytes > 0 && queue.bytes + bytes > BYTES_MAX);
        if full && !queue.closed {
            return Err(Full);
        }
        metrics::counter!("braid_watch_events_total").increment(events.events.len() as u64);
        if !queue.closed {
            self.owed.fetch_max(events.revision, Ordering::SeqCst);
            queue.push(watch_news::News::Events(events), bytes);
        }
        Ok(())
    }

    /// Waits until there is room for what has happened long ago. False: `wanted` is over, or nobody listens any more.
    pub fn wait_for_room(&self, wanted: &dyn Fn() -> bool) -> bool {
        // Asked without the lock: what it looks at is locked before the queue.
        while wanted() {
            let mut queue = self.queue.lock();
            if queue.closed {
                return false;
            }
            if queue.bytes <= PAST_BYTES_MAX && queue.news.len() <= PAST_NEWS_MAX {
                return true;
            }
            self.room.wait_for(&mut queue, ROOM_LOOK);
        }
        false
    }

    /// Queues that a follow stands.
    pub fn push_joined(&self, joined: Joined) {
        self.push_small(watch_news::News::Joined(joined));
    }

    /// Queues that a follow ends.
    pub fn push_left(&self, left: Left) {
        self.push_small(watch_news::News::Left(left));
    }

    /// Queues a frontier, for the next [`Self::flush`]. One that is still at the end of the queue is replaced: the new one says more.
    pub fn push_frontier(&self, frontier: StoreFrontier) {
        let mut queue = self.queue.lock();
        if let Some((WatchNews { news: Some(watch_news::News::Frontier(last)) }, bytes)) = queue.news.back_mut() {
            let (before, now) = (*bytes, frontier.encoded_len());
            *last = frontier;
            *bytes = now;
            queue.bytes = queue.bytes - before + now;
            return;
        }
        if !queue.closed {
            let bytes = frontier.encoded_len();
            queue.push(watch_news::News::Frontier(frontier), bytes);
        }
    }

    /// Newest revision of events that no frontier has covered yet; 0: there are none.
    pub fn owed(&self) -> i64 {
        self.owed.load(Ordering::SeqCst)
    }

    /// A frontier has covered everything up to `revision`.
    pub fn covered(&self, revision: i64) {
        let owed = self.owed();
        if owed <= revision {
            // Newer events may have come meanwhile.
            _ = self.owed.compare_exchange(owed, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Lets go what is queued.
    pub fn flush(&self) {
        self.let_go(&mut self.queue.lock());
    }

    /// The next news; `None` once the feed is closed.
    pub async fn take(&self) -> Option<Vec<WatchNews>> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queue = self.queue.lock();
                if queue.closed {
                    return None;
                }
                let mut batch = Vec::new();
                let mut taken = 0;
                while queue.ready > 0 && batch.len() < BATCH_NEWS && taken < BATCH_BYTES {
                    let Some((news, bytes)) = queue.news.pop_front() else { break };
                    queue.ready -= 1;
                    taken += bytes;
                    queue.bytes -= bytes;
                    batch.push(news);
                }
                if !batch.is_empty() {
                    self.room.notify_all();
                    return Some(batch);
                }
            }
            filled.await;
        }
    }

    /// Nobody listens any more: everything it follows is over.
    pub fn close(&self) {
        {
            let mut queue = self.queue.lock();
            *queue = Queue { closed: true, ..Queue::default() };
        }
        self.room.notify_all();
        self.filled.notify_one();
        let gone = {
            let mut follows = self.follows.lock();
            let gone: Vec<_> = follows.by_id.drain().map(|(_, follow)| follow).collect();
            *follows = Follows::default();
            gone
        };
        for follow in gone {
            metrics::gauge!("braid_watch_follows").decrement(1.0);
            follow.end();
        }
    }

    /// Stops to tell about the follow `id`.
    pub fn unfollow(&self, id: u64) {
        let follow = self.follows.lock().by_id.get(&id).map(Arc::clone);
        if let Some(follow) = follow {
            follow.end();
            self.forget(&follow);
        }
    }

    /// Takes a follow that has ended off the list.
    pub fn forget(&self, follow: &Follow) {
        let mut follows = self.follows.lock();
        if follows.by_id.remove(&follow.id).is_none() {
            return;
        }
        metrics::gauge!("braid_watch_follows").decrement(1.0);
        follows.catching_up.remove(&follow.id);
        if let Some((_, count)) = follows.regions.get_mut(&follow.region_id) {
            *count -= 1;
            if *count == 0 {
                follows.regions.remove(&follow.region_id);
            }
        }
    }

    fn push_small(&self, news: watch_news::News) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.push(news, 64);
            self.let_go(&mut queue);
        }
    }

    fn let_go(&self, queue: &mut Queue) {
        if queue.ready < queue.news.len() {
            queue.ready = queue.news.len();
            self.filled.notify_one();
        }
    }
}

impl Queue {
    fn push(&mut self, news: watch_news::News, bytes: usize) {
        self.news.push_back((WatchNews { news: Some(news) }, bytes));
        self.bytes += bytes;
    }
}

impl Follow {
    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        matches!(*self.out.lock(), Phase::Gone)
    }

    /// Queues events of its past. False: it has ended.
    pub fn tell_past(&self, events: RegionEvents) -> Result<bool, Full> {
        let out = self.out.lock();
        if matches!(*out, Phase::Gone) {
            return Ok(false);
        }
        self.feed.push_past(events).map(|()| true)
    }

    /// Ends it with word to the proxy, if it has not ended yet. The caller takes it off the region's and the feed's lists.
    pub fn leave(&self, refusal: Option<Refusal>, compacted: i64) {
        let mut out = self.out.lock();
        if !matches!(*out, Phase::Gone) {
            *out = Phase::Gone;
            self.feed.push_left(Left { id: self.id, refusal, compacted });
        }
    }

    /// Keeps `events` until its past is read.
    pub fn keep(waiting: &mut Vec<RegionEvents>, bytes: &mut usize, events: RegionEvents) -> Result<(), Full> {
        *bytes += events.encoded_len();
        if waiting.len() >= WAITING_NEWS_MAX || *bytes > WAITING_BYTES_MAX {
            return Err(Full);
        }
        waiting.push(events);
        Ok(())
    }

    /// Ends it in silence and takes it off its region's list.
    pub fn end(&self) {
        *self.out.lock() = Phase::Gone;
        if let Some(region) = self.region.upgrade() {
            region.live().remove(self);
        }
    }

    /// Ends it with word to the proxy, and takes it off all lists.
    pub fn end_with(&self, refusal: Option<Refusal>, compacted: i64) {
        self.leave(refusal, compacted);
        self.end();
        self.feed.forget(self);
    }
}
