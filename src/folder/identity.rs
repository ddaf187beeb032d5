//! `identity.toml`: what a data folder belongs to.
//!
//! Written once, replaced as a whole (temporary file, fsync, rename, fsync of the folder), read at every start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use braid_proto::id::{ClusterId, StoreId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The file's name.
pub const IDENTITY_FILE: &str = "identity.toml";
/// What it is called while it is being written.
pub const TEMPORARY_FILE: &str = "identity.toml.tmp";
/// Version of the layout of data folders that this program reads and writes.
pub const FORMAT: u32 = 1;

const HEADER: &str = "# Written by braid. It ties this folder to one process of one cluster: do not edit or copy it.\n";

/// What a process can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A whole cluster.
    Dev,
    /// Placement, store and proxy.
    Server,
    /// A placement member.
    Placement,
    /// A store.
    Store,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Server => "server",
            Self::Placement => "placement",
            Self::Store => "store",
        }
    }
}

/// What a process says it is. Fields that it cannot know yet are `None` and not compared.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its role.
    pub role: Role,
    /// `--name`.
    pub name: String,
    /// Its cluster, if its flags say so.
    pub cluster_id: Option<ClusterId>,
    /// Its id in placement's group, if it is a member.
    pub member_id: Option<u64>,
    /// Its store id, once placement has given one.
    pub store_id: Option<StoreId>,
    /// Number of stores in the process (`dev` only).
    pub stores: Option<u32>,
}

/// What a folder says it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    format: u32,
    role: Role,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    member_id: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stores: Option<u32>,
}

/// A 64-bit id as 16 hexadecimal digits: TOML's numbers are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hex(u64);

impl From<Hex> for String {
    fn from(id: Hex) -> Self {
        format!("{:016x}", id.0)
    }
}

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

/// Why a folder's identity keeps a process from using it.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} is damaged ({what}); restore it from a copy, or move the folder away so that a new one is made",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "the data folder {path} has format {found}, this braid knows {FORMAT}; start it with the newer braid that made it",
        path = path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "the data folder {path} belongs to `braid {found}`, not to `braid {asked}`; start that, or give --data-dir \
         another folder",
        path = path.display()
    )]
    Role { path: PathBuf, found: &'static str, asked: &'static str },
    #[error(
        "the data folder {path} belongs to {found:?}, not to {asked:?}; correct --name or --data-dir",
        path = path.display()
    )]
    Name { path: PathBuf, found: String, asked: String },
    #[error(
        "the data folder {path} belongs to cluster {found:016x}, but this process would join cluster {asked:016x}; \
         correct {flags} or --data-dir",
        path = path.display()
    )]
    Cluster { path: PathBuf, found: u64, asked: u64, flags: &'static str },
    #[error(
        "the data folder {path} belongs to member {found:016x}, but --initial-cluster makes this process member \
         {asked:016x}; correct --initial-cluster or --data-dir",
        path = path.display()
    )]
    Member { path: PathBuf, found: u64, asked: u64 },
    #[error(
        "the data folder {path} belongs to store {found}, but placement gave this process store {asked}; correct \
         --placement-endpoints or --data-dir",
        path = path.display()
    )]
    Store { path: PathBuf, found: StoreId, asked: StoreId },
    #[error(
        "the data folder {path} was made with --stores {found}; start with that, or give --data-dir another folder",
        path = path.display()
    )]
    Stores { path: PathBuf, found: u32 },
}

impl Identity {
    /// The identity in `folder`; none if the folder is new.
    pub fn read(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(IDENTITY_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(IdentityError::Damaged { path, what: "not a text".to_owned() });
            }
            Err(source) => return Err(IdentityError::Read { path, source }),
        };
        Self::parse(&text, folder).map(Some)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, IdentityError> {
        let damaged = |what: String| IdentityError::Damaged { path: folder.join(IDENTITY_FILE), what };
        // The format first: a newer file may hold anything else.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| damaged(one_line(&error)))?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(found) if found == i64::from(FORMAT) => {}
            Some(found) if found > i64::from(FORMAT) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                return Err(IdentityError::Newer { path: folder.to_owned(), found });
            }
            _ => return Err(damaged("no format in it".to_owned())),
        }
        table.try_into().map_err(|error: toml::de::Error| damaged(one_line(&error)))
    }

    /// The identity of a new folder.
    pub fn first(claim: Claim) -> Self {
        Self {
            format: FORMAT,
            role: claim.role,
            name: claim.name,
            cluster_id: claim.cluster_id.map(|id| Hex(id.0)),
            member_id: claim.member_id.map(Hex),
            store_id: claim.store_id.map(|id| id.0),
            stores: claim.stores,
        }
    }

    /// The cluster, if known.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id.map(|id| ClusterId(id.0))
    }

    /// The store's id, if placement has given one.
    pub fn store_id(&self) -> Option<StoreId> {
        self.store_id.map(StoreId)
    }

    /// Number of stores of a `dev` folder.
    pub fn stores(&self) -> Option<u32> {
        self.stores
    }

    /// Compares with a claim; returns the identity with what the claim adds to it.
    pub fn admit(&self, claim: Claim, folder: &Path) -> Result<Self, IdentityError> {
        let path = || folder.to_owned();
        if self.role != claim.role {
            let (found, asked) = (self.role.name(), claim.role.name());
            return Err(IdentityError::Role { path: path(), found, asked });
        }
        if self.name != claim.name {
            return Err(IdentityError::Name { path: path(), found: self.name.clone(), asked: claim.name });
        }
        if let (Some(found), Some(ClusterId(asked))) = (self.cluster_id, claim.cluster_id)
            && found.0 != asked
        {
            let flags = match self.role {
                Role::Store => "--placement-endpoints",
                _ => "--initial-cluster, --initial-cluster-token",
            };
            return Err(IdentityError::Cluster { path: path(), found: found.0, asked, flags });
        }
        if let (Some(found), Some(asked)) = (self.member_id, claim.member_id)
            && found.0 != asked
        {
            return Err(IdentityError::Member { path: path(), found: found.0, asked });
        }
        if let (Some(found), Some(asked)) = (self.store_id, claim.store_id)
            && found != asked.0
        {
            return Err(IdentityError::Store { path: path(), found: StoreId(found), asked });
        }
        if let (Some(found), Some(asked)) = (self.stores, claim.stores)
            && found != asked
        {
            return Err(IdentityError::Stores { path: path(), found });
        }
        let said = Self::first(claim);
        Ok(Self {
            cluster_id: self.cluster_id.or(said.cluster_id),
            member_id: self.member_id.or(said.member_id),
            store_id: self.store_id.or(said.store_id),
            stores: self.stores.or(said.stores),
            ..said
        })
    }

    /// Writes it into `folder`, so that after a crash the folder has the old file or the new one.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let temporary = folder.join(TEMPORARY_FILE);
        let mut file = File::create(&temporary)?;
        file.write_all(HEADER.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(IDENTITY_FILE))?;
        File::open(folder)?.sync_all()
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}
