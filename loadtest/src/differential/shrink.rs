//! Makes a failing program small: leaves out requests, then parts of requests, as long as it still fails.

use super::program::Program;
use super::simplify::simpler;
use crate::model::Request;

/// Runs that a shrink may take.
pub const RUNS_MAX: usize = 3_000;

/// The smallest program found for which `fails` still holds, and how often it was asked.
///
/// # Errors
/// Those of `fails`.
pub async fn shrink<F>(program: Program, mut fails: F) -> anyhow::Result<(Program, usize)>
where
    F: AsyncFnMut(&Program) -> anyhow::Result<bool>,
{
    let mut search = Search { smallest: program.requests, runs: 0 };
    loop {
        let before = search.smallest.clone();
        search.leave_out(&mut fails).await?;
        search.simplify(&mut fails).await?;
        if search.smallest == before || search.runs >= RUNS_MAX {
            return Ok((Program { requests: search.smallest }, search.runs));
        }
    }
}

struct Search {
    smallest: Vec<Request>,
    runs: usize,
}

impl Search {
    /// Whether a candidate fails too; it is the smallest then.
    async fn accept<F>(&mut self, requests: Vec<Request>, fails: &mut F) -> anyhow::Result<bool>
    where
        F: AsyncFnMut(&Program) -> anyhow::Result<bool>,
    {
        if self.runs >= RUNS_MAX {
            return Ok(false);
        }
        self.runs += 1;
        let candidate = Program { requests };
        let fails = fails(&candidate).await?;
        if fails {
            self.smallest = candidate.requests;
        }
        Ok(fails)
    }

    /// Tries without half of the requests, then without each quarter, and so on.
    async fn leave_out<F>(&mut self, fails: &mut F) -> anyhow::Result<()>
    where
        F: AsyncFnMut(&Program) -> anyhow::Result<bool>,
    {
        let mut size = self.smallest.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < self.smallest.len() {
                let mut candidate = self.smallest.clone();
                candidate.drain(start..(start + size).min(candidate.len()));
                if !self.accept(candidate, fails).await? {
                    start += size;
                }
            }
            size /= 2;
        }
        Ok(())
    }

    async fn simplify<F>(&mut self, fails: &mut F) -> anyhow::Result<()>
    where
        F: AsyncFnMut(&Program) -> anyhow::Result<bool>,
    {
        let mut at = 0;
        while at < self.smallest.len() {
            let mut found = false;
            for request in simpler(&self.smallest[at]) {
                let mut candidate = self.smallest.clone();
                candidate[at] = request;
                if self.accept(candidate, fails).await? {
                    found = true;
                    break;
                }
            }
            at += usize::from(!found);
        }
        Ok(())
    }
}
