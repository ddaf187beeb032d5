//! How many requests are under way, and the bound on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way.
#[derive(Debug)]
pub struct InFlight {
    count: AtomicUsize,
    max: usize,
}

/// One request under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<InFlight>);

impl InFlight {
    /// At most `max`.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), max })
    }

    /// Begins a request; `None`: too many are under way.
    pub fn begin(self: &Arc<Self>) -> Option<Ticket> {
        let ticket = Ticket(Arc::clone(self));
        // Dropping the ticket of a refused request takes its count back.
        (self.count.fetch_add(1, Ordering::Relaxed) < self.max).then_some(ticket)
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_refuses_beyond_the_bound() {
        let in_flight = InFlight::new(2);
        let first = in_flight.begin();
        let second = in_flight.begin();
        assert!(first.is_some() && second.is_some());
        assert!(in_flight.begin().is_none());
        assert_eq!(in_flight.count(), 2);
        drop(first);
        assert!(in_flight.begin().is_some());
        drop(second);
        assert_eq!(in_flight.count(), 0);
    }
}
