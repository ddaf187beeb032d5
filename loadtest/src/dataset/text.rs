//! The words that the data set's names and values are made of, and how numbers are written in them.

use bytes::{BufMut, BytesMut};

use crate::random::Random;

/// `put_field` writes at most this much at once.
pub const SLACK_BYTES: usize = 256;

/// First words of object names.
pub const APPS: [&str; 16] = [
    "billing",
    "cart",
    "catalog",
    "checkout",
    "fraud",
    "gateway",
    "identity",
    "inventory",
    "ledger",
    "mailer",
    "orders",
    "payments",
    "pricing",
    "search",
    "shipping",
    "tracking",
];

/// Second words of object names.
pub const ROLES: [&str; 8] = ["api", "batch", "cache", "cron", "proxy", "sync", "web", "worker"];

/// Letters of generated names: no vowels, so that no word comes out.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

const FIELDS: [&str; 24] = [
    "annotations",
    "args",
    "containerPort",
    "containers",
    "dnsPolicy",
    "env",
    "hostIP",
    "image",
    "imagePullPolicy",
    "initialDelaySeconds",
    "livenessProbe",
    "mountPath",
    "nodeName",
    "ownerReferences",
    "phase",
    "protocol",
    "readOnly",
    "resources",
    "restartPolicy",
    "securityContext",
    "startTime",
    "terminationMessagePath",
    "tolerations",
    "volumes",
];

const WORDS: [&str; 16] = [
    "Always",
    "ClusterFirst",
    "File",
    "IfNotPresent",
    "NoExecute",
    "Ready",
    "Running",
    "Scheduled",
    "TCP",
    "default-scheduler",
    "/dev/termination-log",
    "/var/run/secrets/tokens",
    "kube-root-ca.crt",
    "node.kubernetes.io/ready",
    "registry.local/platform/base",
    "true",
];

/// Writes one `"name":"value",` of a value's body: half of the values are words, the rest is what no two objects share.
pub fn put_field(out: &mut BytesMut, random: &mut Random) {
    out.put_u8(b'"');
    out.put_slice(random.choose(&FIELDS).as_bytes());
    out.put_slice(b"\":\"");
    match random.below(4) {
        0 => put_hex(out, random.draw(), 12),
        1 => put_decimal(out, random.below(1_000_000), 1),
        _ => out.put_slice(random.choose(&WORDS).as_bytes()),
    }
    out.put_slice(b"\",");
}

/// Writes a number with at least `width` digits.
pub fn put_decimal(out: &mut BytesMut, number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let (mut at, mut rest) = (digits.len(), number);
    while rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.put_slice(&digits[at.min(digits.len() - width)..]);
}

/// Writes the lowest `width` hexadecimal digits of a number.
pub fn put_hex(out: &mut BytesMut, number: u64, width: u32) {
    for digit in (0..width).rev() {
        out.put_u8(b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize]);
    }
}

/// Writes a number below 27^width with exactly `width` letters.
pub fn put_letters(out: &mut BytesMut, number: u64, width: u32) {
    for digit in (0..width).rev() {
        out.put_u8(LETTERS[(number / 27u64.pow(digit) % 27) as usize]);
    }
}
