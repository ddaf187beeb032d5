//! Clusters under test: their processes, what is waited for, how they are asked.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use braid_loadtest::process::{Process, Spec, free_port};
use tempfile::TempDir;

use crate::clients::output;

/// How long a cluster may take to become what a test waits for. Debug builds on two busy cores are slow.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// The program under test.
pub fn braid() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BRAID_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    output(braid().args(args), b"")
}

/// Waits until `look` gives something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(LOOK);
    }
}

/// The right to run a cluster; one test at a time has it.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed with the turn in its hands has not harmed the next one.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loopback URL with a free port.
pub fn free_url() -> String {
    format!("http://127.0.0.1:{}", free_port().expect("a free port"))
}

/// What an HTTP/1.1 GET answers: status and body.
pub fn http_get(url: &str, path: &str) -> std::io::Result<(u16, String)> {
    let addr = url.strip_prefix("http://").expect("a URL of ours");
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    Ok((status, body))
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        body.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// `braid ARGS`; what it says goes to `NAME.log` in `dir`.
pub fn spec(dir: &Path, name: &str, args: Vec<String>) -> Spec {
    Spec {
        name: name.to_owned(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_braid")),
        args,
        env: Vec::new(),
        env_hidden_prefixes: vec!["BRAID_".to_owned()],
        log: dir.join(format!("{name}.log")),
    }
}

/// Fails if the process has ended by itself.
pub fn must_run(process: &mut Process) {
    if let Some(status) = process.ended().expect("it can be asked") {
        panic!("{} ended with {status}\n{}", process.spec().name, process.log_tail(40));
    }
}

/// Bytes that each store of a test may hold. Placement counts with them, so that how full this machine's disk is decides
/// nothing.
const QUOTA: &str = "1073741824";

/// Asks a process to stop and waits until it has.
pub fn stop(process: &mut Process) -> ExitStatus {
    process.terminate().expect("it can be signalled");
    process.wait(PATIENCE).expect("it stops")
}

/// A running cluster. Processes are killed and the folder removed when it goes out of scope.
pub struct Cluster {
    /// Its processes, by the role and number they were started with: `n1`, `store-2`, `proxy-1`.
    pub processes: Vec<Process>,
    /// Client URLs of its proxies.
    pub endpoints: Vec<String>,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    fn empty() -> Self {
        let turn = turn();
        let dir = tempfile::Builder::new().prefix("braid-cluster-").tempdir().expect("a temporary folder");
        Self { processes: Vec::new(), endpoints: Vec::new(), dir, _turn: turn }
    }

    /// `braid dev` with `flags`.
    pub fn dev(flags: &[&str]) -> Self {
        let mut cluster = Self::empty();
        let url = free_url();
        let mut args = texts(&["dev", "--log-level", "info", "--listen-client-urls", &url, "--data-dir"]);
        args.push(cluster.path("dev"));
        args.extend(texts(&["--quota-backend-bytes", QUOTA]));
        args.extend(texts(flags));
        cluster.spawn("dev", args);
        cluster.endpoints.push(url);
        cluster.wait_healthy();
        cluster
    }

    /// Three `braid server`, each with `flags`.
    pub fn servers(flags: &[&str]) -> Self {
        let mut cluster = Self::empty();
        let peers: Vec<String> = (0..3).map(|_| free_url()).collect();
        let all: Vec<String> = peers.iter().enumerate().map(|(i, url)| format!("n{}={url}", i + 1)).collect();
        for (i, peer) in peers.iter().enumerate() {
            let (name, client) = (format!("n{}", i + 1), free_url());
            let mut args = texts(&["server", "--name", &name, "--initial-cluster", &all.join(",")]);
            args.extend(texts(&["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]));
            args.extend(texts(&["--listen-client-urls", &client, "--advertise-client-urls", &client]));
            args.extend(["--data-dir".to_owned(), cluster.path(&name)]);
            args.extend(texts(&["--quota-backend-bytes", QUOTA]));
            args.extend(texts(flags));
            cluster.spawn(&name, args);
            cluster.endpoints.push(client);
        }
        cluster.wait_healthy();
        cluster
    }

    /// `placement` placement members, `stores` stores and `proxies` proxies, all processes of their own. `placement`
    /// and `store` get these flags more.
    pub fn split(members: usize, stores: usize, proxies: usize, placement: &[&str], store: &[&str]) -> Self {
        let mut cluster = Self::empty();
        let peers: Vec<String> = (0..members).map(|_| free_url()).collect();
        let all: Vec<String> = peers.iter().enumerate().map(|(i, url)| format!("placement-{}={url}", i + 1)).collect();
        for (i, peer) in peers.iter().enumerate() {
            let name = format!("placement-{}", i + 1);
            let mut args = texts(&["placement", "--name", &name, "--initial-cluster", &all.join(",")]);
            args.extend(texts(&["--listen-peer-urls", peer]));
            args.extend(["--data-dir".to_owned(), cluster.path(&name)]);
            args.extend(texts(placement));
            cluster.spawn(&name, args);
        }
        for i in 1..=stores {
            let name = format!("store-{i}");
            let mut args = texts(&["store", "--name", &name, "--placement-endpoints", &peers.join(",")]);
            args.extend(texts(&["--listen-peer-urls", &free_url()]));
            args.extend(["--data-dir".to_owned(), cluster.path(&name)]);
            args.extend(texts(&["--quota-backend-bytes", QUOTA]));
            args.extend(texts(store));
            cluster.spawn(&name, args);
        }
        for i in 1..=proxies {
            let (name, client) = (format!("proxy-{i}"), free_url());
            let mut args = texts(&["proxy", "--name", &name, "--placement-endpoints", &peers.join(",")]);
            args.extend(texts(&["--listen-client-urls", &client]));
            cluster.spawn(&name, args);
            cluster.endpoints.push(client);
        }
        cluster.wait_healthy();
        cluster
    }

    fn spawn(&mut self, name: &str, args: Vec<String>) {
        let process = Process::start(spec(self.dir.path(), name, args)).expect("the program starts");
        self.processes.push(process);
    }

    /// A path in the cluster's folder.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The process started as `name`.
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes.iter_mut().find(|process| process.spec().name == name).expect("a process of that name")
    }

    /// The name of the placement process that leads.
    pub fn placement_leader(&self) -> String {
        wait_for("placement to have a leader", || {
            let leader = self.admin(&["status"])["placement_leader"].as_str()?.to_owned();
            let names = self.processes.iter().map(|process| process.spec().name.clone());
            let mut members = names.filter(|name| name.starts_with("placement-"));
            members.find(|name| {
                let identity = Path::new(&self.path(name)).join("identity.toml");
                std::fs::read_to_string(identity).is_ok_and(|identity| identity.contains(&leader))
            })
        })
    }

    /// Where a process with a peer port serves its metrics.
    pub fn metrics_of(&mut self, name: &str) -> String {
        let args = self.process(name).spec().args.clone();
        let at = args.iter().position(|arg| arg == "--listen-peer-urls").expect("a process with a peer port");
        args[at + 1].clone()
    }

    /// Waits until every endpoint says that it is healthy.
    pub fn wait_healthy(&mut self) {
        for endpoint in self.endpoints.clone() {
            wait_for(&format!("{endpoint} to be healthy"), || {
                self.processes.iter_mut().for_each(must_run);
                let (status, body) = http_get(&endpoint, "/health").ok()?;
                (status == 200 && body.contains("\"health\":\"true\"")).then_some(())
            });
        }
    }

    /// What `braid admin ARGS --output json` answers.
    pub fn admin(&self, args: &[&str]) -> serde_json::Value {
        let output = self.admin_output(&[args, &["--output", "json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "braid admin {args:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("the answer is JSON")
    }

    /// The one line with which `braid admin ARGS` refuses, without its `braid: `.
    pub fn admin_refuses(&self, args: &[&str]) -> String {
        let (progress, refusal) = self.admin_gives_up(args);
        assert!(progress.is_empty(), "braid admin {args:?}: {progress}");
        refusal
    }

    /// Lines of progress of `braid admin ARGS`, and the last one, with which it gives up.
    pub fn admin_gives_up(&self, args: &[&str]) -> (String, String) {
        let output = self.admin_output(args);
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(1), "braid admin {args:?}: {said}");
        let (progress, refusal) = said.rsplit_once('\n').unwrap_or(("", &said));
        let refusal = refusal.strip_prefix("braid: ").expect("refusals start with the program's name");
        (progress.to_owned(), refusal.to_owned())
    }

    /// How `braid admin ARGS` ends.
    pub fn admin_output(&self, args: &[&str]) -> Output {
        run(&[&["admin", "--endpoints", &self.endpoints.join(",")], args].concat())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.iter().for_each(|process| eprintln!("---- {}", process.log_tail(40)));
        }
    }
}

/// Borrowed words as owned ones.
pub fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
