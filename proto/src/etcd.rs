//! etcd's v3 API, generated from `proto/etcd/*.proto`: the messages, a client and a server for every service.
//!
//! Module names are etcd's wire packages, because RPC paths (`/etcdserverpb.KV/Range`) are made of them. What the fields
//! mean is said in the proto files. prost spells etcd's `peerURLs` and `clientURLs` as `peer_ur_ls` and `client_ur_ls`;
//! the names in the proto files stay etcd's, since the JSON gateway and reflection show them to users.

/// Keys, values and events.
#[allow(missing_docs, clippy::all, reason = "generated from proto/etcd/kv.proto, where the docs are")]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
#[allow(missing_docs, clippy::all, reason = "generated from proto/etcd/auth.proto, where the docs are")]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// The services KV, Watch, Lease, Cluster, Maintenance and Auth.
#[allow(missing_docs, clippy::all, reason = "generated from proto/etcd/rpc.proto, where the docs are")]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// The lock recipe as a service.
#[allow(missing_docs, clippy::all, reason = "generated from proto/etcd/lock.proto, where the docs are")]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// The election recipe as a service.
#[allow(missing_docs, clippy::all, reason = "generated from proto/etcd/election.proto, where the docs are")]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// All of etcd's proto files as one encoded `google.protobuf.FileDescriptorSet`, for reflection and for tests that
/// compare the API with etcd's.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("etcd_descriptors");
