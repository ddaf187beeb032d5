//! Until when a request is tried, and what its metadata asks for.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// Answers leave this much before the client's own timeout, so that it sees why instead of its own "deadline exceeded".
/// A twentieth of the timeout, and never more than this.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// What a request's metadata says about waiting.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When the request is answered at the latest.
    pub deadline: Instant,
    /// Metadata `hasleader`: without a leader the error is "no leader" instead of a timeout.
    pub require_leader: bool,
}

impl Patience {
    /// Patience of a request that has just arrived: the client's `grpc-timeout` or `timeout_max`, whichever ends first.
    pub fn of(metadata: &MetadataMap, timeout_max: Duration) -> Self {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let client = text("grpc-timeout").and_then(grpc_timeout);
        let timeout = client.map_or(timeout_max, |timeout| timeout.saturating_sub((timeout / 20).min(MARGIN_MAX)));
        Self { deadline: Instant::now() + timeout.min(timeout_max), require_leader: text("hasleader") == Some("true") }
    }

    /// Patience of a request that comes from this process.
    pub fn within(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, require_leader: false }
    }

    /// Milliseconds left, at least 1: a store takes 0 as "no time at all".
    pub fn left_ms(&self) -> u32 {
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis();
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }

    /// Whether the time is up.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// gRPC's timeout header: up to eight digits and a unit. `None` if it is malformed; gRPC says to ignore it then.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_ignores_what_is_malformed() {
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(grpc_timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(grpc_timeout("7u"), Some(Duration::from_micros(7)));
        assert_eq!(grpc_timeout("8n"), Some(Duration::from_nanos(8)));
        for malformed in ["", "S", "5", "5s", "123456789S", "-1S", "1 S", "1ü"] {
            assert_eq!(grpc_timeout(malformed), None, "{malformed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_timeout_wins_and_leaves_time_to_answer() {
        let now = Instant::now();
        let patience = |timeout: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", timeout.parse().expect("ASCII"));
            Patience::of(&metadata, Duration::from_secs(7)).deadline - now
        };
        assert_eq!(patience("1S"), Duration::from_millis(950));
        assert_eq!(patience("5S"), Duration::from_millis(4900));
        assert_eq!(patience("1M"), Duration::from_secs(7));
        assert_eq!(Patience::of(&MetadataMap::new(), Duration::from_secs(7)).deadline - now, Duration::from_secs(7));
    }
}
