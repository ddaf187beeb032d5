//! A command line that cannot be read, as one line that says what to do.

use std::error::Error as _;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Exit code of a wrong command line; everything else that fails exits with 1.
pub const EXIT_USAGE: u8 = 2;

/// Why parsing ended without a command.
#[derive(Debug)]
pub enum Exit {
    /// Help or version was asked for: the text for stdout.
    Text(String),
    /// The command line is wrong: one line for stderr.
    Usage(String),
    /// The command line says nothing to do: help for stderr.
    Help(String),
}

impl Exit {
    /// Reads clap's error. `file` is the config file if only its values can be at fault.
    pub fn of(error: &clap::Error, file: Option<&Path>) -> Self {
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Text(error.render().to_string()),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
                Self::Help(error.render().to_string())
            }
            _ => {
                let line = line(error);
                Self::Usage(match file {
                    Some(path) => format!("{}: {line}", path.display()),
                    None => line,
                })
            }
        }
    }

    /// Prints it and gives the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Text(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Self::Usage(line) => {
                eprintln!("braid: {line}");
                ExitCode::from(EXIT_USAGE)
            }
            Self::Help(text) => {
                eprint!("{text}");
                ExitCode::from(EXIT_USAGE)
            }
        }
    }
}

fn line(error: &clap::Error) -> String {
    let argument = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let flag = argument.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => unknown(error, flag),
        ErrorKind::ValueValidation => {
            let why = error.source().map(ToString::to_string).unwrap_or_else(|| "not accepted".to_owned());
            format!("{flag}: {why}")
        }
        ErrorKind::InvalidValue => invalid_value(error, flag),
        ErrorKind::InvalidSubcommand => unknown_command(error),
        ErrorKind::MissingRequiredArgument => missing(error),
        _ => first_line(error),
    }
}

fn unknown(error: &clap::Error, flag: &str) -> String {
    if let Some(reason) = foreign_flag(flag.trim_start_matches('-')) {
        return format!("{flag}: {reason}");
    }
    match text(error, ContextKind::SuggestedArg) {
        Some(nearest) => format!("unknown flag {flag}; the nearest is {nearest}"),
        None if flag.starts_with('-') => format!("unknown flag {flag}; --help lists the flags"),
        None => format!("{flag:?} is not expected here; --help lists what is"),
    }
}

fn unknown_command(error: &clap::Error) -> String {
    let command = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
    match text(error, ContextKind::SuggestedSubcommand) {
        Some(nearest) => format!("unknown command {command:?}; the nearest is {nearest:?}"),
        None => format!("unknown command {command:?}; --help lists the commands"),
    }
}

fn missing(error: &clap::Error) -> String {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(flags)) => format!("give {}", flags.join(" and ")),
        _ => first_line(error),
    }
}

fn invalid_value(error: &clap::Error, flag: &str) -> String {
    let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
    let allowed = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => format!("one of {}", values.join(", ")),
        _ => "a value".to_owned(),
    };
    if value.is_empty() {
        format!("{flag} needs {allowed}")
    } else {
        format!("{flag} is {value:?}, but must be {allowed}")
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}

/// Why braid does not have a flag of etcd's, and what to do instead. None for names etcd does not have either.
pub fn foreign_flag(flag: &str) -> Option<&'static str> {
    Some(match flag {
        "snapshot-count" | "snapshot-catchup-entries" | "experimental-snapshot-catchup-entries" => {
            "braid does not have it, because each region bounds its own raft log by size; drop the flag"
        }
        "max-snapshots" | "max-wals" => {
            "braid does not have it, because old raft logs and snapshots are removed as soon as no replica needs them; \
             drop the flag"
        }
        "wal-dir" => {
            "braid does not have it, because the raft log lies in the data folder; put --data-dir on the fast disk"
        }
        "enable-v2" | "enable-v2v3" | "experimental-enable-v2v3" | "v2-deprecation" | "proxy" => {
            "braid does not have it, because it speaks only etcd's v3 API; drop the flag"
        }
        "discovery"
        | "discovery-fallback"
        | "discovery-proxy"
        | "discovery-srv"
        | "discovery-srv-name"
        | "discovery-endpoints"
        | "discovery-token" => {
            "braid does not have discovery, because members must know each other before they start; \
             list them in --initial-cluster"
        }
        "cert-file"
        | "key-file"
        | "client-cert-auth"
        | "trusted-ca-file"
        | "auto-tls"
        | "client-crl-file"
        | "peer-cert-file"
        | "peer-key-file"
        | "peer-client-cert-auth"
        | "peer-trusted-ca-file"
        | "peer-auto-tls"
        | "cipher-suites"
        | "tls-min-version"
        | "tls-max-version" => "braid does not have TLS yet; keep its ports on a private network and drop the flag",
        "auth-token" | "bcrypt-cost" | "auth-token-ttl" => {
            "braid does not have authentication yet; keep its ports on a private network and drop the flag"
        }
        "force-new-cluster" => {
            "braid does not have it, because one member does not hold all the data; restart a majority of the members"
        }
        "unsafe-no-fsync" | "backend-batch-limit" | "backend-batch-interval" | "backend-bbolt-freelist-type" => {
            "braid does not have it, because nothing is acknowledged before it is synced; drop the flag"
        }
        "enable-pprof"
        | "enable-grpc-gateway"
        | "metrics"
        | "logger"
        | "log-outputs"
        | "pre-vote"
        | "strict-reconfig-check"
        | "max-concurrent-streams"
        | "grpc-keepalive-min-time"
        | "grpc-keepalive-interval"
        | "grpc-keepalive-timeout" => "braid does not have this flag of etcd's; drop it",
        _ if flag.starts_with("experimental-") => "braid does not have etcd's experimental flags; drop it",
        _ => return None,
    })
}
