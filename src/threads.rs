//! How many threads serve requests.
//!
//! What holds data has threads beside them that are as busy when there are writes: raft and its log, apply, RocksDB. With a
//! thread for each core as well they take turns, and each turn costs: on two cores a get takes a quarter to a third less CPU with one
//! thread than with two (`docs/decisions/0012-request-threads.md`). So one core in four, at least one, is left to them.

use crate::args::Command;

/// Threads of the runtime for what `command` starts, on a machine with so many cores.
pub fn for_requests(command: &Command, cores: usize) -> usize {
    let (process, shares) = match command {
        Command::Dev(args) => (&args.process, true),
        Command::Server(args) => (&args.process, true),
        Command::Placement(args) => (&args.process, true),
        Command::Store(args) => (&args.process, true),
        Command::Proxy(args) => (&args.process, false),
        Command::Admin(_) | Command::Version => return 1,
    };
    let left = if shares { cores.div_ceil(4) } else { 0 };
    process.worker_threads.map_or(cores.saturating_sub(left).max(1), usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(line: &str, cores: usize) -> usize {
        let parsed = crate::args::parse(line.split(' ').map(Into::into));
        for_requests(&parsed.unwrap_or_else(|_| panic!("{line} is right")).command, cores)
    }

    #[test]
    fn what_holds_data_leaves_cores_to_its_other_threads() {
        for (cores, expect) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6), (64, 48)] {
            assert_eq!(threads("braid server", cores), expect, "{cores} cores");
        }
        assert_eq!(threads("braid proxy --placement-endpoints http://127.0.0.1:1", 8), 8);
    }

    #[test]
    fn the_flag_decides() {
        assert_eq!(threads("braid server --worker-threads 5", 2), 5);
        assert_eq!(threads("braid proxy --placement-endpoints http://127.0.0.1:1 --worker-threads 2", 8), 2);
        assert!(crate::args::parse("braid dev --worker-threads 0".split(' ').map(Into::into)).is_err());
    }
}
