//! Who watches a transaction from outside the whole time: takes a bound, reads everything the transaction touches at that
//! bound in all regions, and remembers it. In turn it reads the same at the replicas of one store, whether they lead or not,
//! where they say that they are so far. Once it is known what happened, every such snapshot is held against it: one that
//! shows half a transaction, or changed its mind later, is found whenever it was taken.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use braid_proto::key::user_key;
use braid_proto::pb::{FrontierRequest, ReadRequest, region_request, region_response};
use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::World;
use crate::coordinator::{Coordinator, LIMIT, Told, absent, after, existing, text, wiped};

/// Between two snapshots: what two cores can do beside everything else.
const PACE: Duration = Duration::from_millis(100);
/// How long a replica may take to be as far as its leader.
const STALE_PATIENCE: Duration = Duration::from_secs(1);
/// Snapshots that are taken once more at the end, at the same revisions.
const AGAIN: usize = 8;

/// Something that a snapshot looks at.
#[derive(Clone, Debug)]
enum Cell {
    Key(String),
    /// How many keys there are with this prefix.
    Count(String),
}

impl Cell {
    fn name(&self) -> &str {
        match self {
            Self::Key(name) | Self::Count(name) => name,
        }
    }

    fn range(&self) -> RangeRequest {
        match self {
            Self::Key(key) => RangeRequest { key: text(key), ..Default::default() },
            Self::Count(prefix) => {
                let range_end = text(&after(prefix));
                RangeRequest { key: text(prefix), range_end, count_only: true, ..Default::default() }
            }
        }
    }

    fn seen(&self, answer: &RangeResponse) -> Seen {
        match (self, answer.kvs.first()) {
            (Self::Count(_), _) => Seen::Count(answer.count),
            (Self::Key(_), None) => Seen::Nothing,
            (Self::Key(_), Some(kv)) => Seen::Value(String::from_utf8_lossy(&kv.value).into_owned(), kv.mod_revision),
        }
    }
}

/// What was there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// A value and the revision it was put at.
    Value(String, i64),
    Count(i64),
}

/// Everything a transaction touches, at one revision.
struct Snapshot {
    bound: i64,
    seen: Vec<Seen>,
    /// Whether one store's replicas said so, and not the leaders.
    stale: bool,
}

/// What a transaction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It happens.
    Done,
    /// It does not.
    Over,
}

/// See the module's text.
pub struct Witness {
    name: Arc<str>,
    world: Arc<World>,
    cells: Vec<Cell>,
    /// What each cell holds from which revision on.
    history: Vec<Vec<(i64, Seen)>>,
    stop: watch::Sender<bool>,
    watching: JoinHandle<Vec<Snapshot>>,
}

impl Witness {
    /// Begins to watch a transaction that has not begun.
    pub fn watch(of: &Coordinator) -> Self {
        let (mut cells, mut history) = (Vec::new(), Vec::new());
        for (part, seeded) in of.parts.iter().zip(&of.seeded) {
            cells.push(Cell::Key(absent(part.letter, &of.name)));
            history.push(vec![(0, Seen::Nothing)]);
            cells.push(Cell::Key(existing(part.letter, &of.name)));
            history.push(vec![(0, Seen::Value("old".to_owned(), *seeded))]);
            if part.wipes > 0 {
                cells.push(Cell::Count(wiped(part.letter, &of.name)));
                history.push(vec![(0, Seen::Count(part.wipes as i64))]);
            }
        }
        let (stop, stopped) = watch::channel(false);
        let watching = tokio::spawn(watch_cells(Arc::clone(&of.world), Arc::clone(&of.name), cells.clone(), stopped));
        Self { name: Arc::clone(&of.name), world: Arc::clone(&of.world), cells, history, stop, watching }
    }

    /// Sees that the transaction came to what it must, that all it touched can be read and written again in time, and that
    /// nobody ever saw anything else. Returns how often replicas were asked that need not lead.
    pub async fn judge(mut self, expect: Expect, told: Told) -> usize {
        let ended = tokio::time::timeout(LIMIT, self.end(expect, told)).await;
        ended.unwrap_or_else(|_| panic!("{}: keys are blocked for more than {LIMIT:?}", self.name));
        self.stop.send_replace(true);
        let snapshots = (&mut self.watching).await.expect("the watching ends well");
        assert!(!snapshots.is_empty(), "{}: nobody has looked", self.name);
        for Snapshot { bound, seen, .. } in &snapshots {
            self.check(*bound, seen);
        }
        // What was said about a revision stays true.
        let step = snapshots.len().div_ceil(AGAIN);
        for Snapshot { bound, seen, .. } in snapshots.iter().step_by(step) {
            let again = look(&self.world, &self.name, &self.cells, *bound).await;
            assert_eq!(again, *seen, "{}: the snapshot at {bound} has changed", self.name);
        }
        snapshots.iter().filter(|snapshot| snapshot.stale).count()
    }

    async fn end(&mut self, expect: Expect, told: Told) {
        let name = Arc::clone(&self.name);
        let (bound, seen, revision) = loop {
            let bound = self.world.sequencer.bound().await;
            let seen = look(&self.world, &name, &self.cells, bound).await;
            let revision = seen.iter().find_map(|seen| match seen {
                Seen::Value(value, revision) if value == "new" => Some(*revision),
                _ => None,
            });
            // Who was told nothing may have sent a decision that is still on its way.
            match (expect, revision, told) {
                (Expect::Done, None, Told::Nothing) => tokio::time::sleep(PACE).await,
                _ => break (bound, seen, revision),
            }
        };
        match (expect, revision) {
            (Expect::Done, Some(_)) | (Expect::Over, None) => {}
            _ => panic!("{name}: {expect:?} is not what became of it: {seen:?}"),
        }
        match told {
            Told::Nothing => revision.map(|revision| self.world.sequencer.uses(revision)),
            Told::Revision(_) | Told::Over => None,
        };
        match told {
            Told::Nothing => {}
            Told::Revision(told) => assert_eq!(revision, Some(told), "{name}: told {told}: {seen:?}"),
            Told::Over => assert_eq!(revision, None, "{name}: told that it is over: {seen:?}"),
        }
        if let Some(revision) = revision {
            for (cell, history) in self.cells.iter().zip(&mut self.history) {
                history.push((
                    revision,
                    match cell {
                        Cell::Key(_) => Seen::Value("new".to_owned(), revision),
                        Cell::Count(_) => Seen::Count(0),
                    },
                ));
            }
        }
        self.check(bound, &seen);
        for at in 0..self.cells.len() {
            let (key, count) = match &self.cells[at] {
                Cell::Key(key) => (key.clone(), None),
                Cell::Count(prefix) => (format!("{prefix}00000"), Some(self.history[at].last())),
            };
            let before = match count {
                Some(Some((_, Seen::Count(count)))) => Some(*count),
                _ => None,
            };
            let put = PutRequest { key: text(&key), value: text("after"), ..Default::default() };
            let answer = self.world.ask_once(&user_key(key.as_bytes()), region_request::Op::Put(put), LIMIT).await;
            let region_response::Result::Put(put) = answer else { panic!("{name}: {key} is not put: {answer:?}") };
            let put = self.world.sequencer.uses(put.header.expect("a header").revision);
            let seen = match before {
                None => Seen::Value("after".to_owned(), put),
                // The key is the first one of the range: there if it was not wiped.
                Some(count) => Seen::Count(count.max(1)),
            };
            self.history[at].push((put, seen));
        }
        // A read without a revision sees what was just put: it waits for no lock either.
        let newest = look(&self.world, &name, &self.cells, 0).await;
        let last: Vec<Seen> = self.history.iter().map(|cell| cell[cell.len() - 1].1.clone()).collect();
        assert_eq!(newest, last, "{name}");
    }

    fn check(&self, bound: i64, seen: &[Seen]) {
        for ((cell, history), seen) in self.cells.iter().zip(&self.history).zip(seen) {
            let (_, expected) = history.iter().rev().find(|(from, _)| *from <= bound).expect("history begins at 0");
            assert_eq!(seen, expected, "{}: {cell:?} at {bound}, of {history:?}", self.name);
        }
    }

    /// Whether a reader at `revision` sees what the transaction does; all of it or nothing.
    pub async fn sees_it_at(&self, revision: i64) -> bool {
        let seen = look(&self.world, &self.name, &self.cells, revision).await;
        let new = seen.iter().filter(|seen| matches!(seen, Seen::Value(value, _) if value == "new")).count();
        let keys = seen.iter().filter(|seen| !matches!(seen, Seen::Count(_))).count();
        assert!(new == 0 || new == keys, "{}: half of it at {revision}: {seen:?}", self.name);
        new > 0
    }
}

/// Takes snapshots until it is stopped: of the leaders, and beside that of the replicas of one store after the other.
async fn watch_cells(
    world: Arc<World>,
    name: Arc<str>,
    cells: Vec<Cell>,
    stopped: watch::Receiver<bool>,
) -> Vec<Snapshot> {
    let eye = Arc::new((world, name, cells));
    let other = Arc::clone(&eye);
    let leaders = take_snapshots(stopped.clone(), move |_| {
        let eye = Arc::clone(&eye);
        async move {
            let (world, name, cells) = &*eye;
            // While no sequencer runs the newest revision is still the newest.
            let bound = world.sequencer.newest();
            let seen = look(world, name, cells, bound).await;
            Some(Snapshot { bound, seen, stale: false })
        }
    });
    let replicas = take_snapshots(stopped, move |turn| {
        let eye = Arc::clone(&other);
        async move {
            let (world, _, cells) = &*eye;
            look_stale(world, turn % 3 + 1, cells, world.sequencer.newest()).await
        }
    });
    let (mut snapshots, stale) = tokio::join!(leaders, replicas);
    snapshots.extend(stale);
    snapshots
}

async fn take_snapshots<F>(mut stopped: watch::Receiver<bool>, take: impl Fn(u64) -> F) -> Vec<Snapshot>
where
    F: Future<Output = Option<Snapshot>>,
{
    let mut snapshots = Vec::new();
    let mut turns = tokio::time::interval(PACE);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for turn in 0.. {
        tokio::select! {
            _ = turns.tick() => snapshots.extend(take(turn).await),
            _ = stopped.changed() => break,
        }
    }
    snapshots
}

/// What the replicas of one store have at `bound` (rule Q4). `None`: one of them is not there or not so far.
async fn look_stale(world: &World, store: u64, cells: &[Cell], bound: i64) -> Option<Snapshot> {
    // A part's cells lie in one region, and its keys begin with one letter.
    let parts = cells.chunk_by(|one, next| one.name()[..1] == next.name()[..1]);
    let so_far = parts.map(|cells| async move {
        let so_far = region_request::Op::Frontier(FrontierRequest { leader: false, at_least: bound });
        let anchor = user_key(cells[0].name().as_bytes());
        match world.send_to(store, &anchor, so_far, STALE_PATIENCE).await {
            region_response::Result::Frontier(said) => {
                assert!(said.revision >= bound, "asked for {bound} and told {said:?}");
                true
            }
            _ => false,
        }
    });
    if join_all(so_far).await.contains(&false) {
        return None;
    }
    let seen = cells.iter().map(|cell| async move {
        let anchor = user_key(cell.name().as_bytes());
        // A leader may not count what it has just promised: it is then read as a leader.
        for serializable in [true, false] {
            let range = RangeRequest { serializable, ..cell.range() };
            let read = region_request::Op::Read(ReadRequest { range: Some(range), read_at: bound });
            if let region_response::Result::Range(range) = world.send_to(store, &anchor, read, STALE_PATIENCE).await {
                return Some(cell.seen(&range));
            }
        }
        None
    });
    let seen: Option<Vec<Seen>> = join_all(seen).await.into_iter().collect();
    Some(Snapshot { bound, seen: seen?, stale: true })
}

async fn look(world: &World, name: &str, cells: &[Cell], bound: i64) -> Vec<Seen> {
    join_all(cells.iter().map(|cell| async move {
        let range = cell.range();
        let anchor = user_key(&range.key);
        let op = region_request::Op::Read(ReadRequest { range: Some(range), read_at: bound });
        match world.ask(&anchor, op, LIMIT).await {
            region_response::Result::Range(range) => cell.seen(&range),
            other => panic!("{name}: {cell:?} at {bound}: {other:?}"),
        }
    }))
    .await
}
