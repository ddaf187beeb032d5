//! Identities and counters as newtypes that print themselves, so that logs can be read by eye: `r7`, `s3`, `p12`, `@1042`.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value that names nothing.
            pub const INVALID: Self = Self(0);

            /// Whether this names something.
            pub fn is_valid(self) -> bool {
                self.0 != 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A region: one raft group over one range of internal keys. Never reused.
    RegionId(u64), "r"
);
id!(
    /// A store: a process that holds peers. Never reused; a wiped store gets a new one.
    StoreId(u64), "s"
);
id!(
    /// A peer: one replica of one region. Allocated by placement, growing, never reused.
    PeerId(u64), "p"
);
id!(
    /// A cluster. Drawn once at bootstrap, checked on every connection between processes.
    ClusterId(u64), "c"
);
id!(
    /// A raft term.
    Term(u64), "t"
);
id!(
    /// How often a process has started on its data folder; a paused or dead process's messages carry the older one.
    Incarnation(u64), "i"
);
id!(
    /// One term of office of the sequencer. Rises with every sequencer.
    SequencerEpoch(u64), "q"
);

/// etcd's revision. The empty cluster is at 1 and the first write gets 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision of a cluster that nobody has written to.
    pub const INITIAL: Self = Self(1);

    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
