//! Flags of commands that start a cluster of separate processes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::Output;
use crate::cluster::{Binary, System, disk_folder};

/// The cluster that is started, and what is put into it.
#[derive(Debug, Args)]
pub struct Started {
    /// The braid program [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    braid_bin: Option<PathBuf>,
    /// Folder for the data, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Members of placement's group
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    placements: u8,
    /// Proxies
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    proxies: u8,
    /// A further flag of every store, as --store-flag=--memtable-bytes=8388608; may be repeated
    #[arg(long = "store-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub store_flags: Vec<String>,
    /// Seed of keys and values
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    pub output: Output,
}

impl Started {
    /// The program.
    pub fn binary(&self) -> anyhow::Result<Binary> {
        match &self.braid_bin {
            Some(path) => Binary::new(System::Braid, path),
            None => Binary::beside_this_program(),
        }
    }

    /// A folder for the data.
    pub fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        disk_folder(self.work_dir.as_deref())
    }

    /// Members of placement's group.
    pub fn placements(&self) -> usize {
        self.placements.into()
    }

    /// Proxies.
    pub fn proxies(&self) -> usize {
        self.proxies.into()
    }
}

/// A time that a flag gives in seconds.
pub fn seconds(flag: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{flag} {value}"))
}
