//! Counts finished gRPC calls by service, method and code, under the name that etcd's dashboards know.
//!
//! Counters are looked up once and kept: a call costs two array accesses and an atomic addition. Calls of unknown
//! methods share one counter, so that nobody can fill the memory by inventing names.

use std::collections::HashMap;
use std::sync::OnceLock;

use metrics::Counter;
use tonic::Code;

/// Name of the metric.
const NAME: &str = "grpc_server_handled_total";
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
    ("braid.Admin", &["StoreList", "RegionList", "RegionSplit", "RegionTransferLeader", "Status"]),
];

/// The counters.
pub struct Handled {
    methods: HashMap<String, Method>,
    unknown: Method,
}

/// The counters of one method.
pub struct Method {
    service: &'static str,
    name: &'static str,
    codes: [OnceLock<Counter>; CODES],
}

impl Handled {
    /// Counters that have counted nothing.
    pub fn new() -> Self {
        let all = METHODS.iter().flat_map(|(service, names)| names.iter().map(|name| (*service, *name)));
        let methods = all.map(|(service, name)| (format!("/{service}/{name}"), Method::new(service, name)));
        Self { methods: methods.collect(), unknown: Method::new("unknown", "unknown") }
    }

    /// The counters of the method at `path`.
    pub fn method(&self, path: &str) -> &Method {
        self.methods.get(path).unwrap_or(&self.unknown)
    }
}

impl Default for Handled {
    fn default() -> Self {
        Self::new()
    }
}

impl Method {
    fn new(service: &'static str, name: &'static str) -> Self {
        Self { service, name, codes: Default::default() }
    }

    /// Counts one call that ended with `code`.
    pub fn count(&self, code: Code) {
        let counter = self.codes[code as usize % CODES].get_or_init(|| {
            let (service, method) = (self.service, self.name);
            let code = format!("{code:?}");
            metrics::counter!(NAME, "grpc_service" => service, "grpc_method" => method, "grpc_code" => code)
        });
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_methods_and_shares_one_counter_for_the_rest() {
        let handled = Handled::new();
        assert_eq!(handled.method("/etcdserverpb.KV/Put").name, "Put");
        assert_eq!(handled.method("/etcdserverpb.KV/Invented").name, "unknown");
        assert_eq!(handled.method("/braid.Admin/RegionSplit").service, "braid.Admin");
    }
}
