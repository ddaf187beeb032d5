//! Latencies of one thread of one run, in an HDR histogram, and their merge.
//!
//! Every thread records into its own (no lock, no sharing); they are added up when the run is over.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Smallest difference that is kept apart near zero; a longer latency keeps three digits.
const LOWEST_NANOS: u64 = 1_000;
/// Longer ones count as this long.
const HIGHEST_NANOS: u64 = 3_600_000_000_000;

/// Latencies, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// No latency yet.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, 3).expect("constant bounds are valid"))
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all of the other's.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `quantile` (0 to 1) of them do not exceed; zero if there is none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }

    /// The figures a report shows.
    pub fn summary(&self) -> Summary {
        let micros = |quantile| self.quantile(quantile).as_nanos() as f64 / 1e3;
        Summary {
            count: self.count(),
            mean_us: self.0.mean() / 1e3,
            p50_us: micros(0.50),
            p90_us: micros(0.90),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
            max_us: micros(1.0),
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half of them were not longer.
    pub p50_us: f64,
    /// Nine in ten were not longer.
    pub p90_us: f64,
    /// 99 in 100 were not longer.
    pub p99_us: f64,
    /// 999 in 1,000 were not longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        micros.into_iter().for_each(|micros| latencies.record(Duration::from_micros(micros)));
        latencies
    }

    #[test]
    fn a_merge_equals_recording_everything_in_one() {
        let mut merged = of(1..=500);
        merged.merge(&of(501..=1000));
        merged.merge(&Latencies::new());
        assert_eq!(merged.summary(), of(1..=1000).summary());
        assert_eq!(merged.count(), 1000);
    }

    #[test]
    fn quantiles_keep_three_digits() {
        let summary = of(1..=100_000).summary();
        for (got, want) in [(summary.p50_us, 50_000.0), (summary.p99_us, 99_000.0), (summary.max_us, 100_000.0)] {
            assert!((got - want).abs() <= want * 0.001, "{got} is not {want}");
        }
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Latencies::new().summary(), Summary::default());
    }

    #[test]
    fn a_latency_beyond_the_range_counts_as_the_longest() {
        let latencies = of([u64::MAX / 1_000]);
        assert_eq!(latencies.count(), 1);
        assert!(latencies.quantile(1.0) >= Duration::from_secs(3_500));
    }
}
