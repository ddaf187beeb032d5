//! Values of flags: URLs, labels, keys, log settings.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use braid_proto::address::{AddressError, host_port};
use braid_proxy::config::WATCH_PROGRESS_INTERVAL;
use bytes::Bytes;
use clap::ValueEnum;

use super::compaction::duration;
use crate::key_text::{self, KeyTextError};

/// etcd's least time between two progress notices.
const NOTICE_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// `http://host:port`, as etcd's URL flags have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// `host:port`.
    pub addr: String,
}

impl Url {
    /// The host without the port.
    pub fn host(&self) -> &str {
        self.addr.rsplit_once(':').map_or(self.addr.as_str(), |(host, _)| host)
    }

    /// Whether the host stands for every address of the machine: good for listening, useless as an address to give out.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host(), "0.0.0.0" | "[::]")
    }
}

impl FromStr for Url {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        host_port(text.trim()).map(|addr| Self { addr })
    }
}

/// A URL of `--endpoints`, where etcdctl takes `host:port` as well.
pub fn endpoint(text: &str) -> Result<Url, AddressError> {
    let text = text.trim();
    if text.contains("://") { text.parse() } else { format!("http://{text}").parse() }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.addr)
    }
}

/// `name=value` of `--labels`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Left of the `=`.
    pub name: String,
    /// Right of it.
    pub value: String,
}

/// Why a text is no label.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} must be NAME=VALUE, for example zone=a")]
pub struct LabelError(String);

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(LabelError(text.to_owned())),
        }
    }
}

/// An etcd key as text, `\xNN` for bytes that cannot be typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub Bytes);

impl FromStr for Key {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        key_text::parse(text).map(Self)
    }
}

/// An id as braid prints it (`r7`, `s3`) or as a bare number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<const PREFIX: char>(pub u64);

/// Why a text is no id.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no id: give a number above 0, or {prefix}NUMBER as the lists print it")]
pub struct IdError {
    text: String,
    prefix: char,
}

impl<const PREFIX: char> FromStr for Id<PREFIX> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).unwrap_or(text);
        match digits.parse() {
            Ok(id) if id > 0 => Ok(Self(id)),
            _ => Err(IdError { text: text.to_owned(), prefix: PREFIX }),
        }
    }
}

/// `--watch-progress-notify-interval`: a duration; etcd's default where it is 0 or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoticeInterval(pub Duration);

/// Why a text is no interval between notices.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoticeIntervalError {
    /// It is no duration.
    #[error("{0:?} is no duration, such as 5s or 1m30s")]
    NoDuration(String),
    /// Notices so often would be a load of their own.
    #[error("{0:?} is too short; notices come every 100ms at most")]
    TooShort(String),
}

impl FromStr for NoticeInterval {
    type Err = NoticeIntervalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (is_negative, length) = text.strip_prefix('-').map_or((false, text), |length| (true, length));
        let zero = (length == "0").then_some(Duration::ZERO);
        match zero.or_else(|| duration(length)) {
            None => Err(NoticeIntervalError::NoDuration(text.to_owned())),
            Some(length) if is_negative || length.is_zero() => Ok(Self(WATCH_PROGRESS_INTERVAL)),
            Some(length) if length < NOTICE_INTERVAL_MIN => Err(NoticeIntervalError::TooShort(text.to_owned())),
            Some(length) => Ok(Self(length)),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[value(alias = "console")]
    Text,
    /// One JSON object a line.
    Json,
}

/// How admin answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What `--initial-cluster-state` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClusterState {
    /// The members of `--initial-cluster` begin the cluster if none of them has.
    New,
    /// Some of them have.
    Existing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_need_both_sides() {
        assert_eq!("zone=a".parse::<Label>().unwrap(), Label { name: "zone".into(), value: "a".into() });
        for bad in ["zone", "=a", "zone=", ""] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_read_as_printed_or_bare() {
        assert_eq!("r7".parse::<Id<'r'>>().unwrap(), Id(7));
        assert_eq!("7".parse::<Id<'r'>>().unwrap(), Id(7));
        for bad in ["s7", "0", "", "r", "-1"] {
            assert!(bad.parse::<Id<'r'>>().is_err(), "{bad}");
        }
    }

    #[test]
    fn notices_have_etcds_intervals() {
        let read = |text: &str| text.parse::<NoticeInterval>().map(|interval| interval.0.as_millis());
        for (text, millis) in [("100ms", 100), ("1m30s", 90_000), ("0", 600_000), ("0s", 600_000), ("-5s", 600_000)] {
            assert_eq!(read(text), Ok(millis), "{text}");
        }
        assert_eq!(read("99ms"), Err(NoticeIntervalError::TooShort("99ms".to_owned())));
        for text in ["", "5", "often", "-"] {
            assert_eq!(read(text), Err(NoticeIntervalError::NoDuration(text.to_owned())));
        }
    }

    #[test]
    fn an_endpoint_needs_no_scheme() {
        for text in ["127.0.0.1:2379", " http://127.0.0.1:2379"] {
            assert_eq!(endpoint(text).unwrap().to_string(), "http://127.0.0.1:2379");
        }
        for text in ["", "localhost", "https://127.0.0.1:2379", "unix://x"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn wildcards_are_seen() {
        assert!("http://0.0.0.0:2379".parse::<Url>().unwrap().is_wildcard());
        assert!("http://[::]:2379".parse::<Url>().unwrap().is_wildcard());
        assert!(!"http://127.0.0.1:2379".parse::<Url>().unwrap().is_wildcard());
    }
}
