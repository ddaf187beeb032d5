//! What one run measured, as JSON (the fields below) and for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::histogram::{Latencies, Summary};
use crate::loader::Loaded;
use crate::resources::Usage;
use crate::runner::{Measured, Plan};
use crate::watch::{self, Shape};
use crate::workload::Kind;

/// The figures of one run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Name of the workload.
    pub workload: String,
    /// Workers.
    pub clients: usize,
    /// TCP connections.
    pub connections: usize,
    /// Keys and value size.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Scheduled operations per second; none is a closed loop.
    pub rate: Option<f64>,
    /// Length of the window.
    pub seconds: f64,
    /// Operations that succeeded within the window.
    pub operations: u64,
    /// The same per second.
    pub operations_per_second: f64,
    /// Latency of all kinds together.
    pub latency: Summary,
    /// Latency of each kind that occurred.
    pub kinds: BTreeMap<&'static str, Summary>,
    /// Failed operations by code and text.
    pub errors: BTreeMap<String, u64>,
    /// Workers that were still busy when the run was given up.
    pub unfinished: u64,
    /// Open loop: operations whose time had come and that no client was free to start by the end. Latencies are those of a
    /// queue if there are many.
    pub backlog: Option<u64>,
    /// Open loop: how late free workers started, the client's own doing.
    pub lateness: Option<Summary>,
    /// CPU time of this process for each operation.
    pub client_cpu_us_per_operation: f64,
    /// CPU time of the server processes for each operation, if any were named.
    pub server_cpu_us_per_operation: Option<f64>,
    /// The same by groups of threads, where their names tell.
    pub server_cpu_us_by_threads: BTreeMap<String, f64>,
    /// Watches: operations are the events delivered, `clients` are the watches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watching: Option<Watching>,
    /// Leases that expired meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<Expired>,
}

/// What is said about leases that expire beside puts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Expired {
    /// Leases, one a second; each was shown to end in time, with all its keys at one revision.
    pub leases: u64,
    /// Keys of all of them.
    pub keys: u64,
    /// The longest time from the end of a TTL until the news of it.
    pub latest_ms: f64,
}

/// What is said about watches only.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Watching {
    /// How the load was put together.
    pub shape: Shape,
    /// Puts acknowledged per second, warm-up included.
    pub puts_per_second: f64,
    /// Puts whose events every watch was shown to have seen once and in order.
    pub puts_checked: u64,
}

/// CPU time for each operation, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    /// This process.
    pub(crate) client: f64,
    /// All servers.
    pub(crate) servers: Option<f64>,
    /// Groups of their threads.
    pub(crate) groups: BTreeMap<String, f64>,
}

impl Cpu {
    pub(crate) fn new(used: &Usage, operations: u64) -> Self {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / operations.max(1) as f64;
        let groups = used.groups.iter().map(|(name, &time)| (name.clone(), each(time)));
        Self { client: each(used.client), servers: used.servers.map(each), groups: groups.collect() }
    }
}

impl Report {
    pub(crate) fn new(plan: &Plan, measured: Measured, used: &Usage) -> Self {
        let mut all = Latencies::new();
        let operations = Kind::ALL.iter().filter(|kind| kind.is_operation());
        operations.for_each(|&kind| all.merge(&measured.latencies[kind as usize]));
        let kinds = Kind::ALL.iter().map(|&kind| (kind.name(), measured.latencies[kind as usize].summary()));
        let seconds = plan.duration.as_secs_f64();
        let cpu = Cpu::new(used, measured.completed);
        Self {
            workload: plan.workload.to_string(),
            clients: plan.clients,
            connections: plan.layout().0,
            keys: plan.keys.count,
            value_bytes: plan.keys.value_bytes,
            rate: plan.rate,
            seconds,
            operations: measured.completed,
            operations_per_second: measured.completed as f64 / seconds,
            latency: all.summary(),
            kinds: kinds.filter(|(_, summary)| summary.count > 0).collect(),
            errors: measured.errors,
            unfinished: measured.unfinished,
            backlog: plan.rate.map(|_| measured.backlog),
            lateness: plan.rate.map(|_| measured.lateness.summary()),
            client_cpu_us_per_operation: cpu.client,
            server_cpu_us_per_operation: cpu.servers,
            server_cpu_us_by_threads: cpu.groups,
            watching: None,
            expired: None,
        }
    }

    /// Of filling a key space.
    pub(crate) fn loaded(plan: &Plan, loaded: &Loaded, took: Duration, used: &Usage) -> Self {
        let cpu = Cpu::new(used, loaded.puts);
        Self {
            workload: "load".to_owned(),
            clients: plan.clients,
            connections: plan.layout().0,
            keys: plan.keys.count,
            value_bytes: plan.keys.value_bytes,
            seconds: took.as_secs_f64(),
            operations: loaded.puts,
            operations_per_second: loaded.puts as f64 / took.as_secs_f64(),
            latency: loaded.latency,
            kinds: BTreeMap::from([(Kind::Put.name(), loaded.latency)]),
            client_cpu_us_per_operation: cpu.client,
            server_cpu_us_per_operation: cpu.servers,
            server_cpu_us_by_threads: cpu.groups,
            ..Self::default()
        }
    }

    /// Open loop: whether the server did what was scheduled. A backlog of less than 1 in 100 is a stall near the end.
    pub fn kept_up(&self) -> bool {
        let scheduled = self.rate.map_or(0.0, |rate| rate * self.seconds);
        self.backlog.is_none_or(|backlog| backlog as f64 <= scheduled / 100.0)
    }

    /// Failed operations.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, clients, connections, keys, value_bytes, seconds, .. } = self;
        let pace = self.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} operations/s scheduled"));
        match &self.watching {
            None => writeln!(f, "{workload}: {clients} clients on {connections} connections, {pace}, {seconds:.1} s")?,
            Some(Watching { shape, .. }) => {
                writeln!(f, "{workload}: {shape}, {}, {seconds:.1} s", watch::pace(shape, self.rate))?;
            }
        }
        writeln!(f, "{keys} keys, values of {value_bytes} bytes")?;
        writeln!(f)?;
        match &self.watching {
            None => writeln!(f, "operations      {} ({:.0}/s)", self.operations, self.operations_per_second)?,
            Some(Watching { puts_per_second, puts_checked, .. }) => {
                writeln!(f, "events          {} ({:.0}/s)", self.operations, self.operations_per_second)?;
                writeln!(f, "puts            {puts_per_second:.0}/s")?;
                writeln!(f, "checked         {puts_checked} puts: every watch saw its own once, in order")?;
            }
        }
        if let Some(Expired { leases, keys, latest_ms }) = self.expired {
            writeln!(
                f,
                "expired         {leases} leases with {keys} keys, none early, at most {latest_ms:.0} ms late"
            )?;
        }
        writeln!(f, "client CPU      {:.1} us per operation", self.client_cpu_us_per_operation)?;
        if let Some(cpu) = self.server_cpu_us_per_operation {
            writeln!(f, "server CPU      {cpu:.1} us per operation")?;
            let mut groups: Vec<_> = self.server_cpu_us_by_threads.iter().collect();
            groups.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            for (name, cpu) in groups.into_iter().take(GROUPS_SHOWN) {
                writeln!(f, "  {name:<16}{cpu:>8.1}")?;
            }
        }
        writeln!(f)?;
        writeln!(f, "latency, ms       count      mean       p50       p90       p99     p99.9       max")?;
        for (name, summary) in &self.kinds {
            writeln!(f, "{name:<13}{}", row(summary))?;
        }
        if self.kinds.len() > 1 && self.watching.is_none() && self.expired.is_none() {
            writeln!(f, "{:<13}{}", "all", row(&self.latency))?;
        }
        if let Some(lateness) = self.lateness.as_ref().filter(|lateness| lateness.count > 0) {
            writeln!(f, "{:<13}{}", "client late", row(lateness))?;
        }
        if let (false, Some(backlog), Some(rate)) = (self.kept_up(), self.backlog, self.rate) {
            writeln!(
                f,
                "CANNOT KEEP UP  {rate} operations/s were scheduled and {:.0}/s done: at the end {backlog} were due and \
                 waited for a free client. Latencies are those of a queue that grows; lower --rate, or raise --clients \
                 if the server was not busy",
                self.operations_per_second
            )?;
        }
        for (text, count) in &self.errors {
            writeln!(f, "FAILED          {count} x {text}")?;
        }
        if self.unfinished > 0 {
            writeln!(f, "UNFINISHED      {} clients still waited when the run was given up", self.unfinished)?;
        }
        Ok(())
    }
}

/// Groups of threads that are shown to people: the busiest.
const GROUPS_SHOWN: usize = 8;

fn row(summary: &Summary) -> String {
    let mut text = format!("{:>10}", summary.count);
    let Summary { mean_us, p50_us, p90_us, p99_us, p999_us, max_us, .. } = *summary;
    for micros in [mean_us, p50_us, p90_us, p99_us, p999_us, max_us] {
        write!(text, "{:>10.3}", micros / 1e3).expect("writing to a string never fails");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_of_more_than_one_in_a_hundred_is_told() {
        let of = |rate, backlog| Report { rate, backlog, seconds: 2.0, ..Report::default() };
        for (report, kept_up) in [
            (of(Some(500.0), Some(0)), true),
            (of(Some(500.0), Some(10)), true),
            (of(Some(500.0), Some(11)), false),
            (of(None, None), true),
        ] {
            assert_eq!(report.kept_up(), kept_up, "{report}");
            assert_eq!(report.to_string().contains("CANNOT KEEP UP"), !kept_up, "{report}");
        }
    }
}
