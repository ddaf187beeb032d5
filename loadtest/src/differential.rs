//! Random programs against a server and against the model, answers compared field by field, revisions included.
//!
//! 1. `generate` makes program `n` of a seed: requests over a few keys, written for an empty store.
//! 2. `session` cleans its part of the store, takes the store's revision as the program's base, sends each request and
//!    asks the model for what it must be answered; `compare` finds the first field that differs.
//! 3. A program that fails is made small by `shrink`, which runs every candidate in the same way.
//!
//! Nobody else may write meanwhile: the model knows every revision that is given out. Requests are sent one at a time.
//! What concurrent clients may see is another tool's question.

use std::fmt;

use bytes::Bytes;

pub mod compare;
pub mod generate;
mod print;
pub mod program;
pub mod server;
pub mod session;
pub mod shrink;
mod simplify;
pub mod split;
pub mod target;

use compare::Difference;
use generate::Shape;
use program::Program;
use session::Session;
use target::Target;

/// Which programs to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Names all programs.
    pub seed: u64,
    /// Number of the first program.
    pub first: u64,
    /// Programs are run until so many requests are answered by every target.
    pub requests: u64,
    /// What programs look like.
    pub shape: Shape,
}

/// A run without a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Programs that were run.
    pub programs: u64,
    /// Requests that were answered by every target.
    pub requests: u64,
}

/// A program that a target answers in another way than the model.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The target.
    pub target: String,
    /// The seed.
    pub seed: u64,
    /// The program's number.
    pub number: u64,
    /// Requests up to the first difference of the program as it was made.
    pub requests: usize,
    /// That difference.
    pub difference: Difference,
    /// The smallest program that fails; none if the program did not fail again alone.
    pub smallest: Option<(Program, Difference)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, seed, number, requests, difference, .. } = self;
        writeln!(f, "{target} differs in program {number} of seed {seed}, request {requests}: {difference}")?;
        match &self.smallest {
            Some((program, difference)) => {
                writeln!(f, "The smallest program found, of {} requests:", program.requests.len())?;
                write!(f, "{program}")?;
                write!(f, "Its last answer differs: {difference}")
            }
            None => write!(f, "It did not fail when it was run again alone: what came before it may matter."),
        }
    }
}

/// Runs programs on every session until the plan is fulfilled or an answer differs. `progress` gets the requests so far.
///
/// # Errors
/// A target cannot be used at all.
pub async fn run<T: Target>(
    plan: &Plan,
    sessions: &mut [Session<T>],
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Result<Agreement, Box<Failure>>> {
    let mut agreement = Agreement { programs: 0, requests: 0 };
    while agreement.requests < plan.requests {
        let number = plan.first + agreement.programs;
        let program = generate::program(plan.seed, number, &plan.shape);
        for session in &mut *sessions {
            let outcome = session.run(&program).await?;
            if let Some(difference) = outcome.difference {
                let requests = outcome.requests;
                let smallest = smallest(session, program, requests).await?;
                let target = session.name.clone();
                let failure = Failure { target, seed: plan.seed, number, requests, difference, smallest };
                return Ok(Err(Box::new(failure)));
            }
        }
        agreement.programs += 1;
        agreement.requests += program.requests.len() as u64;
        progress(agreement.requests);
    }
    Ok(Ok(agreement))
}

/// Shrinks a program that failed at its `requests`th request.
async fn smallest<T: Target>(
    session: &mut Session<T>,
    mut program: Program,
    requests: usize,
) -> anyhow::Result<Option<(Program, Difference)>> {
    program.requests.truncate(requests);
    if session.run(&program).await?.difference.is_none() {
        return Ok(None);
    }
    let (mut smallest, _) =
        shrink::shrink(program, async |candidate| Ok(session.run(candidate).await?.difference.is_some())).await?;
    let outcome = session.run(&smallest).await?;
    smallest.requests.truncate(outcome.requests);
    Ok(outcome.difference.map(|difference| (smallest, difference)))
}

/// Prefix for keys of a run that shares its store with others.
pub const PREFIX: Bytes = Bytes::from_static(b"differential/");

#[cfg(test)]
mod tests;
