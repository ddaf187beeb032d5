//! Measures watches: events delivered, how long they take, and that none is lost, repeated or out of order.
//!
//! ```text
//!   writers ── puts, at most so many ahead ──► servers ── events ──► watch streams
//!      │                     ▲                                          │  count, check order
//!      │                     └──── permits, once all watches have seen ─┤
//!      └── key and revision of each put ──► compared at the end ◄───────┘
//! ```
//!
//! 1. Many watches share a stream and several streams a connection, as in real clients; the shape is the same for every
//!    system and is part of the report.
//! 2. Closed loop: writers put as fast as the slowest watch takes the events in, so what is measured is delivery, and no
//!    queue grows without end. Open loop (`rate`): puts have their times, and a latency counts from the time the put
//!    should have started.
//! 3. The first bytes of each value say when its put started: a latency needs no table.
//! 4. A run in which a watch lost, repeated or reordered an event fails. There is no figure for wrong answers.
//!
//! What is not measured here but with the same streams: `memory` (bytes per watch), `catch_up` (a watch from the past)
//! and `regions` (many idle ones).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::client::{Address, prefix_end};
use crate::keys::KeySpace;

pub mod catch_up;
pub mod held;
pub mod ledger;
pub mod memory;
pub mod regions;
pub mod run;
mod share;
pub mod stream;
pub mod wire;

pub use run::run;
use stream::Target;

/// What is watched, and what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// All watches see all keys of one prefix.
    Fanout,
    /// Each watch sees one key of its own; these keys are written.
    Keys,
    /// All watches see the first sixteenth of the keys, which alone is written: with sixteen regions or fewer cut evenly,
    /// one region.
    Latency,
    /// All watches see everything there is; all keys are written.
    LatencyEverything,
}

/// Parts into which a key space is cut when it is spread over regions; one of them is what `Latency` watches.
pub const PARTS: u64 = 16;

/// How the load is put together; the same on all systems that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Watches.
    pub watches: usize,
    /// Watch streams that they share.
    pub streams: usize,
    /// TCP connections that the streams share.
    pub connections: usize,
    /// Writers, each with one put in flight, on connections of their own.
    pub writers: usize,
    /// Closed loop: puts that the slowest watch may be behind.
    pub ahead: usize,
}

impl Shape {
    /// The usual one for so many watches.
    pub fn of(scenario: Scenario, watches: usize) -> Self {
        let streams = match scenario {
            Scenario::Keys => 100,
            Scenario::Fanout | Scenario::Latency | Scenario::LatencyEverything => 10,
        };
        Self { watches, streams, connections: 10, writers: 64, ahead: 256 }.fit()
    }

    /// No more streams than watches, no more connections than streams.
    pub fn fit(mut self) -> Self {
        self.streams = self.streams.clamp(1, self.watches.max(1));
        self.connections = self.connections.clamp(1, self.streams);
        self
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { watches, streams, connections, writers, ahead: _ } = self;
        write!(f, "{watches} watches on {streams} streams on {connections} connections, {writers} writers")
    }
}

/// How fast the writers are: `rate`, or as fast as the watches allow.
pub fn pace(shape: &Shape, rate: Option<f64>) -> String {
    match rate {
        Some(rate) => format!("{rate} puts/s scheduled"),
        None => format!("closed loop, at most {} puts ahead of the slowest watch", shape.ahead),
    }
}

/// What differs from the usual shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShapeChange {
    /// Watch streams.
    pub streams: Option<usize>,
    /// TCP connections of the streams.
    pub connections: Option<usize>,
    /// Writers.
    pub writers: Option<usize>,
    /// Puts that the slowest watch may be behind.
    pub ahead: Option<usize>,
}

impl ShapeChange {
    /// A shape with the change made.
    pub fn of(self, shape: Shape) -> Shape {
        Shape {
            watches: shape.watches,
            streams: self.streams.unwrap_or(shape.streams),
            connections: self.connections.unwrap_or(shape.connections),
            writers: self.writers.unwrap_or(shape.writers),
            ahead: self.ahead.unwrap_or(shape.ahead),
        }
        .fit()
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is watched and written.
    pub scenario: Scenario,
    /// Where, in turn.
    pub endpoints: Vec<Address>,
    /// How the load is put together.
    pub shape: Shape,
    /// TCP connections of the writers.
    pub put_connections: usize,
    /// Threads that share all connections.
    pub threads: usize,
    /// Time before the window.
    pub warmup: Duration,
    /// The window.
    pub duration: Duration,
    /// Puts per second of all writers together; none is a closed loop.
    pub rate: Option<f64>,
    /// How long watches may take to show what is missing when the writers are done.
    pub patience: Duration,
    /// Keys and value size.
    pub keys: KeySpace,
    /// Makes keys and values repeatable.
    pub seed: u64,
    /// Local server processes whose CPU time is measured along.
    pub servers: Vec<u32>,
}

/// The usual patience: longer than any hiccup that is not a loss.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes at the start of each value that say when its put started.
const STAMP_BYTES: usize = 8;

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        self.keys.check()?;
        anyhow::ensure!(!self.endpoints.is_empty(), "no endpoints");
        anyhow::ensure!(self.shape.watches > 0, "there must be at least one watch");
        anyhow::ensure!(self.shape.writers > 0, "there must be at least one writer");
        anyhow::ensure!(self.shape.ahead > 0, "writers must be allowed at least one put ahead");
        anyhow::ensure!(self.keys.value_bytes >= STAMP_BYTES, "a value must have at least {STAMP_BYTES} bytes");
        anyhow::ensure!(!self.duration.is_zero(), "the measurement must be longer than nothing");
        anyhow::ensure!(
            self.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0),
            "the rate must be a number above 0"
        );
        anyhow::ensure!(
            self.scenario != Scenario::Keys || self.keys.count >= self.shape.watches as u64,
            "{} watches of a key each need as many keys",
            self.shape.watches
        );
        Ok(())
    }

    /// The keys that are written.
    fn written(&self) -> KeySpace {
        let count = match self.scenario {
            Scenario::Fanout | Scenario::LatencyEverything => self.keys.count,
            Scenario::Keys => self.shape.watches as u64,
            Scenario::Latency => (self.keys.count / PARTS).max(1),
        };
        KeySpace { count, ..self.keys.clone() }
    }

    /// What the watch with this number looks at.
    fn target(&self, number: usize) -> Target {
        let prefix = Bytes::copy_from_slice(self.keys.prefix.as_bytes());
        match self.scenario {
            Scenario::Fanout => Target { end: prefix_end(&prefix), key: prefix, start_revision: 0 },
            Scenario::Keys => Target::key(self.keys.key(number as u64)),
            Scenario::Latency => {
                Target { key: self.keys.key(0), end: self.keys.key(self.written().count), start_revision: 0 }
            }
            Scenario::LatencyEverything => Target::everything(),
        }
    }

    /// The one key that a watch looks at, if it is one.
    fn own_key(&self, number: usize) -> Option<u64> {
        (self.scenario == Scenario::Keys).then_some(number as u64)
    }

    /// Connections and threads as they are used: none is idle.
    fn threads(&self) -> usize {
        self.threads.clamp(1, self.shape.connections.max(self.put_connections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_leaves_nothing_idle() {
        let shape = Shape::of(Scenario::Keys, 10_000);
        assert_eq!((shape.streams, shape.connections), (100, 10));
        let shape = Shape::of(Scenario::Fanout, 3);
        assert_eq!((shape.streams, shape.connections), (3, 3));
        assert!(shape.to_string().starts_with("3 watches on 3 streams on 3 connections"));
    }

    #[test]
    fn what_is_written_is_watched() {
        for scenario in [Scenario::Fanout, Scenario::Keys, Scenario::Latency, Scenario::LatencyEverything] {
            let plan = Plan {
                scenario,
                endpoints: vec!["127.0.0.1:1".parse().unwrap()],
                shape: Shape::of(scenario, 20),
                put_connections: 1,
                threads: 1,
                warmup: Duration::ZERO,
                duration: Duration::from_secs(1),
                rate: None,
                patience: Duration::ZERO,
                keys: KeySpace { prefix: "bench/".into(), count: 320, value_bytes: 8 },
                seed: 1,
                servers: Vec::new(),
            };
            plan.check().unwrap();
            let sees = |watch: usize, key: u64| {
                let (target, key) = (plan.target(watch), plan.keys.key(key));
                match &target.end[..] {
                    b"" => key == target.key,
                    b"\0" => key >= target.key,
                    end => key >= target.key && key[..] < *end,
                }
            };
            for key in 0..320 {
                let written = key < plan.written().count;
                for watch in 0..20 {
                    let want = written && plan.own_key(watch).is_none_or(|own| own == key);
                    assert!(!written || sees(watch, key) == want, "{scenario:?}: watch {watch}, key {key}");
                }
            }
            let too_small = Plan { keys: KeySpace { value_bytes: 7, ..plan.keys.clone() }, ..plan };
            assert!(too_small.check().is_err());
        }
    }
}
