//! A process's data folder: made, locked, checked for space, and tied to one cluster, role and name.
//!
//! 1. [`Folder::open`] makes the folder if needed, refuses one that is not braid's, takes its lock, checks free space.
//! 2. [`Folder::claim`] compares what the process is with what the folder says, and writes it at the first start.
//!
//! Nothing else in the folder is touched before both have passed, so a wrong flag never damages anything.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use braid_store::Registered;
use thiserror::Error;
use tracing::info;

pub mod identity;
pub mod neighbours;

use identity::{Claim, IDENTITY_FILE, Identity, IdentityError};

/// File whose lock says that a process uses the folder.
const LOCK_FILE: &str = "LOCK";
/// Free bytes below which a new folder is not begun: a store would refuse writes from the first moment on.
const FREE_BYTES_NEW: u64 = 256 << 20;
/// Free bytes below which a known folder is not opened: the log could not make its next file. Far lower than the above,
/// so that a store whose disk has filled up comes back after a restart and serves reads.
const FREE_BYTES_KNOWN: u64 = 32 << 20;
/// Names that a folder may hold and still count as new.
const HARMLESS: [&str; 3] = ["lost+found", LOCK_FILE, identity::TEMPORARY_FILE];

/// Why a data folder cannot be used.
#[derive(Debug, Error)]
pub enum FolderError {
    #[error("cannot {what} the data folder {path}: {source}", path = path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the data folder {path} is a file; give --data-dir another name", path = .0.display())]
    File(PathBuf),
    #[error(
        "the data folder {path} holds {found:?} but was not made by braid; give --data-dir an empty or new folder",
        path = path.display()
    )]
    Foreign { path: PathBuf, found: String },
    #[error("another process uses the data folder {path}; stop it or give --data-dir another one", path = .0.display())]
    InUse(PathBuf),
    #[error(
        "the disk of the data folder {path} has {free_mib} MiB free and braid needs {need_mib} MiB to start; \
         free some space",
        path = path.display()
    )]
    NoSpace { path: PathBuf, free_mib: u64, need_mib: u64 },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// An open data folder. Its lock is held as long as this value lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    identity: Option<Identity>,
    _lock: File,
}

impl Folder {
    /// Opens `path` for this process alone.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |what| move |source| FolderError::Io { what, path: path.to_owned(), source };
        make(path)?;
        let identity = Identity::read(path)?;
        if identity.is_none() {
            refuse_foreign(path)?;
        }
        let lock = File::options().create(true).append(true).open(path.join(LOCK_FILE)).map_err(failed("write to"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => FolderError::InUse(path.to_owned()),
            TryLockError::Error(source) => failed("lock")(source),
        })?;
        let space = rustix::fs::statvfs(path).map_err(|error| failed("ask the disk of")(error.into()))?;
        // Read again under the lock: another process may have written it in between.
        let identity = Identity::read(path)?;
        let needed = if identity.is_some() { FREE_BYTES_KNOWN } else { FREE_BYTES_NEW };
        check_space(path, space.f_bavail.saturating_mul(space.f_frsize), needed)?;
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    /// What the folder says about itself; none before its first start.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Cluster and id of the store in the folder, once placement has given them.
    pub fn registered(&self) -> Option<Registered> {
        let identity = self.identity.as_ref()?;
        Some(Registered { cluster_id: identity.cluster_id()?, store_id: identity.store_id()? })
    }

    /// Makes sure that the folder belongs to what this process is, and writes down what it did not say yet.
    pub fn claim(&mut self, claim: Claim) -> Result<&Identity, FolderError> {
        let identity = match &self.identity {
            Some(known) => known.admit(claim, &self.path)?,
            None => Identity::first(claim),
        };
        if self.identity.as_ref() != Some(&identity) {
            identity.write(&self.path).map_err(|source| FolderError::Io {
                what: "write to",
                path: self.path.clone(),
                source,
            })?;
            info!(folder = %self.path.display(), file = IDENTITY_FILE, "wrote who the folder belongs to");
        }
        Ok(self.identity.insert(identity))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder inside, made if needed.
    pub fn part(&self, name: &str) -> Result<PathBuf, FolderError> {
        let path = self.path.join(name);
        make(&path)?;
        Ok(path)
    }
}

fn make(path: &Path) -> Result<(), FolderError> {
    if path.is_file() {
        return Err(FolderError::File(path.to_owned()));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| FolderError::Io {
        what: "make",
        path: path.to_owned(),
        source,
    })
}

fn refuse_foreign(path: &Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { what: "read", path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(failed)? {
        let found = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if !HARMLESS.contains(&found.as_str()) {
            return Err(FolderError::Foreign { path: path.to_owned(), found });
        }
    }
    Ok(())
}

fn check_space(path: &Path, free: u64, needed: u64) -> Result<(), FolderError> {
    if free >= needed {
        return Ok(());
    }
    Err(FolderError::NoSpace { path: path.to_owned(), free_mib: free >> 20, need_mib: needed >> 20 })
}

#[cfg(test)]
mod tests;
