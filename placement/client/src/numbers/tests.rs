//! The client of the sequencer against sequencers that a script answers for: in the process and over the network.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;

use braid_proto::pb::sequencer_server::{Sequencer, SequencerServer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_stream::{Stream as Incoming, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;

/// Nothing here takes longer; a test that does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a sequencer says; none: nothing.
type Script = Arc<dyn Fn(&NumberRequest) -> Option<NumberAnswer> + Send + Sync>;

/// A placement member whose sequencer follows a script.
struct Member {
    address: String,
    /// Of its own, as for a process: its end breaks the connections.
    runtime: Option<Runtime>,
}

impl Member {
    async fn start(script: impl Fn(&NumberRequest) -> Option<NumberAnswer> + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let bound = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap();
        let listener = bound.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = SequencerServer::new(Scripted(Arc::new(script)));
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(async move { serving.await.unwrap() });
        Member { address, runtime: Some(runtime) }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Scripted(Script);

#[tonic::async_trait]
impl Sequencer for Scripted {
    type NumberStream = Pin<Box<dyn Incoming<Item = Result<NumberAnswer, Status>> + Send>>;

    async fn number(&self, request: Request<Streaming<NumberRequest>>) -> Result<Response<Self::NumberStream>, Status> {
        let script = Arc::clone(&self.0);
        let answers = request.into_inner().filter_map(move |request| match request {
            Ok(request) => script(&request).map(Ok),
            Err(status) => Some(Err(status)),
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Local(Script);

impl NumberService for Local {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        (self.0)(request).expect("a local sequencer always answers")
    }
}

/// A sequencer's memory: counter and the last answer, for repeats.
struct Counter {
    epoch: u64,
    state: Mutex<(i64, Option<NumberAnswer>)>,
}

impl Counter {
    fn new(epoch: u64, base: i64) -> Arc<Self> {
        Arc::new(Counter { epoch, state: Mutex::new((base, None)) })
    }

    fn answer(&self, request: &NumberRequest) -> NumberAnswer {
        let mut state = self.state.lock();
        if let Some(last) = state.1.clone().filter(|last| last.seq == request.seq) {
            return last;
        }
        let answer = block(request, self.epoch, state.0);
        *state = (state.0 + i64::from(request.count), Some(answer.clone()));
        answer
    }
}

fn block(request: &NumberRequest, epoch: u64, base: i64) -> NumberAnswer {
    NumberAnswer { seq: request.seq, epoch, base, count: request.count, ..Default::default() }
}

fn refusal(request: &NumberRequest, refusal: Refusal) -> NumberAnswer {
    NumberAnswer { seq: request.seq, refusal: Some(refusal), ..Default::default() }
}

fn client(addresses: &[&str], local: Option<Script>, patience: Duration) -> Arc<Numbers> {
    let placement = PlacementClient::new(addresses.iter().map(|&address| address.to_owned()).collect());
    let local = local.map(|script| Arc::new(Local(script)) as Arc<dyn NumberService>);
    let answer_timeout = Duration::from_millis(200);
    let config = NumbersConfig { patience, answer_timeout, ..NumbersConfig::new(77, 9) };
    Numbers::start(config, Arc::new(placement), local)
}

fn ask(numbers: &Numbers, count: u32) -> oneshot::Receiver<Result<Block, NumberError>> {
    let (tell, told) = oneshot::channel();
    numbers.request(count, Box::new(move |answer| _ = tell.send(answer)));
    told
}

async fn told(answer: oneshot::Receiver<Result<Block, NumberError>>) -> Result<Block, NumberError> {
    tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_sequencer_answers_before_request_returns() {
    let counter = Counter::new(3, 100);
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(move |request| Some(counter.answer(request)))), PATIENCE);
    let mut first = ask(&numbers, 2);
    assert_eq!(
        first.try_recv().unwrap().unwrap(),
        Block { epoch: 3, base: 100, count: 2, compacted: 0, auth_revision: 0 }
    );
    assert_eq!(numbers.heard(), (3, 102));
    assert_eq!(ask(&numbers, 0).try_recv().unwrap().unwrap().base, 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_may_ask_again_for_ever_and_does_not_grow_the_stack() {
    fn chain(numbers: Arc<Numbers>, left: u32, end: oneshot::Sender<i64>) {
        let again = Arc::clone(&numbers);
        let done = move |answer: Result<Block, NumberError>| match left {
            0 => end.send(answer.unwrap().base).unwrap(),
            _ => chain(again, left - 1, end),
        };
        numbers.request(1, Box::new(done));
    }
    let counter = Counter::new(1, 0);
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(move |request| Some(counter.answer(request)))), PATIENCE);
    let (end, ended) = oneshot::channel();
    chain(numbers, 100_000, end);
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap(), 100_000);
}

/// Callers on many threads, local: every number once, and callbacks in the order of the numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callbacks_run_in_the_order_of_the_numbers() {
    let counter = Counter::new(1, 0);
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(move |request| Some(counter.answer(request)))), PATIENCE);
    order_holds(numbers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callbacks_run_in_the_order_of_the_numbers_over_the_network() {
    let counter = Counter::new(1, 0);
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    let member = Member::start(move |request| {
        seen.fetch_add(1, Ordering::Relaxed);
        Some(counter.answer(request))
    })
    .await;
    order_holds(client(&[&member.address], None, PATIENCE)).await;
    assert!(requests.load(Ordering::Relaxed) < 8000, "what waited was merged");
}

async fn order_holds(numbers: Arc<Numbers>) {
    const THREADS: u32 = 4;
    const EACH: u32 = 2000;
    let log = Arc::new(Mutex::new(Vec::new()));
    let (end, mut ended) = mpsc::unbounded_channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (numbers, log, end) = (Arc::clone(&numbers), Arc::clone(&log), end.clone());
            std::thread::spawn(move || {
                for turn in 0..EACH {
                    let (log, end) = (Arc::clone(&log), end.clone());
                    let done = move |answer: Result<Block, NumberError>| {
                        let block = answer.unwrap();
                        log.lock().push((thread, turn, block.base, block.count));
                        end.send(()).unwrap();
                    };
                    numbers.request(turn % 3, Box::new(done));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    for _ in 0..THREADS * EACH {
        tokio::time::timeout(PATIENCE, ended.recv()).await.expect("all answers in time").unwrap();
    }
    let log = log.lock();
    let mut next = 0;
    let mut turns = [0; THREADS as usize];
    for &(thread, turn, base, count) in log.iter() {
        assert_eq!(base, next, "blocks are consecutive in the order of the callbacks");
        next += i64::from(count);
        assert_eq!(turn, turns[thread as usize], "and in the order of each thread's requests");
        turns[thread as usize] += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_switch_in_the_middle_loses_and_repeats_nothing() {
    let (old, new) = (Counter::new(1, 0), Counter::new(2, 10_000));
    let new_address = Arc::new(Mutex::new(String::new()));
    let (hint, asked) = (Arc::clone(&new_address), AtomicUsize::new(0));
    // Answers fifty requests, then one more whose answer is lost, and then leads no more.
    let old_member = Member::start(move |request| match asked.fetch_add(1, Ordering::Relaxed) {
        0..50 => Some(old.answer(request)),
        50 => {
            old.answer(request);
            None
        }
        _ => Some(refusal(request, Refusal::NotLeader(hint.lock().clone()))),
    })
    .await;
    let new_member = Member::start(move |request| {
        assert_eq!(request.heard_epoch, if request.heard_revision < 10_000 { 1 } else { 2 });
        Some(new.answer(request))
    })
    .await;
    new_address.lock().clone_from(&new_member.address);
    // The new leader's address is known from the old one only.
    let numbers = client(&[&old_member.address], None, PATIENCE);
    let (mut given, mut last, mut epochs) = (HashSet::new(), 0, HashSet::new());
    for _ in 0..100 {
        let block = told(ask(&numbers, 2)).await.unwrap();
        assert!(block.base >= last, "{block:?} after {last}");
        last = block.base + 2;
        assert!(given.insert(block.base + 1) && given.insert(block.base + 2));
        epochs.insert(block.epoch);
    }
    assert_eq!(epochs, HashSet::from([1, 2]));
    assert_eq!(numbers.heard(), (2, 10_100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_repeated_and_gets_the_same_block() {
    let counter = Counter::new(1, 0);
    let lost = AtomicBool::new(false);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    let member = Member::start(move |request| {
        requests.lock().push((request.seq, request.count));
        let answer = counter.answer(request);
        lost.swap(true, Ordering::Relaxed).then_some(answer)
    })
    .await;
    let numbers = client(&[&member.address], None, PATIENCE);
    let first = ask(&numbers, 3);
    let second = ask(&numbers, 1);
    assert_eq!(told(first).await.unwrap().base, 0);
    assert_eq!(told(second).await.unwrap().base, 3, "the repeat took no further numbers");
    let seen = seen.lock();
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_left_for_another_member() {
    let (old, new) = (Counter::new(1, 0), Counter::new(2, 500));
    let old_member = Member::start(move |request| Some(old.answer(request))).await;
    let new_member = Member::start(move |request| Some(new.answer(request))).await;
    let numbers = client(&[&old_member.address, &new_member.address], None, PATIENCE);
    assert_eq!(told(ask(&numbers, 1)).await.unwrap().base, 0);
    drop(old_member);
    let block = told(ask(&numbers, 1)).await.unwrap();
    assert_eq!((block.epoch, block.base), (2, 500));
}

/// H48: the deadline drops the waiting ones, and what the sequencer says later is nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn past_the_deadline_callers_are_told_and_the_next_request_has_its_own_answer() {
    let counter = Counter::new(1, 0);
    let mute = Arc::new(AtomicBool::new(true));
    let muted = Arc::clone(&mute);
    let member = Member::start(move |request| {
        let answer = counter.answer(request);
        (!muted.load(Ordering::Relaxed)).then_some(answer)
    })
    .await;
    let numbers = client(&[&member.address], None, Duration::from_millis(500));
    let started = Instant::now();
    let why = told(ask(&numbers, 4)).await.unwrap_err();
    assert!(started.elapsed() >= Duration::from_millis(300), "it was repeated until the deadline");
    assert_eq!(why, NumberError::TimedOut(format!(": {} does not answer", member.address)));
    assert_eq!(numbers.heard(), (0, 0), "an unanswered request says nothing");
    mute.store(false, Ordering::Relaxed);
    let block = told(ask(&numbers, 1)).await.unwrap();
    assert_eq!(block.base, 4, "the four numbers of the first request are a hole, not a gift");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_an_error_in_time() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let numbers = client(&[&address], None, Duration::from_millis(300));
    match told(ask(&numbers, 1)).await {
        Err(NumberError::TimedOut(why)) => assert!(why.contains(&address) && why.contains("refused"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_with_a_reason_reach_the_caller() {
    let stale = |request: &NumberRequest| Some(refusal(request, Refusal::Stale("for another cluster".into())));
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(stale)), PATIENCE);
    let why = told(ask(&numbers, 1)).await.unwrap_err();
    assert_eq!(why.to_string(), "no sequencer answered in time: for another cluster");

    let behind = |request: &NumberRequest| Some(refusal(request, Refusal::Behind("restored from a copy".into())));
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(behind)), Duration::from_millis(200));
    let why = told(ask(&numbers, 1)).await.unwrap_err();
    assert_eq!(why.to_string(), "no sequencer answered in time: restored from a copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_local_sequencer_is_asked_again_and_the_network_is_not() {
    let counter = Counter::new(1, 0);
    let asked = AtomicUsize::new(0);
    let local = move |request: &NumberRequest| {
        let busy = asked.fetch_add(1, Ordering::Relaxed) < 3;
        Some(if busy { refusal(request, Refusal::Busy(String::new())) } else { counter.answer(request) })
    };
    let member = Member::start(|_| panic!("the network was used")).await;
    let numbers = client(&[&member.address], Some(Arc::new(local)), PATIENCE);
    assert_eq!(told(ask(&numbers, 1)).await.unwrap().base, 0);
    let mut at_once = ask(&numbers, 1);
    // The task gives the queue back when it is empty, which may be a moment after its last callback.
    let block = tokio::time::timeout(PATIENCE, &mut at_once).await.unwrap().unwrap().unwrap();
    assert_eq!(block.base, 1);
    drop(member);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_between_this_process_and_another() {
    let (here, there) = (Counter::new(1, 0), Counter::new(2, 100));
    let again = Counter::new(3, 200);
    // Who leads: 1 here, 2 there, 3 here again.
    let office = Arc::new(AtomicUsize::new(1));
    let at = Arc::clone(&office);
    let member = Member::start(move |request| match at.load(Ordering::SeqCst) {
        2 => Some(there.answer(request)),
        _ => Some(refusal(request, Refusal::NotLeader(String::new()))),
    })
    .await;
    let (at, hint) = (Arc::clone(&office), member.address.clone());
    let local = move |request: &NumberRequest| match at.load(Ordering::SeqCst) {
        1 => Some(here.answer(request)),
        2 => Some(refusal(request, Refusal::NotLeader(hint.clone()))),
        _ => Some(again.answer(request)),
    };
    // The only endpoint is useless: the local member's word leads to the leader.
    let numbers = client(&["127.0.0.1:1"], Some(Arc::new(local)), PATIENCE);
    assert_eq!(told(ask(&numbers, 5)).await.unwrap().base, 0);
    office.store(2, Ordering::SeqCst);
    for turn in 0..10 {
        assert_eq!(told(ask(&numbers, 1)).await.unwrap().base, 100 + turn);
    }
    office.store(3, Ordering::SeqCst);
    for turn in 0..10 {
        let block = told(ask(&numbers, 1)).await.unwrap();
        assert_eq!((block.epoch, block.base), (3, 200 + turn));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_tells_everybody_and_refuses_whoever_comes_later() {
    let member = Member::start(|_| None).await;
    let numbers = client(&[&member.address], None, PATIENCE);
    let (first, second) = (ask(&numbers, 1), ask(&numbers, 0));
    numbers.stop();
    assert_eq!(told(first).await, Err(NumberError::Stopped));
    assert_eq!(told(second).await, Err(NumberError::Stopped));
    assert_eq!(ask(&numbers, 1).try_recv().unwrap(), Err(NumberError::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_panics_harms_only_itself() {
    let counter = Counter::new(1, 0);
    let member = Member::start(move |request| Some(counter.answer(request))).await;
    let counter = Counter::new(1, 0);
    let local = move |request: &NumberRequest| Some(counter.answer(request));
    for numbers in
        [client(&[&member.address], None, PATIENCE), client(&["127.0.0.1:1"], Some(Arc::new(local)), PATIENCE)]
    {
        numbers.request(1, Box::new(|_| panic!("as the test wants")));
        assert_eq!(told(ask(&numbers, 1)).await.unwrap().base, 1);
    }
}
