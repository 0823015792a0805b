//! What survives `kill -9`: the window log of each account and the live jobs with their slots.
//!
//! Plain files in one directory, written with ordinary writes: the page cache outlives the process, so nothing is synced per attempt.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Requests;

use self::journal::{Journal, Known};
use self::ring::Ring;

/// Live jobs and creates whose outcome is unknown.
pub(crate) mod journal;

/// When attempts were sent.
pub(crate) mod ring;

/// An open state directory. The lock is held until drop.
pub(crate) struct State {
    path: PathBuf,
    _lock: File,
}

impl State {
    /// Opens a directory that exists. A second process on it is refused.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{} is in use by another sluicegate: stop it, or give this one its own directory (`state.path`)",
                    path.display()
                ),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The window log of an account.
    pub(crate) fn ring(&self, account: &str, requests: &Requests) -> io::Result<Ring> {
        Ring::open(&self.path.join(format!("window-{}.ring", file_name(account))), requests)
    }

    /// The job journal and what it knows.
    pub(crate) fn journal(&self) -> io::Result<(Journal, Known)> {
        Journal::open(&self.path.join("jobs.journal"))
    }
}

/// Account names are free text: keep what every file system takes, and tell apart what that makes equal.
fn file_name(account: &str) -> String {
    let plain: String =
        account.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if plain == account { plain } else { format!("{plain}-{:08x}", ring::checksum(account.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_the_same_directory_is_refused() {
        let dir = std::env::temp_dir().join(format!("sluicegate-lock-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&dir).expect("a directory");
        let first = State::open(&dir).expect("free");
        let error = State::open(&dir).err().expect("taken");
        assert!(error.to_string().contains("state.path"), "{error}");
        drop(first);
        State::open(&dir).expect("free again");
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn names_of_accounts_never_leave_the_directory_nor_collide() {
        assert_eq!(file_name("dev-local"), "dev-local");
        assert!(!file_name("../../etc").contains(['/', '.']));
        assert_ne!(file_name("a b"), file_name("a/b"));
    }
}
