//! What a member's folder says of itself: the token drawn when it was made, and in whose company the group was begun.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use braid_proto::pb::{MemberFolder, MemberResponse};
use parking_lot::Mutex;
use prost::Message as _;

/// Holds a [`MemberResponse`] without its peer.
const FILE: &str = "MEMBER";
const TEMPORARY_FILE: &str = "MEMBER.tmp";

/// The folder of a member.
pub struct OwnFolder {
    dir: PathBuf,
    known: Mutex<MemberResponse>,
}

impl OwnFolder {
    /// Reads what the folder of `member` says, or gives it a token; durable on return. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read or written, or is damaged.
    pub fn open(dir: &Path, member: u64, drawn: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let known = match fs::read(dir.join(FILE)) {
            Ok(bytes) => MemberResponse::decode(&bytes[..]).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let new = MemberResponse { member_id: member, token: drawn, ..Default::default() };
                write(dir, &new)?;
                new
            }
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.to_owned(), known: Mutex::new(known) })
    }

    /// Member and token.
    pub fn own(&self) -> MemberFolder {
        let known = self.known.lock();
        MemberFolder { member_id: known.member_id, token: known.token }
    }

    /// What others are told, but for the peer.
    pub fn says(&self) -> MemberResponse {
        self.known.lock().clone()
    }

    /// Writes down in whose company the group is begun. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be written; then nothing has changed.
    pub fn keep(&self, company: Vec<MemberFolder>) -> io::Result<()> {
        let mut known = self.known.lock();
        let new = MemberResponse { company, ..known.clone() };
        write(&self.dir, &new)?;
        *known = new;
        Ok(())
    }
}

/// After a crash the folder has the old file or the new one.
fn write(dir: &Path, what: &MemberResponse) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY_FILE);
    let mut file = File::create(&temporary)?;
    file.write_all(&what.encode_to_vec())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_token_and_its_company() {
        let dir = tempfile::tempdir().expect("a folder");
        let company = vec![MemberFolder { member_id: 2, token: 22 }];
        let first = OwnFolder::open(dir.path(), 1, 11).expect("made");
        assert_eq!(first.own(), MemberFolder { member_id: 1, token: 11 });
        first.keep(company.clone()).expect("written");
        let again = OwnFolder::open(dir.path(), 1, 12).expect("read");
        assert_eq!(again.says(), MemberResponse { member_id: 1, token: 11, peer_id: 0, company });
        fs::write(dir.path().join(FILE), b"\xff\xff\xff").expect("written");
        assert!(OwnFolder::open(dir.path(), 1, 13).is_err());
    }
}
