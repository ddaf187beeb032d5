//! What a member's folder says of itself: the token drawn when it was made, and in whose company the group was begun.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use braid_proto::pb::{MemberFolder, MemberResponse, StoredMember};
use parking_lot::Mutex;
use prost::Message as _;

/// Holds a [`StoredMember`].
const FILE: &str = "MEMBER";
const TEMPORARY_FILE: &str = "MEMBER.tmp";

/// The folder of a member. Its methods that change it block on the disk, and are durable on return.
pub struct OwnFolder {
    dir: PathBuf,
    member: u64,
    stored: Mutex<StoredMember>,
}

impl OwnFolder {
    /// Reads what the folder of `member` says, or gives it the token that was `drawn`.
    ///
    /// # Errors
    /// It cannot be read or written, or is damaged.
    pub fn open(dir: &Path, member: u64, drawn: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let stored = match fs::read(dir.join(FILE)) {
            Ok(bytes) => StoredMember::decode(&bytes[..]).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let new = StoredMember { token: drawn, ..Default::default() };
                write(dir, &new)?;
                new
            }
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.to_owned(), member, stored: Mutex::new(stored) })
    }

    /// Member and token.
    pub fn own(&self) -> MemberFolder {
        MemberFolder { member_id: self.member, token: self.stored.lock().token }
    }

    /// What others are told, but for the peer.
    pub fn says(&self) -> MemberResponse {
        let StoredMember { token, company, .. } = self.stored.lock().clone();
        MemberResponse { member_id: self.member, token, peer_id: 0, company }
    }

    /// Writes down in whose company the group is begun.
    ///
    /// # Errors
    /// It cannot be written; then nothing has changed.
    pub fn keep(&self, company: Vec<MemberFolder>) -> io::Result<()> {
        self.change(|stored| stored.company = company)
    }

    /// A peer lives here from now on: before it says anything to anybody.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn use_it(&self) -> io::Result<()> {
        self.change(|stored| stored.used = true)
    }

    /// There is no peer in the host's data. If one has lived here, its data is lost, and this is another folder: it takes the
    /// token that was `drawn`.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn has_no_peer(&self, drawn: u64) -> io::Result<()> {
        let used = self.stored.lock().used;
        self.change(|stored| {
            if used {
                *stored = StoredMember { token: drawn, ..Default::default() };
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut StoredMember)) -> io::Result<()> {
        let mut stored = self.stored.lock();
        let mut new = stored.clone();
        change(&mut new);
        if new != *stored {
            write(&self.dir, &new)?;
            *stored = new;
        }
        Ok(())
    }
}

/// After a crash the folder has the old file or the new one.
fn write(dir: &Path, what: &StoredMember) -> io::Result<()> {
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

    fn open(dir: &Path, drawn: u64) -> OwnFolder {
        OwnFolder::open(dir, 1, drawn).expect("opened")
    }

    #[test]
    fn a_folder_keeps_its_token_and_its_company() {
        let dir = tempfile::tempdir().expect("a folder");
        let company = vec![MemberFolder { member_id: 2, token: 22 }];
        let first = open(dir.path(), 11);
        assert_eq!(first.own(), MemberFolder { member_id: 1, token: 11 });
        first.keep(company.clone()).expect("written");
        let again = open(dir.path(), 12);
        again.has_no_peer(13).expect("nothing to write");
        assert_eq!(again.says(), MemberResponse { member_id: 1, token: 11, peer_id: 0, company });
        fs::write(dir.path().join(FILE), b"\xff\xff\xff").expect("written");
        assert!(OwnFolder::open(dir.path(), 1, 14).is_err());
    }

    #[test]
    fn a_folder_whose_peer_is_lost_is_another_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = open(dir.path(), 11);
        first.keep(vec![MemberFolder { member_id: 2, token: 22 }]).expect("written");
        first.use_it().expect("written");
        let again = open(dir.path(), 12);
        assert_eq!(again.own().token, 11, "until it is known that there is no peer");
        again.has_no_peer(12).expect("written");
        assert_eq!(open(dir.path(), 13).says(), MemberResponse { member_id: 1, token: 12, ..Default::default() });
    }
}
