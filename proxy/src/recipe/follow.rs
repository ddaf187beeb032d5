//! What happens in a range, one event after the other, for a caller in this process.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use braid_proto::etcd::mvccpb::Event;
use parking_lot::Mutex;

use crate::watch::batch::Batch;
use crate::watch::{Receiver, Source, SubscriptionId, Wanted};

/// Events that wait for the caller before no further revision is taken.
const EVENTS_MAX: usize = 64;

/// A subscription; it ends when this is dropped.
pub struct Follow {
    source: Arc<dyn Source>,
    id: SubscriptionId,
    ears: Arc<Ears>,
}

/// The part that the source sees.
#[derive(Default)]
struct Ears(Mutex<State>);

#[derive(Default)]
struct State {
    /// With their revisions.
    events: VecDeque<(i64, Event)>,
    /// The source holds more.
    full: bool,
    /// What comes next is compacted.
    ended: bool,
    waker: Option<Waker>,
}

impl Follow {
    /// Begins to hear what `wanted` says.
    pub fn begin(source: Arc<dyn Source>, id: SubscriptionId, wanted: Wanted) -> Self {
        let ears = Arc::new(Ears::default());
        let receiver: Arc<Ears> = Arc::clone(&ears);
        source.subscribe(id, wanted, receiver);
        Self { source, id, ears }
    }

    /// The next event and its revision. `None`: what comes next is compacted.
    pub async fn next(&mut self) -> Option<(i64, Event)> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(i64, Event)>> {
        let mut state = self.ears.0.lock();
        if let Some(event) = state.events.pop_front() {
            let resume = state.full && state.events.is_empty();
            if resume {
                state.full = false;
            }
            drop(state);
            if resume {
                self.source.resume(self.id);
            }
            return Poll::Ready(Some(event));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.source.unsubscribe(self.id);
    }
}

impl Ears {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock();
        let result = change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

impl Receiver for Ears {
    fn take(&self, _: SubscriptionId, batch: &Batch, from: usize) -> usize {
        self.change(|state| {
            for (index, moment) in batch.moments().iter().enumerate().skip(from) {
                if state.events.len() >= EVENTS_MAX {
                    state.full = true;
                    return index;
                }
                state.events.extend(moment.events.iter().map(|event| (moment.revision, event.clone())));
            }
            batch.len()
        })
    }

    fn end(&self, _: SubscriptionId, _: i64) -> bool {
        self.change(|state| state.ended = true);
        true
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::mvccpb::KeyValue;
    use braid_proto::key::KeyRange;
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::watch::batch::Moment;

    /// Says nothing by itself; notes who comes, goes and has room again.
    #[derive(Default)]
    struct Quiet {
        receivers: Mutex<Vec<Arc<dyn Receiver>>>,
        calls: Mutex<Vec<&'static str>>,
    }

    impl Source for Quiet {
        fn subscribe(&self, _: SubscriptionId, _: Wanted, receiver: Arc<dyn Receiver>) {
            self.receivers.lock().push(receiver);
        }

        fn unsubscribe(&self, _: SubscriptionId) {
            self.calls.lock().push("unsubscribe");
        }

        fn resume(&self, _: SubscriptionId) {
            self.calls.lock().push("resume");
        }

        fn frontier(&self, _: SubscriptionId) -> Option<i64> {
            None
        }

        fn reach(&self, _: SubscriptionId, _: i64) -> BoxFuture<'static, ()> {
            std::future::ready(()).boxed()
        }
    }

    fn batch(revisions: std::ops::Range<i64>) -> Batch {
        let event = |revision| Event {
            kv: Some(KeyValue { mod_revision: revision, ..Default::default() }),
            ..Event::default()
        };
        Batch::new(revisions.map(|revision| Moment { revision, events: vec![event(revision)] }).collect())
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_asked_for_again() {
        let source = Arc::new(Quiet::default());
        let wanted = Wanted { range: KeyRange::user(b"k", b""), start: 1, prev_kv: false };
        let mut follow = Follow::begin(Arc::clone(&source) as Arc<dyn Source>, SubscriptionId(1), wanted);
        let receiver = Arc::clone(&source.receivers.lock()[0]);
        assert!(follow.next().now_or_never().is_none(), "nothing has happened");
        let all = batch(2..102);
        let mut offered = 0;
        for revision in 2..102 {
            if let Some(event) = follow.next().now_or_never() {
                assert_eq!(event.expect("an event").0, revision);
                continue;
            }
            let taken = receiver.take(SubscriptionId(1), &all, offered);
            assert!(taken > offered && taken - offered <= EVENTS_MAX);
            offered = taken;
            assert_eq!(follow.next().await.expect("an event").0, revision);
        }
        assert_eq!(source.calls.lock()[..], ["resume"]);
        assert!(receiver.end(SubscriptionId(1), 200));
        assert!(follow.next().await.is_none());
        drop(follow);
        assert_eq!(source.calls.lock()[..], ["resume", "unsubscribe"]);
    }
}
