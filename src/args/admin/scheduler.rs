//! The flags of `braid admin scheduler` and `braid admin operator`.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};

use super::Yes;
use crate::args::types::Id;

/// `braid admin scheduler`.
#[derive(Subcommand, Clone, Debug)]
pub enum SchedulerCommand {
    /// Lists the schedulers with what each does, or why it does nothing
    List,
    /// Keeps schedulers from beginning anything; what is under way goes on
    Pause {
        /// Schedulers as `scheduler list` prints them; "all" for all of them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Lets paused schedulers go on
    Resume {
        /// Schedulers as `scheduler list` prints them; "all" for all of them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Changes settings; NAME= sets the default again
    Set {
        /// Settings as `scheduler settings` prints them
        #[arg(required = true, value_name = "NAME=VALUE")]
        settings: Vec<SettingChange>,
    },
    /// Lists the settings with their defaults and what they are about
    Settings,
}

/// `braid admin operator`.
#[derive(Subcommand, Clone, Debug)]
pub enum OperatorCommand {
    /// Lists the operators: changes of regions that are under way
    List {
        /// Those that have ended lately, too
        #[arg(long)]
        ended: bool,
        /// Only those of this region
        #[arg(long, value_name = "ID")]
        region: Option<Id<'r'>>,
    },
    /// Ends operators where they stand
    Cancel(CancelArgs),
}

/// `braid admin operator cancel`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("which").required(true).args(["region", "all"]))]
pub struct CancelArgs {
    /// The region whose operator shall end
    #[arg(value_name = "REGION")]
    pub region: Option<Id<'r'>>,
    /// All operators
    #[arg(long)]
    pub all: bool,
    /// Do not ask.
    #[command(flatten)]
    pub yes: Yes,
}

/// `name=value`, or `name=` for the default again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingChange {
    /// Left of the first `=`.
    pub name: String,
    /// Right of it; may be empty.
    pub value: String,
}

/// Why a text is no change of a setting.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} must be NAME=VALUE, for example replicas=5, or NAME= for the default again")]
pub struct SettingChangeError(String);

impl FromStr for SettingChange {
    type Err = SettingChangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.trim().to_owned() })
            }
            _ => Err(SettingChangeError(text.to_owned())),
        }
    }
}
