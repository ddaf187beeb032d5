//! The flags of `braid admin store`.

use std::str::FromStr;

use clap::Subcommand;

use super::{Wait, Yes};
use crate::args::types::Id;

/// `braid admin store`.
#[derive(Subcommand, Clone, Debug)]
pub enum StoreCommand {
    /// Lists the stores
    List,
    /// Shows everything that is known of a store
    Show {
        /// The store, as `store list` prints it
        id: Id<'s'>,
    },
    /// Sets labels of a store, over those that it starts with
    Label {
        /// The store, as `store list` prints it
        id: Id<'s'>,
        /// Labels to set; NAME= takes one away
        #[arg(required = true, value_name = "NAME=VALUE")]
        labels: Vec<LabelChange>,
    },
    /// Sets how much a store shall hold relative to the others
    Weight {
        /// The store, as `store list` prints it
        id: Id<'s'>,
        /// 1 is what every store begins with; 2: twice as much as those
        weight: f64,
    },
    /// Empties a store: its leaders move away, then its replicas
    Drain {
        /// The store, as `store list` prints it
        id: Id<'s'>,
        /// Stop emptying it: it may be given replicas again
        #[arg(long, conflicts_with_all = ["wait", "yes"])]
        stop: bool,
        /// Stay until it is empty.
        #[command(flatten)]
        wait: Wait,
        /// Do not ask.
        #[command(flatten)]
        yes: Yes,
    },
    /// Gives a store up for good: its replicas are rebuilt elsewhere, and it is refused from now on
    Remove {
        /// The store, as `store list` prints it
        id: Id<'s'>,
        /// Even if regions lose their last replicas that are well: data that only this store has is lost
        #[arg(long)]
        force: bool,
        /// Do not ask.
        #[command(flatten)]
        yes: Yes,
    },
}

/// `name=value`, or `name=` to take the label away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelChange {
    /// Left of the `=`.
    pub name: String,
    /// Right of it; may be empty.
    pub value: String,
}

/// Why a text is no change of a label.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} must be NAME=VALUE, for example zone=a, or NAME= to take a label away")]
pub struct LabelChangeError(String);

impl FromStr for LabelChange {
    type Err = LabelChangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self { name: name.to_owned(), value: value.to_owned() }),
            _ => Err(LabelChangeError(text.to_owned())),
        }
    }
}
