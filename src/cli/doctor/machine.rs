//! What the proxy needs of this machine: its ports, its state directory, and nobody else's hand on its files.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use tokio::net::TcpListener;

use crate::cli::{base_url, client};
use crate::config::{self, Config};
use crate::state::State;

use super::finding::Finding;

/// For a port of this machine to say who has it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at every port that the configuration opens. True: a running sluicegate has the data port.
pub(super) async fn ports(config: &Config, findings: &mut Vec<Finding>) -> bool {
    let mut running = false;
    for (index, address) in config.server.listen.iter().enumerate() {
        let ours = port("--listen or server.listen", *address, findings).await;
        running |= ours && index == 0;
    }
    let inbound = config.webhooks.inbound.as_ref().map(|inbound| inbound.listen);
    for (key, address) in [
        ("admin.listen", config.admin.listen),
        ("admin.health_listen", config.admin.health_listen),
        ("webhooks.listen", inbound),
    ] {
        if let Some(address) = address {
            port(key, address, findings).await;
        }
    }
    running
}

/// Whether a running sluicegate has it.
async fn port(key: &'static str, address: SocketAddr, findings: &mut Vec<Finding>) -> bool {
    let (finding, ours) = match TcpListener::bind(address).await {
        Ok(_) if address.port() == 0 => (Finding::ok("ports", format!("{address}: any free port ({key})")), false),
        Ok(_) => (Finding::ok("ports", format!("{address} is free ({key})")), false),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_ours(address).await => {
            (Finding::ok("ports", format!("{address} is a running sluicegate's ({key})")), true)
        }
        Err(error) => (refused(key, address, &error), false),
    };
    findings.push(finding);
    ours
}

fn refused(key: &str, address: SocketAddr, error: &io::Error) -> Finding {
    let port = address.port();
    let (said, way_out) = match error.kind() {
        ErrorKind::AddrInUse => (
            format!("{address} is taken by another program"),
            format!("see which (`ss -ltnp 'sport = :{port}'`), or choose another port with {key}"),
        ),
        ErrorKind::PermissionDenied => {
            (format!("{address} is not for ordinary users"), format!("choose a port above 1023 with {key}"))
        }
        ErrorKind::AddrNotAvailable => (
            format!("{address} is no address of this machine"),
            format!("choose one of its own (`ip address`) with {key}"),
        ),
        _ => (format!("{address} cannot be listened on: {error}"), format!("choose another with {key}")),
    };
    Finding::fail("ports", said, way_out)
}

/// Asks with a method that every port of ours refuses at once, and names itself in doing so.
async fn is_ours(address: SocketAddr) -> bool {
    let url = base_url(address);
    let authority = url.trim_start_matches("http://");
    let answer = tokio::time::timeout(PATIENCE, client::send(authority, Method::TRACE, "/", None)).await;
    let Ok(Ok(answer)) = answer else { return false };
    answer.headers().get("proxy-status").is_some_and(|value| value.as_bytes().starts_with(b"sluicegate"))
}

/// Whether the state directory can be used. `running`: the one who has it is known.
pub(super) fn state(config: &Config, running: bool) -> Vec<Finding> {
    let Some(path) = config.state.path() else {
        let said = "kept in memory: a restart forgets what was sent and which jobs are live";
        return vec![Finding::ok("state", said)];
    };
    let shown = path.display();
    let made = missing(path);
    let usable = config::prepare(config);
    // Innermost first; what is not empty is not ours.
    for directory in &made {
        let _ = std::fs::remove_dir(directory);
    }
    if let Err(report) = usable {
        let text = report.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let way_out = "name a directory of your own in state.path, or set state.store = \"memory\" to keep nothing";
        return vec![Finding::fail("state", first, way_out)];
    }
    if !made.is_empty() {
        return vec![Finding::ok("state", format!("{shown} can be made"))];
    }
    let mut findings = vec![match State::open(path).err() {
        None => Finding::ok("state", format!("{shown} is writable and free")),
        Some(_) if running => Finding::ok("state", format!("{shown} is the running sluicegate's")),
        Some(error) if error.kind() == ErrorKind::ResourceBusy => {
            let said = format!("{shown} is in use by another sluicegate, that listens elsewhere");
            Finding::fail("state", said, "stop it, or give this one its own directory (state.path)")
        }
        Some(error) => Finding::fail("state", format!("{shown}: {error}"), "make it yours: chown, chmod u+rwx"),
    }];
    findings.extend(ledger(&path.join("ledger.sqlite")));
    findings
}

/// The directories that would have to be made, innermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    path.ancestors().take_while(|directory| !directory.exists()).map(Path::to_path_buf).collect()
}

/// A file that is no database at all. Smaller damage is found by the start itself.
fn ledger(file: &Path) -> Option<Finding> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let mut first = [0; MAGIC.len()];
    let read = std::fs::File::open(file).and_then(|mut file| io::Read::read(&mut file, &mut first)).ok()?;
    let known = first.get(..read)?;
    // Not written yet.
    if known.is_empty() || known == MAGIC {
        return None;
    }
    let said = format!("{} is damaged: a start is refused", file.display());
    Some(Finding::fail(
        "state",
        said,
        format!("start once to read what moving it aside costs; mv {0} {0}.bad", file.display()),
    ))
}

/// Who else could change what the proxy does or read what it kept.
pub(super) fn permissions(config: &Config, file: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mode = |path: &Path| std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777);
    let directory = file.and_then(Path::parent);
    if let Some(directory) = directory
        && let Ok(mode) = mode(directory)
        && mode & 0o022 != 0
        && mode & 0o1000 == 0
    {
        let said = format!(
            "{} can be written by other users (mode {mode:o}): they could replace the configuration",
            directory.display()
        );
        findings.push(Finding::warn("permissions", said, format!("chmod go-w {}", directory.display())));
    }
    if let Some(path) = config.state.path()
        && let Ok(meta) = std::fs::metadata(path)
        && meta.mode() & 0o077 != 0
    {
        let shown = path.display();
        let said = format!(
            "{shown} is open to other users (mode {:o}): answers to creates may lie in it",
            meta.mode() & 0o777
        );
        findings.push(Finding::warn("permissions", said, format!("chmod 700 {shown}")));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("permissions", "configuration and state are their owner's alone"));
    }
    findings
}
