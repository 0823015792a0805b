//! The directory of what survives `kill -9`: the window log of each account, and the ledger.
//!
//! The window log is written with ordinary writes: the page cache outlives the process, so nothing is synced per attempt.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use crate::clock::Clock;
use crate::config::{Requests, Secret};

use self::ring::Ring;

/// When attempts were sent.
pub(crate) mod ring;

/// Time for as long as the machine is up.
pub(crate) mod boot;

/// An open state directory. The lock is held until drop.
pub(crate) struct State {
    path: PathBuf,
    lock: File,
}

impl State {
    /// Opens a directory that exists. A second process on it is refused.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
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

    /// The window log of a key, whatever its account is called: the upstream counts keys.
    pub(crate) fn ring(&self, key: &Secret, requests: &Requests, clock: Clock) -> io::Result<Ring> {
        Ring::open(&self.ring_path(key), requests, clock)
    }

    /// Where it is.
    pub(crate) fn ring_path(&self, key: &Secret) -> PathBuf {
        self.path.join(format!("window-{}.ring", fingerprint(key)))
    }

    /// The ledger's file.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.path.join("ledger.sqlite")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Not left to the closing of the file: a child between its fork and its exec holds it open too, and the lock with it.
        let _ = self.lock.unlock();
    }
}

/// Names a key's file and tells nothing about the key: eight bytes of its SHA-256.
pub(crate) fn fingerprint(key: &Secret) -> String {
    let hash = digest(&SHA256, key.expose().as_bytes());
    hash.as_ref().iter().take(8).fold(String::new(), |mut hex, byte| {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
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
        // As a child has it that was forked a moment ago.
        let inherited = first.lock.try_clone().expect("a duplicate");
        drop(first);
        State::open(&dir).expect("free again");
        drop(inherited);
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn keys_are_told_apart_and_not_told() {
        let name = fingerprint(&Secret::new("cdt_canary"));
        assert_eq!(name.len(), 16);
        assert_ne!(name, fingerprint(&Secret::new("cdt_other")));
        assert!(!name.contains("canary"));
    }
}
