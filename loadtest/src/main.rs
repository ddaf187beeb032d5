//! The `loadtest` program: fills, measures and checks etcd v3 endpoints. See the library for what is behind each
//! subcommand.

use clap::Parser;

use braid_loadtest::command::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
