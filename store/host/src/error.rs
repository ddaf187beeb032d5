//! Why a host does not open: one line each, made for the person who starts the process.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a host's folder cannot be used. Nothing was changed in it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The folder was made by another cluster, or by another store or member of it.
    #[error("{dir} belongs to {found}, not to {wanted}: point the process at its own folder, or at an empty one")]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked for it.
        wanted: String,
    },
    /// A running process has it open.
    #[error("{dir} is in use by another running process: stop that one first, or choose another folder")]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// What is stored there contradicts itself, or cannot be read.
    #[error("{dir} is damaged ({what}): do not delete single files; replace this member with one on an empty folder")]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a version of the program this one does not know.
    #[error("{dir} was written by a newer version (format {found}, this program knows {known}): start that version")]
    Format {
        /// The folder.
        dir: PathBuf,
        /// Format found.
        found: u32,
        /// Newest format this program knows.
        known: u32,
    },
    /// Written by a version of the program whose data this one does not read.
    #[error(
        "{dir} was written by an older version (format {found}, this program needs {known}) and cannot be converted: \
         start that version, or start this one on an empty folder"
    )]
    OldFormat {
        /// The folder.
        dir: PathBuf,
        /// Format found.
        found: u32,
        /// The format this program reads and writes.
        known: u32,
    },
    /// The disk has no room.
    #[error("no space left on the disk of {dir}: free some, then start again")]
    DiskFull {
        /// The folder.
        dir: PathBuf,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The folder cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl OpenError {
    /// An I/O error on `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            return OpenError::DiskFull { dir: path.to_owned() };
        }
        OpenError::Io { path: path.to_owned(), source }
    }

    /// An error of one of the engines while it opens or reads `dir`, by its text: neither engine types it further.
    pub(crate) fn engine(dir: &Path, error: impl std::fmt::Display) -> Self {
        let what = error.to_string();
        if what.contains("No space left") || what.contains("nospace") || what.contains("NoSpace") {
            OpenError::DiskFull { dir: dir.to_owned() }
        } else if what.contains("lock hold by current process") || what.contains("While lock file") {
            OpenError::Locked { dir: dir.to_owned() }
        } else {
            OpenError::Damaged { dir: dir.to_owned(), what }
        }
    }

    /// Stored state that contradicts itself.
    pub(crate) fn damaged(dir: &Path, what: impl Into<String>) -> Self {
        OpenError::Damaged { dir: dir.to_owned(), what: what.into() }
    }
}

/// Ends the process: a disk that fails under a running host must not be answered for. The process restarts from what is
/// durable; an error that a retry would hide (a failed fsync above all) never leads to an acknowledgement.
pub(crate) fn fatal(what: std::fmt::Arguments<'_>) -> ! {
    tracing::error!("{what}");
    panic!("{what}");
}

/// Ends the process when the thread that holds it unwinds: a host that lost one of its threads would hang instead.
pub(crate) struct AbortOnPanic(pub &'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.0, "a thread of the raft host panicked; the process stops");
            std::process::abort();
        }
    }
}
