//! A data set shaped like the registry of a Kubernetes cluster: pods, events, leases, config maps and the other kinds
//! that fill one, at `/registry/<resource>/<namespace>/<name>`, values of 0.3 to 4 KiB.
//!
//! 1. Everything about item `i` follows from (seed, i), so that the loader needs no list and the verifier no copy.
//! 2. The kind is drawn by weight; namespaces are skewed (few large, many small); sizes lean to the small end of each
//!    kind's bounds.
//! 3. Names end in a scrambled form of `i`: keys never repeat, and neighbours in `i` are not neighbours in key order.
//! 4. Values are Kubernetes-like text (field names, images, uids), so that compression finds about what it finds there.
//!    The version of an item changes its value, never its key or its size class.

use bytes::{BufMut, Bytes, BytesMut};

use crate::random::Random;

mod text;

/// Every key of the data set starts with this.
pub const PREFIX: &str = "/registry/";

/// No value is shorter.
pub const VALUE_BYTES_MIN: usize = 308;
/// No value is longer.
pub const VALUE_BYTES_MAX: usize = 4096;

/// Items one data set can have: what seven letters of a name can tell apart.
pub const ITEMS_MAX: u64 = 27u64.pow(7);

/// One kind of object.
struct Kind {
    /// Its folder under `/registry/`.
    resource: &'static str,
    /// Its name inside the value.
    name: &'static str,
    /// Share of all objects, in thousandths.
    per_mille: u64,
    bytes_min: usize,
    bytes_max: usize,
    /// All objects of the kind live in this namespace.
    namespace: Option<&'static str>,
}

const KINDS: [Kind; 10] = [
    kind("events", "Event", 300, 420, 1_400),
    kind("pods", "Pod", 280, 1_100, VALUE_BYTES_MAX),
    kind("replicasets", "ReplicaSet", 90, 900, 3_000),
    kind("configmaps", "ConfigMap", 80, 320, VALUE_BYTES_MAX),
    kind("endpointslices", "EndpointSlice", 60, 500, 2_200),
    kind("secrets", "Secret", 60, 400, VALUE_BYTES_MAX),
    Kind { namespace: Some("kube-node-lease"), ..kind("leases", "Lease", 40, VALUE_BYTES_MIN, 460) },
    kind("deployments", "Deployment", 30, 1_000, 3_500),
    kind("services", "Service", 30, 450, 1_500),
    kind("serviceaccounts", "ServiceAccount", 30, VALUE_BYTES_MIN, 600),
];

const fn kind(resource: &'static str, name: &'static str, per_mille: u64, bytes_min: usize, bytes_max: usize) -> Kind {
    Kind { resource, name, per_mille, bytes_min, bytes_max, namespace: None }
}

const NAMESPACES: u64 = 400;

/// The data set of one seed. Items count from 0.
#[derive(Debug, Clone, Copy)]
pub struct Dataset {
    seed: u64,
}

impl Dataset {
    /// The data set of this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Key of one item.
    ///
    /// # Panics
    /// If the index is not below `ITEMS_MAX`.
    pub fn key_of(&self, index: u64) -> Bytes {
        let mut key = BytesMut::with_capacity(128);
        Object::new(self.seed, index).write_key(&mut key);
        key.freeze()
    }

    /// Value of one item after `version` puts of it (1 is the first).
    ///
    /// # Panics
    /// If the index is not below `ITEMS_MAX`.
    pub fn value_of(&self, index: u64, version: u64) -> Bytes {
        Object::new(self.seed, index).value(self.seed, version)
    }
}

/// What both the key and the value of an item are made of.
struct Object {
    kind: &'static Kind,
    index: u64,
    namespace: Namespace,
    app: [&'static str; 2],
    hash: u64,
    value_bytes: usize,
}

enum Namespace {
    Fixed(&'static str),
    Team(u64),
}

impl Object {
    fn new(seed: u64, index: u64) -> Self {
        assert!(index < ITEMS_MAX, "item {index} of a data set that ends at {ITEMS_MAX}");
        let mut random = Random::new(seed, index);
        let kind = draw_kind(random.below(1_000));
        let namespace = match kind.namespace {
            Some(name) => Namespace::Fixed(name),
            // The smaller of two draws: the first namespaces get the most.
            None => Namespace::Team(random.below(NAMESPACES).min(random.below(NAMESPACES))),
        };
        let app = [random.choose(&text::APPS), random.choose(&text::ROLES)];
        let spread = (kind.bytes_max - kind.bytes_min) as f64;
        let value_bytes = kind.bytes_min + (spread * random.unit().powi(2)).round() as usize;
        Self { kind, index, namespace, app, hash: random.draw(), value_bytes }
    }

    fn write_key(&self, out: &mut BytesMut) {
        out.put_slice(PREFIX.as_bytes());
        out.put_slice(self.kind.resource.as_bytes());
        out.put_u8(b'/');
        self.write_namespace(out);
        out.put_u8(b'/');
        self.write_name(out);
    }

    fn write_namespace(&self, out: &mut BytesMut) {
        match self.namespace {
            Namespace::Fixed(name) => out.put_slice(name.as_bytes()),
            Namespace::Team(number) => {
                out.put_slice(b"team-");
                text::put_decimal(out, number, 3);
            }
        }
    }

    /// `<app>-<role>-<hash>-<item>`, as a replica set names its pods.
    fn write_name(&self, out: &mut BytesMut) {
        for part in self.app {
            out.put_slice(part.as_bytes());
            out.put_u8(b'-');
        }
        text::put_letters(out, self.hash % 27u64.pow(6), 6);
        out.put_u8(b'-');
        text::put_letters(out, scramble(self.index), 7);
    }

    fn value(&self, seed: u64, version: u64) -> Bytes {
        let mut random = Random::new(seed ^ self.hash, version);
        let mut out = BytesMut::with_capacity(self.value_bytes + text::SLACK_BYTES);
        out.put_slice(b"k8s\0{\"kind\":\"");
        out.put_slice(self.kind.name.as_bytes());
        out.put_slice(b"\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"");
        self.write_name(&mut out);
        out.put_slice(b"\",\"namespace\":\"");
        self.write_namespace(&mut out);
        out.put_slice(b"\",\"uid\":\"");
        text::put_hex(&mut out, self.hash, 16);
        out.put_slice(b"\",\"generation\":");
        text::put_decimal(&mut out, version, 1);
        out.put_slice(b",\"labels\":{\"app\":\"");
        out.put_slice(self.app[0].as_bytes());
        out.put_slice(b"\"}},\"spec\":{");
        while out.len() + 2 < self.value_bytes {
            text::put_field(&mut out, &mut random);
        }
        out.truncate(self.value_bytes - 2);
        out.put_slice(b"}}");
        out.freeze()
    }
}

fn draw_kind(mut thousandth: u64) -> &'static Kind {
    for kind in &KINDS {
        if thousandth < kind.per_mille {
            return kind;
        }
        thousandth -= kind.per_mille;
    }
    unreachable!("the shares of all kinds add up to a thousand, checked below")
}

const _: () = {
    let (mut sum, mut i) = (0, 0);
    while i < KINDS.len() {
        sum += KINDS[i].per_mille;
        assert!(KINDS[i].bytes_min >= VALUE_BYTES_MIN && KINDS[i].bytes_max <= VALUE_BYTES_MAX);
        i += 1;
    }
    assert!(sum == 1_000);
};

/// A bijection on `0..ITEMS_MAX`: the factor has no divisor in common with it.
fn scramble(index: u64) -> u64 {
    const FACTOR: u128 = 6_180_339_887;
    (u128::from(index) * FACTOR % u128::from(ITEMS_MAX)) as u64
}

#[cfg(test)]
mod tests;
