//! A sequencer that a test can stop, start again and make lose its answers. It obeys the rules that its clients rely on: a
//! repeated request gets the same block (rule N5), and a new one begins above all that the old one gave (rule N4).

use std::collections::{HashMap, HashSet};

use braid_proto::pb::{NumberAnswer, NumberRequest, number_answer::Refusal};
use braid_proto::service::NumberService;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Revisions that a new sequencer skips: the rest of the old one's window.
const WINDOW: i64 = 1_000;

/// See the module's text.
pub struct Sequencer {
    state: Mutex<State>,
    running: watch::Sender<bool>,
    /// Numbers that a dead one was asked for since it died.
    in_vain: watch::Sender<u64>,
}

struct State {
    counter: i64,
    epoch: u64,
    /// Last request and answer of each client.
    answered: HashMap<u64, NumberAnswer>,
    losing: Losing,
    lost: u64,
    /// Every revision that somebody was told his write has.
    used: HashSet<i64>,
}

/// What is lost of the next answer that holds numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Losing {
    /// Nothing.
    Nothing,
    /// The answer: a repeat gets it.
    Answer,
    /// The sequencer with it.
    Sequencer,
}

impl Sequencer {
    /// One that leads.
    pub fn start() -> Self {
        let state = State {
            counter: 1,
            epoch: 1,
            answered: HashMap::new(),
            losing: Losing::Nothing,
            lost: 0,
            used: HashSet::new(),
        };
        Self { state: Mutex::new(state), running: watch::Sender::new(true), in_vain: watch::Sender::new(0) }
    }

    /// It dies: nobody answers.
    pub fn stop(&self) {
        let _state = self.state.lock();
        self.in_vain.send_replace(0);
        self.running.send_replace(false);
    }

    /// The next one takes over.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.counter += WINDOW;
        state.answered.clear();
        self.running.send_replace(true);
    }

    /// Waits until it is dead.
    pub async fn stopped(&self) {
        let mut running = self.running.subscribe();
        running.wait_for(|running| !*running).await.expect("the sender lives as long as this");
    }

    /// Waits until somebody asks a dead one for numbers.
    pub async fn asked_in_vain(&self) {
        let mut asked = self.in_vain.subscribe();
        asked.wait_for(|asked| *asked > 0).await.expect("the sender lives as long as this");
    }

    /// Loses the next answer that holds numbers.
    pub fn lose(&self, losing: Losing) {
        self.state.lock().losing = losing;
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u64 {
        self.state.lock().lost
    }

    /// Newest revision that was given out, once there is somebody who knows.
    pub async fn bound(&self) -> i64 {
        let mut running = self.running.subscribe();
        running.wait_for(|running| *running).await.expect("the sender lives as long as this");
        self.newest()
    }

    /// Newest revision that was given out.
    pub fn newest(&self) -> i64 {
        self.state.lock().counter
    }

    /// Somebody was told that his write has `revision`: nobody else has it.
    pub fn uses(&self, revision: i64) -> i64 {
        let mut state = self.state.lock();
        assert!(revision > 1 && revision <= state.counter, "revision {revision} was never given out");
        assert!(state.used.insert(revision), "two writes have revision {revision}");
        revision
    }
}

impl NumberService for Sequencer {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let mut state = self.state.lock();
        let refuse = |refusal| NumberAnswer { seq: request.seq, refusal: Some(refusal), ..Default::default() };
        if !*self.running.borrow() {
            self.in_vain.send_modify(|asked| *asked += u64::from(request.count > 0));
            return refuse(Refusal::NotLeader(String::new()));
        }
        if let Some(known) = state.answered.get(&request.client_id).filter(|known| known.seq == request.seq) {
            return known.clone();
        }
        let (base, count, epoch) = (state.counter, request.count, state.epoch);
        let answer = NumberAnswer { seq: request.seq, epoch, base, count, ..Default::default() };
        state.counter += i64::from(count);
        state.answered.insert(request.client_id, answer.clone());
        if count == 0 || state.losing == Losing::Nothing {
            return answer;
        }
        state.lost += 1;
        match std::mem::replace(&mut state.losing, Losing::Nothing) {
            Losing::Sequencer => _ = self.running.send_replace(false),
            Losing::Answer | Losing::Nothing => {}
        }
        refuse(Refusal::Busy("the answer was lost".to_owned()))
    }
}
