//! Files, and what was in them: whether anything that decides about the configuration has changed.
//!
//! By content, not by events: a mounted Secret changes by a swapped link above the file, which the file's own events do not tell.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

/// Far beyond any configuration or secret.
const LONGEST: u64 = 1 << 20;

/// What is in a file, without saying it; `None` where it cannot be read.
type Mark = Option<[u8; 32]>;

/// Files and what was in them when they were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch(BTreeMap<PathBuf, Mark>);

impl Watch {
    /// Adds a file as it is now. To be called before it is read: a change in between then shows.
    pub(super) fn look_at(&mut self, path: PathBuf) {
        let mark = mark(&path);
        self.0.insert(path, mark);
    }

    /// The same files as they are now.
    #[must_use]
    pub fn again(&self) -> Self {
        Self(self.0.keys().map(|path| (path.clone(), mark(path))).collect())
    }
}

/// Its permissions count too: a file may be refused for them.
fn mark(path: &Path) -> Mark {
    let meta = std::fs::metadata(path).ok()?;
    let mut hash = Context::new(&SHA256);
    hash.update(&meta.mode().to_le_bytes());
    // A pipe can be read once, and not by us.
    if meta.is_file() {
        let mut bytes = Vec::new();
        std::fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
        hash.update(&bytes);
    }
    let mut mark = [0; 32];
    mark.copy_from_slice(hash.finish().as_ref());
    Some(mark)
}

/// When a change is one: what is different from what was last read, and the same in two looks running. A file that is being written is
/// left alone until it is at rest.
#[derive(Debug)]
pub(crate) struct Watcher {
    read: Watch,
    last: Watch,
}

impl Watcher {
    pub(crate) fn new(read: Watch) -> Self {
        Self { last: read.clone(), read }
    }

    /// The files to look at.
    pub(crate) fn files(&self) -> &Watch {
        &self.read
    }

    /// True if what is there `now` should be read.
    pub(crate) fn sees(&mut self, now: Watch) -> bool {
        let due = now != self.read && now == self.last;
        self.last = now;
        due
    }

    /// This was read, whatever came of it.
    pub(crate) fn has_read(&mut self, read: Watch) {
        *self = Self::new(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(contents: &[(&str, u8)]) -> Watch {
        Watch(contents.iter().map(|(path, content)| (PathBuf::from(path), Some([*content; 32]))).collect())
    }

    #[test]
    fn a_change_counts_when_it_is_the_same_twice_running() {
        let mut watcher = Watcher::new(watch(&[("a", 1)]));
        assert!(!watcher.sees(watch(&[("a", 1)])));
        assert!(!watcher.sees(watch(&[("a", 2)])), "it may be half written");
        assert!(!watcher.sees(watch(&[("a", 3)])));
        assert!(watcher.sees(watch(&[("a", 3)])));
        watcher.has_read(watch(&[("a", 3)]));
        assert!(!watcher.sees(watch(&[("a", 3)])), "once, even where it was refused");
        assert!(!watcher.sees(watch(&[("a", 4)])));
        assert!(!watcher.sees(watch(&[("a", 3)])), "taken back");
    }
}
