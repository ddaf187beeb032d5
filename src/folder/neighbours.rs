//! Where the other stores were when this one last heard of them: after a restart of everything they find each other at
//! once, not only when placement has a leader. A hint: placement's word replaces it, and without it nothing is lost.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use braid_host::transport::AddressBook;
use braid_proto::pb::Domain;
use tracing::warn;

/// One store a line: id, a space, `host:port`.
const FILE: &str = "neighbours";
const TEMPORARY_FILE: &str = "neighbours.new";

/// Puts what `folder` remembers into `book`.
pub fn recall(folder: &Path, book: &AddressBook) {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            return warn!(%error, file = FILE, "where the other stores were cannot be read; placement will say");
        }
    };
    for (id, address) in text.lines().filter_map(parse) {
        book.set(Domain::Store, id, address);
    }
}

/// Writes down what `book` says, each time it changes, for as long as it is polled.
pub async fn remember(folder: Arc<Path>, book: AddressBook) {
    let mut changes = book.changes();
    loop {
        // Marked as seen before it is read: what comes in between is written again.
        changes.borrow_and_update();
        let lines: String =
            book.all(Domain::Store).into_iter().map(|(id, address)| format!("{id} {address}\n")).collect();
        let to = Arc::clone(&folder);
        match tokio::task::spawn_blocking(move || write(&to, &lines)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, file = FILE, "where the other stores are cannot be written down"),
            Err(error) => warn!(%error, file = FILE, "where the other stores are was not written down"),
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn write(folder: &Path, lines: &str) -> io::Result<()> {
    let temporary = folder.join(TEMPORARY_FILE);
    fs::write(&temporary, lines)?;
    fs::rename(temporary, folder.join(FILE))
}

fn parse(line: &str) -> Option<(u64, &str)> {
    let (id, address) = line.split_once(' ')?;
    Some((id.parse().ok()?, address)).filter(|(id, address)| *id != 0 && address.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_recalled_and_damage_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        recall(folder.path(), &AddressBook::default());
        write(folder.path(), "3 10.0.0.3:2380\nnot a line\n0 nobody:1\n7 host").expect("written");
        let book = AddressBook::default();
        recall(folder.path(), &book);
        assert_eq!(book.all(Domain::Store), [(3, Arc::from("10.0.0.3:2380"))]);
    }

    #[tokio::test]
    async fn changes_are_written_down() {
        let folder = tempfile::tempdir().expect("a folder");
        let book = AddressBook::default();
        let path = Arc::from(folder.path());
        let task = tokio::spawn(remember(path, book.clone()));
        book.set(Domain::Store, 2, "127.0.0.1:9");
        let recalled = AddressBook::default();
        while recalled.get(Domain::Store, 2).is_none() {
            tokio::task::yield_now().await;
            recall(folder.path(), &recalled);
        }
        task.abort();
    }
}
