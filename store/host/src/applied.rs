//! How far a peer has applied its log, for everybody who looks or waits.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The highest index applied. Inclusive; rises only. Advanced by the apply thread.
#[derive(Debug)]
pub(crate) struct AppliedIndex {
    index: AtomicU64,
    /// Who waits for which index. Bounded by the requests under way: those who gave up go with the next one who waits.
    waiting: Mutex<Vec<(u64, oneshot::Sender<()>)>>,
}

impl AppliedIndex {
    /// Begins at `index`.
    pub fn new(index: u64) -> Self {
        Self { index: AtomicU64::new(index), waiting: Mutex::default() }
    }

    /// The index now.
    pub fn get(&self) -> u64 {
        self.index.load(Ordering::Acquire)
    }

    /// Moves it, and wakes whoever has waited for that.
    pub fn set(&self, index: u64) {
        self.index.store(index, Ordering::Release);
        // Whoever holds the lock now looks at the index once more before it waits.
        let mut waiting = self.waiting.lock();
        if !waiting.is_empty() {
            for (_, wake) in waiting.extract_if(.., |(wanted, _)| *wanted <= index) {
                // Who waited may have gone away.
                _ = wake.send(());
            }
        }
    }

    /// Returns when `index` is applied; for a peer that is removed before, never: the caller brings the deadline.
    pub async fn reach(&self, index: u64) {
        let (wake, woken) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if self.get() >= index {
                return;
            }
            waiting.retain(|(_, wake)| !wake.is_closed());
            waiting.push((index, wake));
        }
        // The sender goes only when it is used, or with this very value.
        _ = woken.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_index_and_not_before() {
        let applied = Arc::new(AppliedIndex::new(5));
        applied.reach(5).await;
        let wait = |index| {
            let applied = Arc::clone(&applied);
            tokio::spawn(async move { applied.reach(index).await })
        };
        let (seven, nine) = (wait(7), wait(9));
        while applied.waiting.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        applied.set(6);
        assert_eq!(applied.waiting.lock().len(), 2);
        applied.set(8);
        seven.await.expect("woken");
        assert_eq!(applied.waiting.lock().len(), 1);
        nine.abort();
        _ = nine.await;
        let eleven = wait(11);
        while applied.waiting.lock().iter().all(|(index, _)| *index != 11) {
            tokio::task::yield_now().await;
        }
        assert_eq!(applied.waiting.lock().len(), 1, "who gave up is forgotten");
        applied.set(11);
        eleven.await.expect("woken");
        assert_eq!(applied.get(), 11);
    }
}
