//! The keys of the `kubernetes` workload, named as API servers name them, and how the pods come to be there.

use braid_proto::etcd::etcdserverpb::RangeRequest;
use bytes::Bytes;
use indicatif::ProgressBar;

use super::STAMP_BYTES;
use crate::client::{prefix_end, range};
use crate::keys::KeySpace;
use crate::loader::{Loaded, Loader};
use crate::random::Random;
use crate::session::Pool;

/// Prefix of the pods.
pub const PODS: &str = "/registry/pods/";
/// Prefix of the nodes' lease objects.
pub const NODE_LEASES: &str = "/registry/leases/";
/// Prefix of the events.
pub const EVENTS: &str = "/registry/events/";
/// Where API servers agree on who compacts.
pub const COMPACT_KEY: &str = "compact_rev_key";

/// Pods of one namespace.
const NAMESPACE_PODS: u64 = 200;

/// Key of a pod.
pub fn pod_key(number: u64) -> Bytes {
    format!("{PODS}team-{:06}/pod-{number:010}", number / NAMESPACE_PODS).into()
}

/// Key of the lease object of one of a worker's nodes.
pub fn node_key(worker: usize, node: u64) -> Bytes {
    format!("{NODE_LEASES}kube-node-lease/node-{worker:05}-{node:03}").into()
}

/// Key of an event. The id of its etcd lease makes it different from those of other runs.
pub fn event_key(lease: i64, worker: usize, number: u64) -> Bytes {
    let namespace = (worker as u64).wrapping_mul(31).wrapping_add(number) % 100;
    format!("{EVENTS}team-{namespace:06}/pod-{worker:05}.{lease:x}.{number:08}").into()
}

/// Puts as many pods as there are keys, with values of the same size, unless there are as many already.
pub async fn fill(
    keys: &KeySpace,
    pool: &Pool,
    loader: &Loader,
    seed: u64,
    bar: &ProgressBar,
) -> anyhow::Result<Option<Loaded>> {
    let pods = range(PODS, prefix_end(PODS.as_bytes()));
    let there = pool.session(0).call(RangeRequest { count_only: true, ..pods }).await?;
    if there.count >= keys.count.cast_signed() {
        return Ok(None);
    }
    let value_bytes = keys.value_bytes.max(STAMP_BYTES);
    let entry = move |number| (pod_key(number), Random::new(seed, number).bytes(value_bytes).into());
    loader.load(keys.count, entry, bar).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_in_order_of_their_numbers() {
        assert_eq!(pod_key(401)[..], b"/registry/pods/team-000002/pod-0000000401"[..]);
        assert!((1..1_000).all(|number| pod_key(number - 1) < pod_key(number)));
    }

    #[test]
    fn no_two_workers_share_a_node_or_an_event() {
        assert_ne!(node_key(1, 11), node_key(11, 1));
        assert_ne!(event_key(5, 1, 2), event_key(6, 1, 2));
        assert!(event_key(5, 1, 2).starts_with(EVENTS.as_bytes()));
    }
}
