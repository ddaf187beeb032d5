//! The requests of a connection run in the connection's own task.
//!
//! A task for each request is woken for each step, by itself, on whichever thread is free; the runtime wakes threads to share
//! them out, and what they answer reaches the connection one by one. In one task, everything that has become ready since its
//! last turn goes on in one turn, and what is answered leaves together. Connections are what the threads share out.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{FutureExt as _, StreamExt as _};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::task::coop::unconstrained;

/// Times that a connection and its work go on at once in one turn, because one of them has woken another one.
const ROUNDS_MAX: usize = 4;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a connection wants to be done beside itself: the executor that it is given. Work is begun while the connection is
/// polled, and goes on as part of [`Self::run`].
#[derive(Clone, Default)]
pub struct Crew(Arc<Mutex<Vec<Work>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Crew {
    fn execute(&self, work: F) {
        // A request that panics ends by itself, as a task would: its caller is told by the connection.
        let alone = AssertUnwindSafe(work).catch_unwind().map(drop);
        // The runtime's budget is one for the whole task: who used it up would only make the others ask again. All have their
        // turn, once, before the connection has its own.
        self.0.lock().push(Box::pin(unconstrained(alone)));
    }
}

impl Crew {
    /// Runs `connection` with its work, which ends with it.
    pub async fn run<T>(self, connection: impl Future<Output = T>) -> T {
        let mut connection = pin!(connection);
        let mut works = FuturesUnordered::new();
        let bells = Arc::new(Bells::default());
        let [works_bell, connection_bell] =
            [WORKS, CONNECTION].map(|whose| Waker::from(Arc::new(Bell { bells: Arc::clone(&bells), whose })));
        let turn = |outer: &mut Context<'_>| {
            bells.begin(outer.waker());
            let mut fresh = false;
            for _ in 0..ROUNDS_MAX {
                if bells.was_rung(WORKS) || fresh {
                    while let Poll::Ready(Some(())) = works.poll_next_unpin(&mut Context::from_waker(&works_bell)) {}
                }
                if bells.was_rung(CONNECTION)
                    && let Poll::Ready(ended) = connection.as_mut().poll(&mut Context::from_waker(&connection_bell))
                {
                    return Poll::Ready(ended);
                }
                let mut begun = self.0.lock();
                fresh = !begun.is_empty();
                works.extend(begun.drain(..));
                drop(begun);
                if !fresh && bells.end() {
                    return Poll::Pending;
                }
            }
            // Others have waited long enough.
            bells.ring(WORKS);
            bells.give_way(outer.waker());
            Poll::Pending
        };
        let ended = std::future::poll_fn(turn).await;
        // What was begun in its last moment: works may keep this alive.
        let left = std::mem::take(&mut *self.0.lock());
        drop(left);
        ended
    }
}

/// It has its turn.
const RUNS: u8 = 1;
/// Some of the works are to go on.
const WORKS: u8 = 2;
/// The connection is to go on.
const CONNECTION: u8 = 4;

/// Who is to go on. What rings while the task has its turn is heard within it: the runtime would put the task behind all
/// others, and wake a thread to take it over.
struct Bells {
    task: AtomicWaker,
    state: AtomicU8,
}

impl Default for Bells {
    /// Everybody has to begin.
    fn default() -> Self {
        Self { task: AtomicWaker::new(), state: AtomicU8::new(WORKS | CONNECTION) }
    }
}

impl Bells {
    fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.state.fetch_or(RUNS, Ordering::SeqCst);
    }

    fn ring(&self, whose: u8) {
        // Who rang before has woken the task already.
        if self.state.fetch_or(whose, Ordering::SeqCst) == 0 {
            self.task.wake();
        }
    }

    fn was_rung(&self, whose: u8) -> bool {
        self.state.fetch_and(!whose, Ordering::SeqCst) & whose != 0
    }

    /// Ends the turn, unless somebody is to go on.
    fn end(&self) -> bool {
        self.state.compare_exchange(RUNS, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Ends the turn and asks for another one.
    fn give_way(&self, task: &Waker) {
        self.state.fetch_and(!RUNS, Ordering::SeqCst);
        task.wake_by_ref();
    }
}

/// One of the bells.
struct Bell {
    bells: Arc<Bells>,
    whose: u8,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bells.ring(self.whose);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Barrier, mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn work_goes_on_beside_the_connection_and_ends_with_it() {
        let crew = Crew::default();
        let (tell, mut told) = mpsc::channel(4);
        let (held, ended) = oneshot::channel::<()>();
        let connection = async {
            for number in 0..3 {
                let tell = tell.clone();
                crew.execute(async move { tell.send(number).await.expect("heard") });
            }
            crew.execute(async move {
                let _held = held;
                std::future::pending().await
            });
            let mut heard = Vec::new();
            while heard.len() < 3 {
                heard.push(told.recv().await.expect("said"));
            }
            heard.sort_unstable();
            heard
        };
        assert_eq!(crew.clone().run(connection).await, [0, 1, 2]);
        assert!(ended.await.is_err(), "dropped with the connection");
    }

    /// Threads ring while the task runs, waits, and is just about to: no call is lost.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn calls_from_other_threads_are_heard() {
        for _ in 0..2_000 {
            let crew = Crew::default();
            let (asks, asked) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
            let answers =
                std::thread::spawn(move || asked.into_iter().for_each(|ask| ask.send(()).expect("waited for")));
            let (tell, mut told) = mpsc::channel(8);
            let begins = crew.clone();
            let connection = async move {
                for _ in 0..8 {
                    let (ask, answer) = oneshot::channel();
                    let (asks, tell) = (asks.clone(), tell.clone());
                    begins.execute(async move {
                        asks.send(ask).expect("somebody answers");
                        answer.await.expect("answered");
                        tell.send(()).await.expect("heard");
                    });
                }
                for _ in 0..8 {
                    told.recv().await.expect("said");
                }
            };
            let run = crew.run(connection);
            tokio::time::timeout(std::time::Duration::from_secs(30), run).await.expect("no call is lost");
            answers.join().expect("ended");
        }
    }

    #[tokio::test]
    async fn work_that_panics_takes_nobody_along() {
        let crew = Crew::default();
        let (tell, told) = oneshot::channel();
        let connection = async {
            crew.execute(async { panic!("a test of panics") });
            crew.execute(async move { tell.send(7).expect("heard") });
            told.await.expect("said")
        };
        assert_eq!(crew.clone().run(connection).await, 7);
    }

    /// More works than the runtime lets a task do at once, each of which needs all the others.
    #[tokio::test]
    async fn many_works_meet() {
        const WORKS: usize = 10_000;
        let crew = Crew::default();
        let (barrier, met) = (Arc::new(Barrier::new(WORKS + 1)), Arc::new(AtomicUsize::new(0)));
        let connection = async {
            for _ in 0..WORKS {
                let (barrier, met) = (Arc::clone(&barrier), Arc::clone(&met));
                crew.execute(async move {
                    barrier.wait().await;
                    met.fetch_add(1, Ordering::Relaxed);
                });
            }
            barrier.wait().await;
            while met.load(Ordering::Relaxed) < WORKS {
                tokio::task::yield_now().await;
            }
        };
        crew.clone().run(connection).await;
    }
}
