//! Counts gRPC calls by service, method and code, under the names that etcd's dashboards know. A call with a stream of
//! answers ends, for these counters, when its first answer begins.
//!
//! Counters are looked up once and kept: a call costs one map lookup and two atomic additions. Calls of unknown methods
//! share their counters, so that nobody can fill the memory by inventing names.

use std::collections::HashMap;
use std::sync::OnceLock;

use metrics::{Counter, Label};
use tonic::Code;

/// Calls that have begun.
const STARTED: &str = "grpc_server_started_total";
/// Calls that have ended.
const HANDLED: &str = "grpc_server_handled_total";
/// gRPC codes are 0 to 16.
const CODES: usize = 17;

/// Methods of the services on the client port.
const METHODS: [(&str, &[&str]); 9] = [
    ("etcdserverpb.KV", &["Range", "RangeStream", "Put", "DeleteRange", "Txn", "Compact"]),
    ("etcdserverpb.Watch", &["Watch"]),
    ("etcdserverpb.Lease", &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"]),
    ("etcdserverpb.Cluster", &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"]),
    (
        "etcdserverpb.Maintenance",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "Snapshot", "MoveLeader", "Downgrade"],
    ),
    (
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    ("v3lockpb.Lock", &["Lock", "Unlock"]),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Observe", "Resign"]),
    (
        "braid.Admin",
        &[
            "StoreList",
            "StoreSet",
            "StoreRemove",
            "RegionList",
            "RegionSplit",
            "RegionTransferLeader",
            "RegionPlan",
            "Scatter",
            "SchedulerList",
            "SchedulerSet",
            "OperatorList",
            "OperatorCancel",
            "Balance",
            "Health",
            "Status",
        ],
    ),
];

/// The counters.
pub struct Handled {
    methods: Vec<Method>,
    /// Positions in `methods`, by path.
    paths: HashMap<String, usize>,
}

/// Names the counters of one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodId(usize);

/// The method that stands for all unknown ones.
const UNKNOWN: MethodId = MethodId(0);

struct Method {
    service: &'static str,
    name: &'static str,
    started: OnceLock<Counter>,
    handled: [OnceLock<Counter>; CODES],
}

impl Handled {
    /// Counters that have counted nothing.
    pub fn new() -> Self {
        let mut methods = vec![Method::new("unknown", "unknown")];
        let mut paths = HashMap::new();
        for (service, names) in METHODS {
            for name in names {
                paths.insert(format!("/{service}/{name}"), methods.len());
                methods.push(Method::new(service, name));
            }
        }
        Self { methods, paths }
    }

    /// Counts a call of `path` that begins.
    pub fn start(&self, path: &str) -> MethodId {
        let id = self.paths.get(path).map_or(UNKNOWN, |position| MethodId(*position));
        let method = &self.methods[id.0];
        method.started.get_or_init(|| method.counter(STARTED, None)).increment(1);
        id
    }

    /// Counts a call that ended with `code`.
    pub fn end(&self, id: MethodId, code: Code) {
        let method = &self.methods[id.0];
        method.handled[code as usize % CODES].get_or_init(|| method.counter(HANDLED, Some(code))).increment(1);
    }
}

impl Default for Handled {
    fn default() -> Self {
        Self::new()
    }
}

impl Method {
    fn new(service: &'static str, name: &'static str) -> Self {
        Self { service, name, started: OnceLock::new(), handled: Default::default() }
    }

    fn counter(&self, metric: &'static str, code: Option<Code>) -> Counter {
        let kind = match self.name {
            "Watch" | "LeaseKeepAlive" => "bidi_stream",
            "RangeStream" | "Snapshot" | "Observe" => "server_stream",
            _ => "unary",
        };
        let (service, method) = (self.service, self.name);
        let labels = [("grpc_service", service), ("grpc_method", method), ("grpc_type", kind)];
        match code {
            None => metrics::counter!(metric, &labels),
            Some(code) => {
                let [service, method, kind] = labels.map(|(name, value)| Label::new(name, value));
                metrics::counter!(metric, vec![service, method, kind, Label::new("grpc_code", format!("{code:?}"))])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_methods_and_shares_one_counter_for_the_rest() {
        let handled = Handled::new();
        let name = |path| {
            let method = &handled.methods[handled.start(path).0];
            (method.service, method.name)
        };
        assert_eq!(name("/etcdserverpb.KV/Put"), ("etcdserverpb.KV", "Put"));
        assert_eq!(name("/braid.Admin/RegionSplit"), ("braid.Admin", "RegionSplit"));
        assert_eq!(name("/etcdserverpb.KV/Invented"), ("unknown", "unknown"));
    }
}
