//! The sequencer over real raft groups: clients that number without a pause while leaders are killed, stopped, cut off
//! and started again.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use braid_proto::pb::number_answer::Refusal;
use braid_proto::pb::{NumberAnswer, NumberRequest};
use parking_lot::Mutex;

use super::*;

/// Between two attempts of a client.
const CLIENT_PAUSE: Duration = Duration::from_millis(1);

/// The members' sequencers as clients reach them, whoever is running.
#[derive(Default)]
struct Sequencers(Mutex<BTreeMap<u64, Arc<dyn NumberService>>>);

/// What all clients together know.
#[derive(Default)]
struct Ledger {
    /// Newest number that a client has used.
    acknowledged: AtomicI64,
    /// Every number used, and by whom.
    used: Mutex<BTreeMap<i64, u64>>,
    over: AtomicBool,
}

impl Sequencers {
    fn set(&self, members: &BTreeMap<u64, Placement>) {
        let services = members.iter().map(|(id, member)| (*id, member.number_service()));
        *self.0.lock() = services.collect();
    }

    /// Asks one member after the other, as a client does that does not know who leads.
    fn ask(&self, request: &NumberRequest) -> Option<NumberAnswer> {
        let services: Vec<_> = self.0.lock().values().cloned().collect();
        services.iter().map(|service| service.number(request)).find(|answer| {
            assert!(!matches!(answer.refusal, Some(Refusal::Behind(_) | Refusal::Stale(_))), "{answer:?}");
            answer.refusal.is_none()
        })
    }

    fn ask_until_answered(&self, request: &NumberRequest) -> NumberAnswer {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(answer) = self.ask(request) {
                return answer;
            }
            assert!(Instant::now() < deadline, "not answered in {LIMIT:?}: {request:?}");
            // A client's pause between two attempts: that somebody leads again is nobody's event here.
            std::thread::sleep(CLIENT_PAUSE);
        }
    }
}

impl Ledger {
    fn enter(&self, client: u64, numbers: RangeInclusive<i64>) {
        let mut used = self.used.lock();
        for number in numbers {
            let other = used.insert(number, client);
            assert_eq!(other, None, "R1: {number} given to {other:?} and {client}");
        }
    }
}

/// One client on a thread of its own: one request outstanding, repeated until it is answered.
fn client(id: u64, sequencers: &Sequencers, ledger: &Ledger) {
    let mut heard = (0, 0);
    for seq in 1.. {
        if ledger.over.load(Ordering::Acquire) {
            return;
        }
        let count = ((id * 7 + seq * 13) % 40) as u32;
        let before = ledger.acknowledged.load(Ordering::SeqCst);
        let request = NumberRequest {
            client_id: id,
            incarnation: 1,
            seq,
            count,
            heard_epoch: heard.0,
            heard_revision: heard.1,
            cluster_id: CLUSTER.0,
        };
        let answer = sequencers.ask_until_answered(&request);
        assert!(answer.base >= before, "R2, R5: {} after {before} was acknowledged", answer.base);
        assert!(answer.epoch >= heard.0 && answer.base >= heard.1, "{answer:?} after {heard:?}");
        let last = answer.base + i64::from(answer.count);
        ledger.enter(id, answer.base + 1..=last);
        ledger.acknowledged.fetch_max(last, Ordering::SeqCst);
        heard = (answer.epoch, last);
    }
}

/// Clients that number until the test is over.
struct Load {
    sequencers: Arc<Sequencers>,
    ledger: Arc<Ledger>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(group: &Group) -> Self {
        let (sequencers, ledger) = (Arc::new(Sequencers::default()), Arc::new(Ledger::default()));
        sequencers.set(&group.members);
        let clients = (1..=4).map(|id| {
            let (sequencers, ledger) = (Arc::clone(&sequencers), Arc::clone(&ledger));
            std::thread::spawn(move || client(id, &sequencers, &ledger))
        });
        let clients = clients.collect();
        Self { sequencers, ledger, clients }
    }

    /// Waits until `count` more numbers were used.
    async fn progress(&self, count: usize) {
        let wanted = self.ledger.used.lock().len() + count;
        eventually("numbers go on", async || (self.ledger.used.lock().len() >= wanted).then_some(())).await;
    }

    /// Ends the load; returns how many numbers are missing up to the last used one.
    async fn end(self) -> i64 {
        self.ledger.over.store(true, Ordering::Release);
        for client in self.clients {
            let ended = tokio::task::spawn_blocking(move || client.join()).await.expect("joined");
            assert!(ended.is_ok(), "a client saw a broken promise");
        }
        let used = self.ledger.used.lock();
        let last = used.keys().next_back().copied().unwrap_or(1);
        last - 1 - used.len() as i64
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_never_repeat_or_go_back_while_leaders_die_and_return() {
    let mut group = Group::start(3).await;
    group.leader().await;
    let load = Load::start(&group);
    load.progress(2_000).await;
    for _ in 0..3 {
        let leader = group.leader().await.id();
        group.kill(leader).await;
        load.sequencers.set(&group.members);
        load.progress(2_000).await;
        group.open(leader).await;
        load.sequencers.set(&group.members);
        load.progress(2_000).await;
    }
    let missing = load.end().await;
    assert!(missing > 0, "three sequencers died in office");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_gives_out_nothing_once_another_one_does() {
    let mut group = Group::start(3).await;
    group.leader().await;
    let load = Load::start(&group);
    load.progress(2_000).await;
    for _ in 0..2 {
        let old = group.leader().await.id();
        // It keeps running and keeps being asked, also first.
        group.net.isolate(old);
        let replaced = async || group.members.values().any(|member| member.id() != old && member.leads()).then_some(());
        eventually("another leader", replaced).await;
        load.progress(2_000).await;
        group.net.heal();
        load.progress(2_000).await;
    }
    load.end().await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_stops_leave_no_hole() {
    let mut group = Group::start(3).await;
    group.leader().await;
    let load = Load::start(&group);
    load.progress(2_000).await;
    for _ in 0..3 {
        let leader = group.leader().await.id();
        group.stop(leader).await;
        load.sequencers.set(&group.members);
        load.progress(2_000).await;
        group.open(leader).await;
        load.sequencers.set(&group.members);
        load.progress(1_000).await;
    }
    assert_eq!(load.end().await, 0);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_goes_on_exactly_where_it_stopped_and_above_where_it_died() {
    let mut group = Group::start(1).await;
    let take = async |group: &Group, seq| {
        let request =
            NumberRequest { client_id: 1, incarnation: 1, seq, count: 3, cluster_id: CLUSTER.0, ..Default::default() };
        let service = group.leader().await.number_service();
        let answer =
            eventually("an answer", async || Some(service.number(&request)).filter(|a| a.refusal.is_none())).await;
        (answer.epoch, answer.base)
    };
    assert_eq!(take(&group, 1).await, (1, 1));
    group.stop(1).await;
    group.open(1).await;
    assert_eq!(take(&group, 2).await, (2, 4));
    group.kill(1).await;
    group.open(1).await;
    let (epoch, base) = take(&group, 3).await;
    assert_eq!(epoch, 3);
    assert!((7..=2_000).contains(&base), "above everything given out, and no more than a window: {base}");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_without_a_majority_does_not_hang() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await.id();
    for other in (1..=3).filter(|other| *other != leader) {
        group.kill(other).await;
    }
    let stopped = tokio::time::timeout(Duration::from_secs(15), group.stop(leader)).await;
    assert!(stopped.is_ok(), "the last member stops");
}
