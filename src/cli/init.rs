//! `sluicegate init`: an annotated proxy.toml to start from, and beside it the schema by which editors complete it.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::TEMPLATE;

use super::{Failure, complain, say, schema};

/// As the first line of the template names it.
const SCHEMA: &str = "proxy.schema.json";

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The file to write, or the directory to write proxy.toml into
    #[arg(default_value = "proxy.toml")]
    path: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
}

pub(super) fn init(args: &InitArgs) -> Result<u8, Failure> {
    let path = if args.path.is_dir() { args.path.join("proxy.toml") } else { args.path.clone() };
    let shown = path.display();
    let written = if args.force { replace(&path, TEMPLATE) } else { create(&path, TEMPLATE) };
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::failed(format_args!("{shown} exists already; --force replaces it")),
        _ => Failure::failed(format_args!("{shown} cannot be written: {error}")),
    })?;
    let beside = path.with_file_name(SCHEMA);
    // Of use to editors only: where it cannot be written, the configuration is good without it.
    if let Err(error) = replace(&beside, &schema::text()) {
        complain(format_args!("warning: {} cannot be written: {error}", beside.display()));
    }
    let flag = if path == Path::new("proxy.toml") { String::new() } else { format!(" --config {shown}") };
    say(format_args!(
        "wrote {shown}: account dev-local on the Free plan, its key in CORE_API_KEY\n\
         beside it {SCHEMA}, by which editors complete it\n\
         next:\n\
         \x20 export CORE_API_KEY=...     # or let `key` name a file or a command\n\
         \x20 sluicegate check{flag}\n\
         \x20 sluicegate run{flag}"
    ));
    Ok(0)
}

/// It holds no secret, but who can write it could redirect the key: nobody but its owner may, whatever the umask.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())
}

/// The old file stays whole until the new one is.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    create(&beside, text)?;
    std::fs::rename(&beside, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}
