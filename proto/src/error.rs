//! etcd's errors: exact codes and texts, as clients match them by text (`etcd-semantics` section 3).

use tonic::{Code, Status};

use crate::pb::EtcdError;

/// One row of etcd's error table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdStatus {
    /// gRPC code on the wire.
    pub code: Code,
    /// The whole text, prefix included.
    pub message: &'static str,
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident $text:literal;)*) => {
        $($(#[$doc])* pub const $name: EtcdStatus =
            EtcdStatus { code: Code::$code, message: concat!("etcdserver: ", $text) };)*
    };
}

errors! {
    /// A key is empty where one is needed.
    EMPTY_KEY = InvalidArgument "key is not provided";
    /// `ignore_value` or `ignore_lease` on an absent key; an empty operation of a transaction.
    KEY_NOT_FOUND = InvalidArgument "key not found";
    /// `ignore_value` with a value.
    VALUE_PROVIDED = InvalidArgument "value is provided";
    /// `ignore_lease` with a lease.
    LEASE_PROVIDED = InvalidArgument "lease is provided";
    /// More compares or operations than `--max-txn-ops`.
    TOO_MANY_OPS = InvalidArgument "too many operations in txn request";
    /// Two operations of one branch change the same key.
    DUPLICATE_KEY = InvalidArgument "duplicate key given in txn request";
    /// A sort order or target that does not exist.
    INVALID_SORT_OPTION = InvalidArgument "invalid sort option";
    /// The revision asked for is below the compaction boundary.
    COMPACTED = OutOfRange "mvcc: required revision has been compacted";
    /// The revision asked for has not happened yet.
    FUTURE_REVISION = OutOfRange "mvcc: required revision is a future revision";
    /// The quota or the disk is used up.
    NO_SPACE = ResourceExhausted "mvcc: database space exceeded";
    /// The lease of a put does not exist.
    LEASE_NOT_FOUND = NotFound "requested lease not found";
    /// The lease id of a grant is in use.
    LEASE_EXISTS = FailedPrecondition "lease already exists";
    /// More than 9,000,000,000 seconds.
    LEASE_TTL_TOO_LARGE = OutOfRange "too large lease TTL";
    /// Larger than `--max-request-bytes`.
    REQUEST_TOO_LARGE = InvalidArgument "request is too large";
    /// Too much is in flight already.
    TOO_MANY_REQUESTS = ResourceExhausted "too many requests";
    /// A region or placement has no leader.
    NO_LEADER = Unavailable "no leader";
    /// Leadership moved while the request was under way.
    LEADER_CHANGED = Unavailable "leader changed";
    /// The process is stopping.
    STOPPED = Unavailable "server stopped";
    /// Not answered in time.
    TIMEOUT = Unavailable "request timed out";
    /// Not answered in time, leadership moved meanwhile: the outcome of a write is unknown.
    TIMEOUT_LEADER_FAIL = Unavailable "request timed out, possibly due to previous leader failure";
    /// Not answered in time, a connection broke meanwhile: the outcome of a write is unknown.
    TIMEOUT_CONNECTION_LOST = Unavailable "request timed out, possibly due to connection lost";
    /// A replica's data is damaged.
    CORRUPT = DataLoss "corrupt cluster";
    /// A member id that nobody has.
    MEMBER_NOT_FOUND = NotFound "member not found";
    /// Authentication is off.
    AUTH_NOT_ENABLED = FailedPrecondition "authentication is not enabled";
}

impl From<EtcdStatus> for Status {
    fn from(error: EtcdStatus) -> Status {
        Status::new(error.code, error.message)
    }
}

impl From<EtcdStatus> for EtcdError {
    fn from(error: EtcdStatus) -> EtcdError {
        EtcdError { code: error.code as i32, message: error.message.to_owned() }
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Status {
        Status::new(Code::from(error.code), error.message)
    }
}
