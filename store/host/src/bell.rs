//! Wakes one thread that has several queues to look at, or one that it empties at a stretch.
//!
//! A channel's own blocking receive spins and yields before it sleeps. On a machine whose cores are all busy, which is when
//! it matters, that is paid for each time a queue runs empty: many thousand times a second.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

/// The bell of one thread. Who rings it has put something into one of the thread's queues before.
#[derive(Default)]
pub(crate) struct Bell {
    /// Rung since the thread last waited.
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    /// Wakes the thread, or keeps it from falling asleep.
    pub fn ring(&self) {
        let mut rung = self.rung.lock();
        if !*rung {
            *rung = true;
            drop(rung);
            self.heard.notify_one();
        }
    }

    /// Sleeps until somebody rings, or until `until`. Returns at once if somebody has rung since the last wait, maybe for
    /// something that has been taken already.
    pub fn wait(&self, until: Option<Instant>) {
        let mut rung = self.rung.lock();
        while !*rung {
            match until {
                Some(until) if self.heard.wait_until(&mut rung, until).timed_out() => break,
                Some(_) => {}
                None => self.heard.wait(&mut rung),
            }
        }
        *rung = false;
    }
}

/// An unbounded queue to a thread with a bell: its reading end, and what writes to it.
pub(crate) fn queue<T>(bell: Arc<Bell>) -> (Ringing<T>, Receiver<T>) {
    let (sender, receiver) = unbounded();
    (Ringing { sender, bell }, receiver)
}

/// Writes to a queue and rings.
pub(crate) struct Ringing<T> {
    sender: Sender<T>,
    bell: Arc<Bell>,
}

impl<T> Ringing<T> {
    /// Lost if the thread has ended.
    pub fn send(&self, item: T) {
        if self.sender.send(item).is_ok() {
            self.bell.ring();
        }
    }
}

impl<T> Clone for Ringing<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_that_is_sent_is_slept_over() {
        let bell = Arc::new(Bell::default());
        let (sender, receiver) = queue(Arc::clone(&bell));
        const EACH: usize = 20_000;
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..EACH).for_each(|item| sender.send(item)))
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = 0;
        while seen < 3 * EACH {
            assert!(Instant::now() < deadline, "{seen} of {}", 3 * EACH);
            match receiver.try_recv() {
                Ok(_) => seen += 1,
                Err(_) => bell.wait(Some(deadline)),
            }
        }
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    }

    #[test]
    fn a_bell_that_is_not_rung_lets_sleep_until_the_time() {
        let bell = Bell::default();
        let until = Instant::now() + Duration::from_millis(20);
        bell.wait(Some(until));
        assert!(Instant::now() >= until);
        bell.ring();
        bell.ring();
        bell.wait(None);
        bell.wait(Some(Instant::now()));
    }
}
