//! An answer, printed for people and for programs.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::args::types::Output;

/// An answer that can be printed for people and for programs.
pub trait Answer: Serialize {
    /// What people see: lines, each with its end.
    fn text(&self) -> String;
}

/// Prints `answer` on stdout.
pub fn print<A: Answer>(output: Output, answer: &A) -> Result<()> {
    let text = match output {
        Output::Table => answer.text(),
        Output::Json => serde_json::to_string_pretty(answer).context("writing the answer as JSON")? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader (`head`, `grep -q`) has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing the answer"),
    }
}
