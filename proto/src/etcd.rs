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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::etcdserverpb::{Compare, RangeRequest, WatchResponse};
    use super::{etcdserverpb, mvccpb, v3electionpb, v3lockpb};

    #[test]
    fn services_have_etcds_names() {
        assert_eq!(etcdserverpb::kv_server::SERVICE_NAME, "etcdserverpb.KV");
        assert_eq!(etcdserverpb::watch_server::SERVICE_NAME, "etcdserverpb.Watch");
        assert_eq!(etcdserverpb::lease_server::SERVICE_NAME, "etcdserverpb.Lease");
        assert_eq!(etcdserverpb::cluster_server::SERVICE_NAME, "etcdserverpb.Cluster");
        assert_eq!(etcdserverpb::maintenance_server::SERVICE_NAME, "etcdserverpb.Maintenance");
        assert_eq!(etcdserverpb::auth_server::SERVICE_NAME, "etcdserverpb.Auth");
        assert_eq!(v3lockpb::lock_server::SERVICE_NAME, "v3lockpb.Lock");
        assert_eq!(v3electionpb::election_server::SERVICE_NAME, "v3electionpb.Election");
    }

    /// The fields whose numbers do not follow their order.
    #[test]
    fn odd_field_numbers_are_on_the_wire() {
        let compare = Compare { range_end: Bytes::from_static(b"z"), ..Compare::default() };
        assert_eq!(compare.encode_to_vec(), [0x82, 0x04, 1, b'z']);
        let response = WatchResponse { events: vec![mvccpb::Event::default()], ..WatchResponse::default() };
        assert_eq!(response.encode_to_vec(), [11 << 3 | 2, 0]);
        let request = RangeRequest { max_create_revision: 5, ..RangeRequest::default() };
        assert_eq!(request.encode_to_vec(), [13 << 3, 5]);
    }

    #[test]
    fn the_descriptor_set_holds_all_five_files() {
        let set = String::from_utf8_lossy(super::FILE_DESCRIPTOR_SET);
        for file in ["etcd/kv.proto", "etcd/auth.proto", "etcd/rpc.proto", "etcd/lock.proto", "etcd/election.proto"] {
            assert!(set.contains(file), "{file} is missing");
        }
    }
}
