//! `/metrics`: everything the process counts, as Prometheus text.
//!
//! Three sources on one page: braid's own metrics (crate `metrics`), those of the raft log (crate `prometheus`, its
//! default registry), and a few of the process from `/proc`.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use prometheus::{Encoder as _, TextEncoder};
use tokio::task::JoinHandle;
use tracing::error;

/// Upper bounds in seconds for everything that is a duration: from 50 µs, a read from memory, to 10 s, a client's patience.
const SECONDS: [f64; 17] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Upper bounds for sizes in bytes.
const BYTES: [f64; 10] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];
/// Upper bounds for counts, such as the requests of one batch.
const COUNTS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0];
/// How often histograms are folded; samples lie in memory until then.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics {
    recorder: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder for the whole process. Once per process.
    pub fn install() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&COUNTS)?
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
            .install_recorder()?;
        Ok(Self { recorder })
    }

    /// Folds histograms for as long as the task lives.
    pub fn keep_folded(&self) -> JoinHandle<()> {
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(FOLD_EVERY);
            loop {
                ticks.tick().await;
                recorder.run_upkeep();
            }
        })
    }

    /// The whole page.
    pub fn render(&self) -> String {
        let mut page = self.recorder.render();
        let mut encoded = Vec::new();
        match TextEncoder::new().encode(&prometheus::gather(), &mut encoded) {
            Ok(()) => page.push_str(&String::from_utf8_lossy(&encoded)),
            Err(error) => error!(%error, "cannot write the raft log's metrics"),
        }
        process(&mut page);
        page
    }
}

/// Adds what the kernel says about the process. What it does not say is left out.
fn process(page: &mut String) {
    let resident = fs::read_to_string("/proc/self/status").ok().and_then(|status| resident_bytes(&status));
    let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64);
    gauge(page, "process_resident_memory_bytes", "Memory of the process that is in RAM.", resident);
    gauge(page, "process_open_fds", "Files and connections that the process has open.", files);
}

fn gauge(page: &mut String, name: &str, help: &str, value: Option<u64>) {
    if let Some(value) = value {
        // Writing to a String cannot fail.
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_kernels_text() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nVmData: 1 kB\n"), Some(1234 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn the_process_page_has_both_gauges() {
        let mut page = String::new();
        process(&mut page);
        assert!(page.contains("\nprocess_resident_memory_bytes ") && page.contains("\nprocess_open_fds "), "{page}");
    }
}
