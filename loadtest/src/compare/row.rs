//! What is compared: one workload at one number, written `put:64`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::measure::Measure;
use crate::watch::Scenario;
use crate::workload::Workload;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What is done.
    pub work: Work,
    /// Its clients, or its watches; of the watch latencies and of expiry the puts per second; members that restart.
    pub number: usize,
}

/// What a row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Something that can be measured on any cluster.
    Measure(Measure),
    /// So many members are killed (kill -9) and started again at once; the figure is the time until each of them answers
    /// a linearizable get. Done after all other rows, since caches are empty afterwards.
    Restart,
}

/// What a row's ratio is made of. It is above 1 where the first side is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Yardstick {
    /// Operations per second, the first side's over the second one's.
    Throughput,
    /// Median latency, the second side's over the first one's: of rows at a given rate, and of restarts.
    Latency,
}

impl Yardstick {
    /// What a table adds to the ratio.
    pub fn note(self) -> &'static str {
        match self {
            Self::Throughput => "",
            Self::Latency => " p50",
        }
    }
}

const RESTART: &str = "restart";

/// Watches of the rows that measure latencies.
pub(super) const LATENCY_WATCHES: usize = 10;

/// Clients that put beside leases that expire.
const EXPIRY_CLIENTS: usize = 64;

/// What `--all` compares, in this order: what only reads comes first, so that it meets the data as it was loaded.
pub const ALL: [&str; 21] = [
    "get:1",
    "get:64",
    "get:256",
    "get-serializable:64",
    "get-serializable:256",
    "range-1000:16",
    "range-limit-1000-of-100000:16",
    "page-500-count:1",
    "count-only:1",
    "put:1",
    "put:64",
    "put:256",
    "txn:256",
    "watch-fanout:100",
    "watch-fanout:1000",
    "watch-keys:10000",
    "watch-latency:300",
    "put-idle-watchers:64",
    "lease-keepalive:1000",
    "kubernetes:64",
    "restart:3",
];

/// Keys that `--all` loads.
pub const ALL_KEYS: u64 = 1_000_000;

/// Pods of a `kubernetes` row are no more than this: a large cluster's.
const PODS_MAX: u64 = 50_000;

impl Row {
    /// Clients or watches, and the rate.
    pub fn load(self) -> (usize, Option<f64>) {
        match self.work {
            Work::Measure(Measure::Watch(Scenario::Latency | Scenario::LatencyEverything)) => {
                (LATENCY_WATCHES, Some(self.number as f64))
            }
            Work::Measure(Measure::LeaseExpiry) => (EXPIRY_CLIENTS, Some(self.number as f64)),
            _ => (self.number, None),
        }
    }

    /// What its ratio is made of.
    pub fn yardstick(self) -> Yardstick {
        match self.work {
            Work::Restart => Yardstick::Latency,
            Work::Measure(_) if self.load().1.is_some() => Yardstick::Latency,
            Work::Measure(_) => Yardstick::Throughput,
        }
    }

    /// Keys it works on, of so many that are loaded.
    pub fn keys(self, loaded: u64) -> u64 {
        match self.work {
            Work::Measure(Measure::Operations(Workload::Kubernetes(_))) => loaded.min(PODS_MAX),
            _ => loaded,
        }
    }

    /// Fails if it cannot be done with so many keys and members.
    pub fn check(self, keys: u64, members: usize) -> anyhow::Result<()> {
        if let Work::Measure(Measure::Operations(workload)) = self.work {
            let span = workload.span();
            anyhow::ensure!(keys >= span, "{self} spans {span} keys, and there are {keys}: raise --keys");
            let short = workload.owns_keys() && keys < self.number as u64;
            anyhow::ensure!(!short, "{self} needs a key for each client, and there are {keys}: raise --keys");
        }
        let too_many = self.work == Work::Restart && self.number > members;
        anyhow::ensure!(!too_many, "{self}: there are only {members} members to restart");
        Ok(())
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: a row looks like put:64, a workload with its number of clients");
        let (work, number) = text.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
        let work = match work {
            RESTART => Work::Restart,
            _ => Work::Measure(work.parse().map_err(|error| format!("{error}, {RESTART}"))?),
        };
        Ok(Self { work, number })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Measure(measure) => write!(f, "{measure}:{}", self.number),
            Work::Restart => write!(f, "{RESTART}:{}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        text.parse().unwrap()
    }

    #[test]
    fn rows_are_read_as_they_are_written() {
        for text in ["put:64", "get-serializable:1", "watch-fanout:100", "put-idle-watchers:64", "page-500-count:4"] {
            assert_eq!(row(text).to_string(), text);
        }
        for bad in ["put", "put:0", "put:x", "push:1", ""] {
            assert!(bad.parse::<Row>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_rows_can_be_done_on_a_million_keys_and_are_different() {
        let mut seen = std::collections::HashSet::new();
        for text in ALL {
            row(text).check(ALL_KEYS, 3).unwrap();
            assert_eq!(row(text).to_string(), text);
            assert!(seen.insert(text), "{text} is there twice");
        }
        assert_eq!(row(ALL[ALL.len() - 1]).work, Work::Restart);
    }

    #[test]
    fn rows_that_cannot_be_done_say_what_is_missing() {
        for (text, want) in [
            ("range-limit-10-of-100:4", "raise --keys"),
            ("txn:64", "a key for each client"),
            ("restart:4", "only 3 members"),
        ] {
            let error = row(text).check(50, 3).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_number_of_a_latency_row_is_its_rate() {
        assert_eq!(row("watch-latency:500").load(), (LATENCY_WATCHES, Some(500.0)));
        assert_eq!(row("watch-fanout:500").load(), (500, None));
        assert_eq!(row("put:64").load(), (64, None));
        let yardsticks =
            ["watch-latency:500", "lease-expiry:300", "restart:3", "put:1"].map(|text| row(text).yardstick());
        use Yardstick::{Latency, Throughput};
        assert_eq!(yardsticks, [Latency, Latency, Latency, Throughput]);
    }

    #[test]
    fn a_kubernetes_row_has_no_more_pods_than_a_large_cluster() {
        assert_eq!(row("kubernetes:64").keys(1_000_000), PODS_MAX);
        assert_eq!(row("kubernetes:64").keys(1_000), 1_000);
        assert_eq!(row("put:64").keys(1_000_000), 1_000_000);
    }
}
