//! Where secrets come from: a variable, a file, or what a command prints.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::Secret;
use super::document::Value;
use super::reader::{Complaint, text};
use super::report::{escaped, looks_like_key, quoted};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a running command is looked at.
const GLANCE: Duration = Duration::from_millis(10);
/// Longest secret, and the most that is read of a command's output.
const LONGEST: u64 = 16 << 10;

/// What the operator wrote instead of the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// `{ env = "NAME" }`
    Env(String),
    /// `{ file = "PATH" }`
    File(PathBuf),
    /// `{ command = ["PROGRAM", "ARGUMENT"] }`
    Command(String, Vec<String>),
}

/// What sources are resolved against.
pub(super) struct Surroundings<'a> {
    /// The environment.
    pub(super) env: &'a BTreeMap<String, String>,
    /// The directory that relative files are looked up in.
    pub(super) directory: &'a Path,
}

/// Where a secret was found, to look there again.
#[derive(Clone)]
pub struct Spring {
    source: Source,
    env: Arc<BTreeMap<String, String>>,
    directory: PathBuf,
}

impl Spring {
    pub(super) fn new(source: &Source, env: &Arc<BTreeMap<String, String>>, directory: &Path) -> Self {
        Self { source: source.clone(), env: Arc::clone(env), directory: directory.to_owned() }
    }

    /// The secret as it is there now, or what is wrong, in words that do not quote it. May take as long as a command may.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        let found = self.source.resolve(&Surroundings { env: &self.env, directory: &self.directory });
        found.map(|found| found.secret).map_err(|complaint| complaint.says().to_owned())
    }
}

impl std::fmt::Debug for Spring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the environment, which holds secrets.
        write!(f, "{:?}", self.source)
    }
}

impl PartialEq for Spring {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.directory == other.directory
    }
}

/// A secret that was found.
pub(super) struct Found {
    pub(super) secret: Secret,
    /// For people: `environment variable CORE_API_KEY`.
    pub(super) origin: String,
    /// Something to mend that stops nothing.
    pub(super) warning: Option<String>,
}

const FORMS: &str =
    "write { env = \"NAME\" }, { file = \"/run/secrets/name\" } or { command = [\"op\", \"read\", \"...\"] }";

impl Source {
    /// Reads `{ env | file | command }`. Complaints never quote the value: it may be the secret itself.
    pub(super) fn parse(value: &Value) -> Result<Self, Complaint> {
        let table = match value {
            Value::Table(table) => table,
            Value::Text(_) | Value::Whole(_) | Value::Real(_) => {
                return Err(Complaint::new("must not be written into the file").help(FORMS));
            }
            _ => return Err(Complaint::new("must say where the secret is").help(FORMS)),
        };
        let [entry] = table.0.as_slice() else {
            return Err(Complaint::new("must have exactly one of env, file and command").help(FORMS));
        };
        match entry.name.as_str() {
            "env" => variable_name(text(&entry.node.value)?).map(Self::Env),
            "file" => match text(&entry.node.value)? {
                "" => Err(Complaint::new("names no file").help(FORMS)),
                path => Ok(Self::File(PathBuf::from(path))),
            },
            "command" => command_line(&entry.node.value),
            _ => Err(Complaint::new("must have exactly one of env, file and command").help(FORMS)),
        }
    }

    /// The file that it is in.
    pub(super) fn file(&self, directory: &Path) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(directory.join(path)),
            Self::Env(_) | Self::Command(..) => None,
        }
    }

    /// Fetches the secret.
    pub(super) fn resolve(&self, surroundings: &Surroundings<'_>) -> Result<Found, Complaint> {
        let (value, origin, warning) = match self {
            Self::Env(name) => (from_env(name, surroundings.env)?, format!("environment variable {name}"), None),
            Self::File(path) if looks_like_key(&path.to_string_lossy()) => {
                return Err(Complaint::new("names a file that looks like a key itself").help(FORMS));
            }
            Self::File(path) => {
                let path = surroundings.directory.join(path);
                let (value, warning) = from_file(&path)?;
                (value, format!("file {}", path.display()), warning)
            }
            Self::Command(program, arguments) => {
                (from_command(program, arguments, surroundings)?, format!("command {program}"), None)
            }
        };
        match header_safe(&value) {
            Ok(()) => Ok(Found { secret: Secret::new(value), origin, warning }),
            Err(what) => Err(Complaint::new(format!("from {origin} {what}"))),
        }
    }
}

/// Secrets travel in headers: visible ASCII, without spaces.
fn header_safe(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        Err("is empty")
    } else if value.len() as u64 > LONGEST {
        Err("is too long to be a key")
    } else if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("holds spaces, line breaks or characters that are not ASCII, which a header cannot carry")
    }
}

fn variable_name(name: &str) -> Result<String, Complaint> {
    let bare = !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.is_empty();
    // A key pasted in the place of the name would be shown by "variable … is not set".
    let pasted = looks_like_key(name) && name.contains(|c: char| c.is_ascii_lowercase());
    if bare && !pasted {
        Ok(name.to_owned())
    } else {
        Err(Complaint::new("must hold the name of an environment variable, like { env = \"CORE_API_KEY\" }"))
    }
}

fn command_line(value: &Value) -> Result<Source, Complaint> {
    let wrong = || Complaint::new("must have a command as a list of texts, the program first").help(FORMS);
    let Value::List(items) = value else { return Err(wrong()) };
    let mut words = items.iter().map(|item| text(&item.value).map(str::to_owned).map_err(|_| wrong()));
    let program = words.next().ok_or_else(wrong)??;
    if program.is_empty() {
        return Err(wrong());
    }
    Ok(Source::Command(program, words.collect::<Result<_, _>>()?))
}

fn from_env(name: &str, env: &BTreeMap<String, String>) -> Result<String, Complaint> {
    match env.get(name).map(String::as_str) {
        None => Err(Complaint::new(format!("needs the environment variable {name}, which is not set"))
            .help(format!("export {name}=... before starting"))),
        Some("") => Err(Complaint::new(format!("needs the environment variable {name}, which is empty"))),
        Some(value) => Ok(value.to_owned()),
    }
}

fn from_file(path: &Path) -> Result<(String, Option<String>), Complaint> {
    let shown = escaped(&path.display().to_string(), 200);
    let failed = |error: std::io::Error| Complaint::new(format!("cannot be read from the file {shown}: {error}"));
    let file = std::fs::File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_file() && meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o777;
        let complaint = format!("comes from the file {shown}, which other users can write (mode {mode:o})");
        return Err(Complaint::new(complaint).help("chmod go-w it: whoever writes it decides whose key is used"));
    }
    let warning = (meta.is_file() && is_open(meta.mode(), meta.uid())).then(|| {
        format!("the secret file {shown} can be read by other users (mode {:o}); chmod 600 it", meta.mode() & 0o777)
    });
    let mut bytes = Vec::new();
    file.take(LONGEST + 3).read_to_end(&mut bytes).map_err(failed)?;
    Ok((one_line(&bytes), warning))
}

/// Whether others may read a file. Kubernetes mounts secrets as root's, readable by the pod's group or by everyone: that is well.
fn is_open(mode: u32, owner: u32) -> bool {
    mode & 0o077 != 0 && owner != 0
}

/// Without one newline at its end. Bytes that are not UTF-8 become characters that [`header_safe`] refuses.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    text.strip_suffix('\r').unwrap_or(text).to_owned()
}

fn from_command(program: &str, arguments: &[String], surroundings: &Surroundings<'_>) -> Result<String, Complaint> {
    let shown = quoted(program);
    let failed = |what: String| Complaint::new(format!("cannot be read from the command {shown}: {what}"));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(surroundings.env)
        .current_dir(surroundings.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let output = drain(child.stdout.take());
    let complaints = drain(child.stderr.take());
    let status = wait(&mut child).map_err(failed)?;
    if status.success() {
        return Ok(one_line(&collect(&output)));
    }
    let complaints: String = String::from_utf8_lossy(&collect(&complaints)).trim().chars().take(200).collect();
    let complaints: String =
        complaints.split(char::is_control).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    Err(failed(format!("{status}")).maybe_help((!complaints.is_empty()).then(|| format!("it said: {complaints}"))))
}

/// Reads a pipe to its end beside us, so that the child never blocks on it.
fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            // Nobody listens any more once the child was given up.
            let _ = send.send(chunk.get(..length).unwrap_or_default().to_vec());
        }
    });
    receive
}

/// What an ended child printed. A grandchild may hold the pipe open, so the end of it is not waited for long.
fn collect(pipe: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(chunk) = pipe.recv_timeout(Duration::from_millis(500)) {
        bytes.extend(chunk);
        if bytes.len() as u64 > LONGEST {
            break;
        }
    }
    bytes
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus, String> {
    let glances = PATIENCE.as_millis() / GLANCE.as_millis();
    for _ in 0..glances {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => thread::sleep(GLANCE),
            Err(error) => return Err(error.to_string()),
        }
    }
    // It may have ended just now; either way it is gone afterwards.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("no answer within {} s", PATIENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_root_may_be_open() {
        assert!(is_open(0o100_640, 1000));
        assert!(is_open(0o100_604, 1000));
        assert!(!is_open(0o100_600, 1000));
        assert!(!is_open(0o100_644, 0));
    }

    #[test]
    fn headers_carry_visible_ascii_only() {
        assert!(header_safe("sk-abc_123~").is_ok());
        for wrong in ["", "a b", "a\nb", "a\r\nx: y", "ключ", "\u{7f}"] {
            assert!(header_safe(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn commands_neither_block_nor_lose_what_they_print() {
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let surroundings = Surroundings { env: &env, directory: Path::new("/") };
        let run = |script: &str| from_command("sh", &["-c".to_owned(), script.to_owned()], &surroundings);
        assert!(run("yes | head -c 1000000; exit 1").is_err());
        assert_eq!(run("sleep 5 & echo first").ok().as_deref(), Some("first"));
        assert!(run("yes | head -c 1000000").is_ok_and(|value| header_safe(&value).is_err()));
    }
}
