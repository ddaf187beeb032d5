//! `--auto-compaction-mode` and `--auto-compaction-retention`, with etcd's meanings.
//!
//! | mode       | retention                       | keeps                          |
//! |------------|---------------------------------|--------------------------------|
//! | any        | `0`                             | everything                     |
//! | `periodic` | `10m`, `1h30m`; `8` means hours | the history of so much time    |
//! | `revision` | `1000`                          | so many of the newest revisions|

use std::str::FromStr;
use std::time::Duration;

use braid_placement::AutoCompaction;
use clap::Args;
use thiserror::Error;

/// What is compacted without being asked.
#[derive(Args, Clone, Debug)]
pub struct CompactionArgs {
    /// What --auto-compaction-retention counts: "periodic" for time, "revision" for revisions
    #[arg(long, value_name = "MODE", default_value = "periodic")]
    pub auto_compaction_mode: Mode,

    /// History to keep: a duration such as 10m or a number of hours, or a number of revisions; 0 keeps all of it
    #[arg(long, value_name = "RETENTION", default_value = "0")]
    pub auto_compaction_retention: Retention,
}

/// Flags that contradict each other.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "--auto-compaction-retention is a duration, but --auto-compaction-mode revision counts revisions; give a number"
)]
pub struct Contradiction;

impl CompactionArgs {
    /// What both flags together say.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn mode(&self) -> Result<AutoCompaction, Contradiction> {
        match (self.auto_compaction_mode, self.auto_compaction_retention) {
            (_, Retention::Number(0) | Retention::Time(Duration::ZERO)) => Ok(AutoCompaction::Off),
            (Mode::Periodic, Retention::Number(hours)) => Ok(AutoCompaction::Periodic(HOUR.saturating_mul(hours))),
            (Mode::Periodic, Retention::Time(window)) => Ok(AutoCompaction::Periodic(window)),
            (Mode::Revision, Retention::Number(kept)) => Ok(AutoCompaction::Revisions(i64::from(kept))),
            (Mode::Revision, Retention::Time(_)) => Err(Contradiction),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// How history is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By time.
    Periodic,
    /// By revisions.
    Revision,
}

/// Why a text is no mode.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ModeError {
    /// It is empty.
    #[error("undefined auto-compaction-mode; give periodic or revision")]
    Undefined,
    /// It is something else.
    #[error("unknown auto-compaction-mode {0:?}; give periodic or revision")]
    Unknown(String),
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "periodic" => Ok(Self::Periodic),
            "revision" => Ok(Self::Revision),
            "" => Err(ModeError::Undefined),
            other => Err(ModeError::Unknown(other.to_owned())),
        }
    }
}

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Hours or revisions, by the mode.
    Number(u32),
    /// Time.
    Time(Duration),
}

/// Why a text says nothing about how much to keep.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "error parsing CompactionRetention: {0:?} is neither a whole number of at least 0 nor a duration such as 1h30m"
)]
pub struct RetentionError(String);

impl FromStr for Retention {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, RetentionError> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        duration(text).map(Self::Time).ok_or_else(|| RetentionError(text.to_owned()))
    }
}

/// Nanoseconds in the units of etcd's durations.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads numbers with units behind each other: `1h30m`, `1.5h`, `300ms`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(number_end);
        let unit_end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_end);
        let nanos = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(amount(number, nanos)?)?;
        rest = next;
    }
    Some(total)
}

/// A decimal number of units.
fn amount(number: &str, unit_nanos: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = u128::from(whole) * u128::from(unit_nanos);
    let mut place = u128::from(unit_nanos);
    for digit in fraction.chars() {
        place /= 10;
        nanos += place * u128::from(digit.to_digit(10)?);
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(mode: &str, retention: &str) -> Result<AutoCompaction, String> {
        let auto_compaction_mode = mode.parse().map_err(|error: ModeError| error.to_string())?;
        let auto_compaction_retention = retention.parse().map_err(|error: RetentionError| error.to_string())?;
        let args = CompactionArgs { auto_compaction_mode, auto_compaction_retention };
        args.mode().map_err(|error| error.to_string())
    }

    #[test]
    fn retentions_mean_what_they_mean_in_etcd() {
        let periodic = |seconds| Ok(AutoCompaction::Periodic(Duration::from_secs(seconds)));
        for (retention, expected) in [
            ("1", periodic(3_600)),
            ("72", periodic(72 * 3_600)),
            ("10m", periodic(600)),
            ("1h", periodic(3_600)),
            ("1h30m", periodic(5_400)),
            ("1.5h", periodic(5_400)),
            (".5h", periodic(1_800)),
            ("90s", periodic(90)),
            ("2h45m10s", periodic(9_910)),
            ("300ms", Ok(AutoCompaction::Periodic(Duration::from_millis(300)))),
            ("0", Ok(AutoCompaction::Off)),
            ("0s", Ok(AutoCompaction::Off)),
        ] {
            assert_eq!(mode("periodic", retention), expected, "{retention}");
        }
        assert_eq!(mode("revision", "1000"), Ok(AutoCompaction::Revisions(1_000)));
        assert_eq!(mode("revision", "0"), Ok(AutoCompaction::Off));
    }

    #[test]
    fn what_means_nothing_is_refused_in_etcds_words() {
        for retention in ["", "h", "1x", "-1", "-1h", "1h30", "1.2.3h", ".h", "1 h", "99999999999h", "ten"] {
            let why = mode("periodic", retention).expect_err(retention);
            assert!(why.starts_with("error parsing CompactionRetention: "), "{why}");
        }
        assert!(mode("", "1").expect_err("no mode").starts_with("undefined auto-compaction-mode"));
        assert!(mode("hourly", "1").expect_err("no mode").starts_with("unknown auto-compaction-mode \"hourly\""));
        assert_eq!(mode("revision", "1h"), Err(Contradiction.to_string()));
    }
}
