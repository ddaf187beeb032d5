//! The programs of `docs/examples`, run as they are against a cluster of eight regions.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::clients::Running;
use crate::etcdctl::{Etcdctl, program};
use crate::harness::Cluster;
use crate::kill::wait_whole;

/// Where cargo puts the examples of this package: beside the program.
fn example(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_braid")).with_file_name("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: cargo builds it with all tests, or `cargo build --examples`",
        path.display()
    );
    path
}

fn run(cluster: &Cluster, name: &str, args: &[&str]) -> Running {
    Running::start(pointed_at(cluster, Command::new(example(name)).args(args)))
}

fn pointed_at<'a>(cluster: &Cluster, command: &'a mut Command) -> &'a mut Command {
    command.env("ENDPOINTS", cluster.endpoints.join(","))
}

#[test]
fn the_examples_do_what_they_say() {
    let cluster = Cluster::dev(&["--stores", "3", "--regions", "8"]);
    wait_whole(&cluster, 8);
    discovery(&cluster);
    lock(&cluster);
    election(&cluster);
    queue(&cluster);
    recipes(&cluster);
    let left = Etcdctl::of(&cluster).lines(&["get", "", "--from-key"]);
    assert_eq!(left, ["counter", "15"], "the leases took everything else");
}

fn discovery(cluster: &Cluster) {
    let run = |args: &[&str]| run(cluster, "discovery", args);
    let first = run(&["serve", "web", "10.0.0.1:80"]);
    first.says("web: 10.0.0.1:80 is registered");
    let watch = run(&["watch", "web"]);
    watch.says("+ 10.0.0.1:80");
    watch.says("1 known");
    let second = run(&["serve", "web", "10.0.0.2:80"]);
    second.says("web: 10.0.0.2:80 is registered");
    watch.says("+ 10.0.0.2:80");
    watch.is_silent();
    assert_eq!(first.interrupt().rest(), ["web: 10.0.0.1:80 is gone"]);
    watch.says("- 10.0.0.1:80");
    second.kill();
    watch.says("- 10.0.0.2:80");
}

fn lock(cluster: &Cluster) {
    let all: Vec<Running> = (0..3).map(|_| run(cluster, "lock", &["counter", "5"])).collect();
    let said: BTreeSet<String> = all.into_iter().flat_map(Running::rest).collect();
    assert_eq!(said, (1..=15).map(|count| format!("counter is {count}")).collect());
}

fn election(cluster: &Cluster) {
    let run = |args: &[&str]| run(cluster, "election", args);
    let observer = run(&["observe", "shop"]);
    observer.says("observing shop");
    let candidates: Vec<Running> = ["alice", "bob", "carol"]
        .into_iter()
        .enumerate()
        .map(|(place, name)| {
            let candidate = run(&["run", "shop", name]);
            candidate.says(&format!("{name} is a candidate"));
            match place {
                0 => candidate.says("alice leads"),
                // The next one comes when this one is in the queue.
                _ => wait_for_keys(cluster, "shop/", place + 1),
            }
            candidate
        })
        .collect();
    observer.says("leader: alice");
    let [alice, bob, carol]: [Running; 3] = candidates.try_into().ok().expect("three");
    bob.is_silent();
    assert_eq!(alice.interrupt().rest(), ["alice has resigned"]);
    bob.says("bob leads");
    observer.says("leader: bob");
    carol.is_silent();
    bob.kill();
    carol.says("carol leads");
    observer.says("leader: carol");
    assert_eq!(carol.interrupt().rest(), ["carol has resigned"]);
}

fn wait_for_keys(cluster: &Cluster, prefix: &str, count: usize) {
    let etcdctl = Etcdctl::of(cluster);
    crate::harness::wait_for(&format!("{count} keys under {prefix}"), || {
        let found = etcdctl.json(&["get", "--prefix", prefix, "--keys-only"])["count"].as_u64()?;
        (found == count as u64).then_some(())
    });
}

fn queue(cluster: &Cluster) {
    let run = |args: &[&str]| run(cluster, "queue", args);
    let jobs: Vec<String> = (0..12).map(|number| format!("job-{number}")).collect();
    let mut add = vec!["add"];
    add.extend(jobs.iter().map(String::as_str));
    assert_eq!(run(&add).rest(), [""; 0]);
    // One worker dies over the first job; two do the others, in order, and then its one.
    let dead = run(&["take", "mallory"]);
    dead.says("mallory has taken job-0");
    let workers: Vec<Running> = ["alice", "bob"].map(|name| run(&["work", name])).into();
    wait_for_keys(cluster, "queue/jobs/", 1);
    dead.kill();
    let mut done: Vec<u32> = Vec::new();
    for (worker, name) in workers.into_iter().zip(["alice", "bob"]) {
        let said = worker.rest();
        let start = format!("{name} has done job-");
        let numbers = said.iter().map(|line| line.strip_prefix(&start).and_then(|number| number.parse::<u32>().ok()));
        let mut numbers: Vec<u32> = numbers.collect::<Option<_>>().unwrap_or_else(|| panic!("{said:?}"));
        done.extend(&numbers);
        numbers.retain(|number| *number != 0);
        assert!(numbers.is_sorted(), "{said:?}");
    }
    done.sort_unstable();
    assert_eq!(done, (0..12).collect::<Vec<_>>(), "every job once");
}

fn recipes(cluster: &Cluster) {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/recipes.sh"));
    script.env("ETCDCTL", program());
    let mut said = Running::start(pointed_at(cluster, &mut script)).rest();
    said[6..].sort();
    assert_eq!(
        said,
        [
            "# service discovery: an instance is a key with a lease, and whoever keeps the lease alive is there",
            "known: services/api/10.0.0.1:80",
            "nobody keeps it alive any more",
            "gone: services/api/10.0.0.1:80",
            "known: ",
            "# a lock: three at once, one after the other",
            "one was alone",
            "three was alone",
            "two was alone",
        ]
    );
}
