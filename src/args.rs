//! The command line: what the roles can be told, and where a setting comes from.
//!
//! A setting is, in this order: the flag, the environment variable `BRAID_<FLAG>`, the key of the same name in the TOML
//! file of `--config-file`, the default. Names and meanings are etcd's wherever braid has the same thing.
//!
//! 1. clap reads flags and environment ([`layers`] gives every flag its variable).
//! 2. If that names a config file, its values become the defaults and the line is read again.
//! 3. What cannot be read ends as one line ([`usage`]), never as a page of text.
//!
//! Relations between settings are checked where they are used (`crate::cluster`, `crate::roles`).

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub mod admin;
pub mod compaction;
pub mod groups;
mod layers;
pub mod roles;
pub mod types;
pub mod usage;

use usage::Exit;

/// etcd's API on as many raft groups as the data needs.
#[derive(Parser, Debug)]
#[command(name = "braid", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to start or do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can be.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// A whole cluster in one process, for development: keeps its data in a folder, speaks etcd v3 on 127.0.0.1:2379
    Dev(roles::DevArgs),
    /// Placement, store and proxy in one process: three of these are what three etcd members are
    Server(roles::ServerArgs),
    /// A placement member: knows which store holds what, and numbers the revisions
    Placement(roles::PlacementArgs),
    /// A store: holds regions of the data
    Store(roles::StoreArgs),
    /// A proxy: speaks etcd v3 to clients, holds no data
    Proxy(roles::ProxyArgs),
    /// Looks into a running cluster and changes it
    Admin(admin::AdminArgs),
    /// Prints the version
    Version,
}

/// Reads a command line, the environment and the config file that they name.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, Exit> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let command = layers::with_environment(command());
    let mut matches = command.clone().try_get_matches_from(&argv).map_err(|error| Exit::of(&error, None))?;
    if let Some((role, path)) = layers::config_file(&matches) {
        let file = layers::File::read(&path).map_err(|error| Exit::Usage(error.to_string()))?;
        let command = file.apply(command, &role).map_err(|error| Exit::Usage(error.to_string()))?;
        matches = command.try_get_matches_from(&argv).map_err(|error| Exit::of(&error, Some(&path)))?;
    }
    Cli::from_arg_matches(&matches).map_err(|error| Exit::of(&error, None))
}

/// The command line as clap knows it, with the defaults in which `dev` differs from the other roles.
pub fn command() -> clap::Command {
    Cli::command().mut_subcommand("dev", |dev| {
        dev.mut_arg("log_level", |arg| arg.default_value("warn"))
            .mut_arg("listen_client_urls", |arg| arg.default_value("http://127.0.0.1:2379"))
    })
}

#[cfg(test)]
mod tests;
