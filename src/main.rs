//! The one binary: reads the command line, starts what it names, and ends every failure as one line and an exit code.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use args::{Cli, Command};

mod admin;
mod args;
mod bootstrap;
mod cluster;
mod folder;
mod hash;
mod key_text;
mod late;
mod listen;
mod logging;
mod memory;
mod metrics;
mod roles;
mod stop;
mod threads;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::keep_small();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit.report(),
    };
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("braid: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads::for_requests(&cli.command, cores))
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        tokio::spawn(memory::give_back());
        match cli.command {
            Command::Version => {
                println!("braid {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            Command::Admin(args) => return admin::run(args).await,
            Command::Dev(args) => roles::dev::run(args).await,
            Command::Server(args) => roles::server::run(args).await,
            Command::Placement(args) => roles::placement::run(args).await,
            Command::Store(args) => roles::store::run(args).await,
            Command::Proxy(args) => roles::proxy::run(args).await,
        }
        .map(|()| ExitCode::SUCCESS)
    })
}
