//! `loadtest k8s-verify`: reads the whole data set back and compares it.

use clap::Args;

use super::{Endpoints, Output, mebibytes};
use crate::dataset::Dataset;
use crate::progress;
use crate::session::{Policy, Pool};
use crate::verify::{Expected, Verified, verify};

/// Flags of `k8s-verify`.
#[derive(Debug, Args)]
pub struct K8sVerify {
    #[command(flatten)]
    endpoints: Endpoints,
    /// How many objects were loaded
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    keys: u32,
    /// Seed of the data set
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Version that was loaded
    #[arg(long, value_name = "N", default_value_t = 1)]
    version: u64,
    /// Keys in one page
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(i64).range(1..))]
    page: i64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl K8sVerify {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let expected = Expected::new(Dataset::new(self.seed), self.keys.into(), self.version);
        let pool = Pool::new(&self.endpoints.endpoints, 1, Policy::default());
        let bar = progress::counting("verifying", self.keys.into());
        let verified = verify(&mut pool.session(0), &expected, self.page, &bar).await?;
        bar.finish_and_clear();
        self.output.print(&verified, print)?;
        anyhow::ensure!(verified.problems == 0, "{} problems", verified.problems);
        Ok(())
    }
}

fn print(verified: &Verified) {
    let Verified { keys, bytes, pages, revision, problems, first_problems } = verified;
    println!("{keys} keys, {:.1} MiB, read in {pages} pages at revision {revision}", mebibytes(*bytes));
    for problem in first_problems {
        println!("WRONG: {problem}");
    }
    match problems - first_problems.len() as u64 {
        0 if *problems == 0 => println!("everything is as it was loaded"),
        0 => {}
        more => println!("and {more} more"),
    }
}
