//! From `proxy.toml`, environment and flags to a configuration, or to all that is wrong with them.
//!
//! `invalid/NAME.toml` gives exactly `invalid/NAME.stderr`; `BLESS=1 cargo test` writes the latter anew. Lines `#! env NAME=VALUE`
//! and `#! flag NAME=VALUE` at the top of a file add to the test's environment and command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sluicegate::config::{self, Flags, Loaded, Report, Sources};

use crate::support::config::Scratch as Directory;

/// Where values come from.
mod sources;

/// What they become.
mod values;

/// What survives, and where.
mod state;

/// Files that are right or wrong.
mod corpus;

/// What we ship.
mod shipped;

/// Everything else that there could be.
mod anything;

/// A directory of its own for one test, removed at its end.
struct Scratch(Directory);

impl Scratch {
    fn new() -> Self {
        Self(Directory::new())
    }

    fn path(&self) -> &Path {
        &self.0.0
    }

    /// Writes a file that only its owner can touch, whatever the umask.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        self.write_with_mode(name, text, 0o600);
    }

    fn write_with_mode(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) {
        fs::write(self.path().join(name), text).unwrap();
        fs::set_permissions(self.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Sources that name no file yet, with a small environment.
    fn sources(&self) -> Sources {
        let env = [
            ("APP_TOKEN", "app-token"),
            ("CORE_API_KEY", "core-key"),
            ("EMPTY", ""),
            ("HOME", "/home/someone"),
            ("HOOK_SECRET", "hook-secret"),
            ("HOOK_SECRET_BAD", "whsec_not-base64!"),
            ("PATH", "/usr/bin:/bin"),
            ("REPLICATE_API_TOKEN", "replicate-token"),
            ("WEB_TOKEN", "web-token"),
            ("WITH_SPACES", "not a key"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Sources { flags: Flags::default(), env, cwd: self.path().to_owned() }
    }

    /// Loads `text` as a file that was named on the command line.
    fn load(&self, name: &str, text: &str) -> Result<Loaded, Report> {
        self.write(name, text);
        let mut sources = self.sources();
        sources.flags.config = Some(name.into());
        for line in text.lines().map_while(|line| line.strip_prefix("#! ")) {
            let (kind, rest) = line.split_once(' ').unwrap();
            let (name, value) = rest.split_once('=').unwrap();
            match (kind, name) {
                ("env", _) => drop(sources.env.insert(name.to_owned(), value.to_owned())),
                ("flag", "account") => sources.flags.account = Some(value.to_owned()),
                ("flag", "listen") => sources.flags.listen = Some(value.to_owned()),
                ("flag", "upstream") => sources.flags.upstream = Some(value.to_owned()),
                _ => panic!("what is {line}?"),
            }
        }
        config::load(&sources)
    }

    /// Loads `text` without looking for `#!` lines in it.
    fn load_as_is(&self, text: &str) -> Result<Loaded, Report> {
        self.write("proxy.toml", text);
        let mut sources = self.sources();
        sources.flags.config = Some("proxy.toml".into());
        config::load(&sources)
    }
}

fn valid(name: &str) -> Loaded {
    let scratch = Scratch::new();
    scratch.write("secret.txt", "from-file\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config/valid").join(name).with_extension("toml");
    scratch.load("proxy.toml", &fs::read_to_string(path).unwrap()).unwrap_or_else(|report| panic!("{name}:\n{report}"))
}

const MINIMAL: &str = include_str!("config/valid/minimal.toml");

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
