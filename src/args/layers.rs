//! Environment and config file under the flags.
//!
//! Both are told to clap instead of being merged by hand: a variable is the flag's `env`, a file's value is the flag's
//! default. So precedence is clap's own, and a value is read and checked by the same code wherever it came from.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use thiserror::Error;
use toml::{Table, Value};

use super::usage::foreign_flag;

/// Commands without environment and file: they take arguments, not settings.
const NO_SETTINGS: [&str; 1] = ["version"];

/// Gives every flag the variable `BRAID_<FLAG>`. For `admin` those are the flags in front of its commands.
pub fn with_environment(command: Command) -> Command {
    let roles: Vec<String> = command
        .get_subcommands()
        .map(|role| role.get_name().to_owned())
        .filter(|role| !NO_SETTINGS.contains(&role.as_str()))
        .collect();
    roles.into_iter().fold(command, |command, role| command.mut_subcommand(role, variables))
}

fn variables(role: Command) -> Command {
    role.mut_args(|arg| match arg.get_long().map(variable) {
        Some(name) => arg.env(name),
        None => arg,
    })
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("BRAID_{}", flag.replace('-', "_").to_uppercase())
}

/// The role on the command line and its config file, if it names one.
pub fn config_file(matches: &ArgMatches) -> Option<(String, PathBuf)> {
    let (role, matches) = matches.subcommand()?;
    let path = matches.try_get_one::<PathBuf>("config_file").ok()??;
    Some((role.to_owned(), path.clone()))
}

/// Why a config file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the config file {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It is not TOML.
    #[error("{path}: line {line} is not TOML: {what}", path = path.display())]
    Syntax { path: PathBuf, line: usize, what: String },
    /// A key that is no flag of the role.
    #[error("{path}: `braid {role}` has no setting {key:?}{hint}", path = path.display())]
    UnknownKey { path: PathBuf, role: String, key: String, hint: String },
    /// A value that no flag can have.
    #[error("{path}: {key} must be a text, a number, true or false, or a list of those", path = path.display())]
    Shape { path: PathBuf, key: String },
}

/// A config file that has been read.
pub struct File {
    path: PathBuf,
    table: Table,
}

impl File {
    /// Reads `path`.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let table = text.parse::<Table>().map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            FileError::Syntax {
                path: path.to_owned(),
                line: text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1,
                what: error.message().replace('\n', " "),
            }
        })?;
        Ok(Self { path: path.to_owned(), table })
    }

    /// Makes the file's values the defaults of `role`'s flags.
    pub fn apply(&self, command: Command, role: &str) -> Result<Command, FileError> {
        let known = command.find_subcommand(role).map(settings).unwrap_or_default();
        let mut defaults = Vec::with_capacity(self.table.len());
        for (key, value) in &self.table {
            let Some((_, id)) = known.iter().find(|(flag, _)| flag == key) else {
                return Err(FileError::UnknownKey {
                    path: self.path.clone(),
                    role: role.to_owned(),
                    key: key.clone(),
                    hint: hint(key, &known),
                });
            };
            let texts = texts(value).ok_or_else(|| FileError::Shape { path: self.path.clone(), key: key.clone() })?;
            defaults.push((id.clone(), texts));
        }
        Ok(command.mut_subcommand(role, |role| {
            defaults.into_iter().fold(role, |role, (id, texts)| role.mut_arg(id, |arg| arg.default_values(texts)))
        }))
    }
}

/// Flags and clap ids of the settings that a file may hold.
fn settings(role: &Command) -> Vec<(String, String)> {
    let names = |arg: &clap::Arg| {
        arg.get_long_and_visible_aliases()
            .into_iter()
            .flatten()
            .chain(arg.get_all_aliases().into_iter().flatten())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    role.get_arguments()
        .flat_map(|arg| names(arg).into_iter().map(|name| (name, arg.get_id().to_string())))
        .filter(|(flag, _)| flag != "help" && flag != "config-file")
        .collect()
}

/// What to say about a key that is no setting: why braid lacks it, or which one is meant.
fn hint(key: &str, known: &[(String, String)]) -> String {
    if key == "config-file" {
        return ": a config file cannot name another one".to_owned();
    }
    if let Some(reason) = foreign_flag(key) {
        return format!(": {reason}");
    }
    let nearest = known
        .iter()
        .map(|(flag, _)| (strsim::jaro_winkler(flag, &key.replace('_', "-")), flag))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.map(|(_, flag)| format!("; the nearest is {flag:?}")).unwrap_or_default()
}

/// A value as flags have it; a list becomes several.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(scalar).collect(),
        other => scalar(other).map(|text| vec![text]),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}
