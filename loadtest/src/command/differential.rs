//! `loadtest differential`: random programs against a server and the model of etcd's semantics.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;

use super::Endpoints;
use crate::client::Address;
use crate::differential::generate::{Shape, universe};
use crate::differential::program::Place;
use crate::differential::server::Server;
use crate::differential::session::{Limits, Session};
use crate::differential::split::Splitter;
use crate::differential::{PREFIX, Plan, run};
use crate::model::Dialect;
use crate::progress;

/// Flags of `differential`. Nobody else may write to the servers meanwhile.
#[derive(Debug, Args)]
pub struct Differential {
    #[command(flatten)]
    endpoints: Endpoints,
    /// Endpoints of a second server that gets the same programs
    #[arg(long, value_name = "URL,..", value_delimiter = ',')]
    against: Vec<Address>,
    /// What --endpoints are
    #[arg(long, value_name = "KIND", default_value = "braid")]
    dialect: Dialect,
    /// What --against are
    #[arg(long, value_name = "KIND", default_value = "etcd")]
    against_dialect: Dialect,
    /// Names the programs [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Number of the first program
    #[arg(long, value_name = "N", default_value_t = 0)]
    first_program: u64,
    /// Requests, counted once for all servers; the program that reaches it is run to its end
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    operations: u64,
    /// Random requests in a program
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    program_length: u16,
    /// Use the whole store instead of keys that begin with "differential/"; it must be empty
    #[arg(long)]
    whole_store: bool,
    /// Never compact: history that others may need stays
    #[arg(long)]
    no_compactions: bool,
    /// Never wait until compacted history is gone from the disk
    #[arg(long)]
    no_physical: bool,
    /// Never read serializably
    #[arg(long)]
    no_serializable: bool,
    /// Splits of --endpoints' regions at random moments
    #[arg(long, value_name = "N", default_value_t = 0)]
    splits: u64,
}

impl Differential {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let seed = match self.seed {
            Some(seed) => seed,
            None => SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs(),
        };
        println!("seed {seed}");
        let limits =
            Limits { prefix: if self.whole_store { Bytes::new() } else { PREFIX }, compactions: !self.no_compactions };
        let mut servers = vec![(self.dialect, &self.endpoints.endpoints)];
        if !self.against.is_empty() {
            servers.push((self.against_dialect, &self.against));
        }
        let dialects: Vec<_> = servers.iter().map(|&(dialect, _)| dialect).collect();
        let mut sessions = Vec::new();
        for (dialect, endpoints) in servers {
            let name = endpoints[0].to_string();
            let session = Session::open(&name, Server::connect(endpoints).await?, dialect, limits.clone()).await?;
            if !session.has_leases() {
                println!("{name} knows no leases: no key is attached to one");
            }
            sessions.push(session);
        }
        if self.splits > 0 {
            let splitter = self.splitter(seed, &limits.prefix).await?;
            sessions[0].target().split_with(splitter);
        }
        let plan = Plan {
            seed,
            first: self.first_program,
            requests: self.operations,
            shape: Shape {
                length: self.program_length.into(),
                dialect: self.dialect,
                unknown_sorts: dialects.iter().all(|&dialect| dialect == Dialect::Braid),
                leases: sessions.iter().all(Session::has_leases),
                compactions: limits.compactions,
                physical: !self.no_physical,
                serializable: !self.no_serializable,
            },
        };
        let bar = progress::counting("requests", self.operations);
        let outcome = run(&plan, &mut sessions, |requests| bar.set_position(requests)).await?;
        bar.finish_and_clear();
        if let Some(splitter) = sessions[0].target().take_splitter() {
            let splits = splitter.finish().await?;
            println!("{} regions split, {} splits refused ({:?})", splits.done, splits.refused, splits.last_refusal);
        }
        match outcome {
            Ok(agreement) => {
                println!("{} requests in {} programs: no difference", agreement.requests, agreement.programs);
                let stale: u64 = sessions.iter().map(Session::stale).sum();
                if stale > 0 {
                    println!("{stale} serializable answers were older than their program and not compared");
                }
            }
            Err(failure) => {
                println!("{failure}");
                ensure!(false, "a difference; repeat it with --seed {seed} --first-program {}", failure.number);
            }
        }
        Ok(())
    }

    async fn splitter(&self, seed: u64, prefix: &Bytes) -> anyhow::Result<Splitter> {
        let place = Place { base: 0, prefix: prefix.clone(), filters_max: i64::MAX };
        let keys = universe().iter().map(|key| place.key(key)).collect();
        Splitter::start(&self.endpoints.endpoints[0], seed, self.splits, self.operations, keys).await
    }
}
