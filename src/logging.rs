//! Log lines, on stderr: stdout belongs to what a command answers.

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::args::types::LogFormat;

/// Why the log settings cannot be used.
#[derive(Debug, Error)]
#[error("--log-level {0:?} is neither debug, info, warn or error nor a list of tracing directives ({1})")]
pub struct LogLevelError(String, String);

/// Starts logging for the whole process.
pub fn start(level: &str, format: LogFormat) -> Result<(), LogLevelError> {
    let filter = filter(level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A bare level means braid's own lines; the libraries below speak up from `warn` on.
fn filter(level: &str) -> Result<EnvFilter, LogLevelError> {
    let directives = match level {
        "debug" => "debug,h2=info,hyper=info,hyper_util=info,tower=info,tonic=info".to_owned(),
        "info" => "info,h2=warn,hyper=warn,hyper_util=warn,raft_engine=warn,tower=warn,tonic=warn".to_owned(),
        other => other.to_owned(),
    };
    let unknown = |why: String| LogLevelError(level.to_owned(), why);
    let is_level = ["trace", "debug", "info", "warn", "error", "off"].contains(&level);
    if !is_level && !level.contains('=') && !level.contains(',') {
        return Err(unknown("one word that is no level".to_owned()));
    }
    EnvFilter::try_new(directives).map_err(|error| unknown(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read_and_nonsense_is_not() {
        for good in ["debug", "info", "warn", "error", "off", "info,braid_host=debug", "braid_store=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["loud", "", "info,braid=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
