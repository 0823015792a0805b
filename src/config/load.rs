//! Finding the file and turning it, the environment and the flags into a `Config`.
//!
//! Nothing here reads the process's own environment or creates anything: callers pass in what they see, and `prepare` makes the
//! state directory once the program really starts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build::{self, Context};
use super::document::Table;
use super::report::{Place, Problems};
use super::source::Surroundings;
use super::{Config, Report, Watch, overrides, unknown};

/// The annotated default configuration, as `sluicegate init` writes it.
pub const TEMPLATE: &str = include_str!("../../proxy.toml");

/// The file that is looked for when none is named.
const FILE: &str = "proxy.toml";
/// The variable that the template's default account reads its key from.
const KEY: &str = "CORE_API_KEY";
/// Far beyond any configuration.
const LONGEST: u64 = 1 << 20;

/// What the command line said.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`: the file.
    pub config: Option<PathBuf>,
    /// `--account`: which account serves calls by default.
    pub account: Option<String>,
    /// `--listen`: addresses of the data port, comma-separated.
    pub listen: Option<String>,
    /// `--upstream`: the API's URL.
    pub upstream: Option<String>,
}

/// Everything that a configuration comes from. No `Debug`: the environment holds secrets.
#[derive(Clone, Default)]
pub struct Sources {
    /// The command line.
    pub flags: Flags,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
}

impl Sources {
    /// The sources of this process.
    ///
    /// # Errors
    ///
    /// Where there is no working directory any more.
    pub fn of_process(flags: Flags) -> std::io::Result<Self> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Ok(Self { flags, env, cwd: std::env::current_dir()? })
    }
}

/// A configuration without problems.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the program runs on.
    pub config: Config,
    /// What should be mended but stops nothing, a sentence each.
    pub warnings: Vec<String>,
    /// The file that was read; `None`: the built-in defaults.
    pub path: Option<PathBuf>,
}

/// What `load` came to, and the files that decide about it.
pub struct Attempt {
    /// As `load` returns it.
    pub loaded: Result<Loaded, Report>,
    /// As they were just before they were read.
    pub watch: Watch,
}

/// Reads and checks everything: flag over variable over file over default. Opens no port and creates nothing; it does fetch the
/// secrets of the accounts in use.
///
/// # Errors
///
/// All problems at once.
pub fn load(sources: &Sources) -> Result<Loaded, Report> {
    load_watched(sources).loaded
}

/// As `load`, and says which files to watch for a change, also where they have mistakes. What changes while this reads is a change.
#[must_use]
pub fn load_watched(sources: &Sources) -> Attempt {
    let mut watch = Watch::default();
    watch.look_at(place(sources));
    let loaded = find(sources).and_then(|found| load_found(found, sources, &mut watch));
    Attempt { loaded, watch }
}

/// As `load`, a text that lies in a directory of its own, with this environment.
pub(crate) fn load_text(text: &str, env: &BTreeMap<String, String>) -> Result<Config, Report> {
    let (name, directory) = (FILE.to_owned(), PathBuf::from("/nonexistent"));
    let found = Found { path: None, name, text: Cow::Owned(text.to_owned()), directory, trusted: false };
    let sources = Sources { env: env.clone(), ..Sources::default() };
    load_found(found, &sources, &mut Watch::default()).map(|loaded| loaded.config)
}

fn load_found(file: Found, sources: &Sources, watch: &mut Watch) -> Result<Loaded, Report> {
    let problems = Problems::default();
    let mut table = Table::parse(&file.text, &problems);
    if !problems.is_empty() {
        return Err(problems.into_report(&file.name, &file.text));
    }
    unknown::check(&table, &problems);
    overrides::apply(&mut table, &sources.env, &sources.flags, &problems);
    let mut context = Context {
        surroundings: Surroundings { env: &sources.env, directory: &file.directory },
        trusted: file.trusted,
        warnings: Vec::new(),
        watch,
        env: Arc::new(sources.env.clone()),
    };
    match build::build(&table, &mut context, &problems) {
        Some(config) if problems.is_empty() => Ok(Loaded { config, warnings: context.warnings, path: file.path }),
        _ => Err(problems.into_report(&file.name, &file.text)),
    }
}

/// Makes the state directory if it is missing (open to its owner only) and proves that it can be written.
///
/// # Errors
///
/// Where it cannot be made or written.
pub fn prepare(config: &Config) -> Result<(), Report> {
    let Some(path) = config.state.path() else {
        return Ok(());
    };
    let failed = |what: &str, error: std::io::Error| {
        let help = "set state.path to a directory of your own, or state.store = \"memory\" to keep nothing";
        Report::single(format!("state.path {} {what}: {error}", path.display()), Some(help.to_owned()))
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(|error| failed("cannot be created", error))?;
    let probe = path.join(format!(".write-test-{}", std::process::id()));
    // Never through a link that somebody else put there; one of ours may be left from a crash.
    let _ = std::fs::remove_file(&probe);
    let written = std::fs::File::create_new(&probe);
    written.map_err(|error| failed("is not writable", error))?;
    std::fs::remove_file(&probe).map_err(|error| failed("is not writable", error))
}

/// The file to read, or the built-in defaults in its place.
struct Found {
    path: Option<PathBuf>,
    /// As it stands in reports.
    name: String,
    text: Cow<'static, str>,
    /// Relative paths in the file start here.
    directory: PathBuf,
    /// Whether the operator named it.
    trusted: bool,
}

/// The file that is named, or looked for.
fn place(sources: &Sources) -> PathBuf {
    sources.cwd.join(named(sources).unwrap_or_else(|| PathBuf::from(FILE)))
}

fn named(sources: &Sources) -> Option<PathBuf> {
    let variable = sources.env.get(overrides::CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from);
    sources.flags.config.clone().or(variable)
}

fn find(sources: &Sources) -> Result<Found, Report> {
    if let Some(named) = named(sources) {
        return read(&named, &sources.cwd, true);
    }
    if sources.cwd.join(FILE).exists() {
        return read(Path::new(FILE), &sources.cwd, false);
    }
    let set = |name: &str| sources.env.get(name).is_some_and(|value| !value.is_empty());
    if set(KEY) || sources.flags.account.is_some() || set("SLUICEGATE_ACCOUNT") {
        return Ok(Found {
            path: None,
            name: "built-in proxy.toml".to_owned(),
            text: Cow::Borrowed(TEMPLATE),
            directory: sources.cwd.clone(),
            trusted: true,
        });
    }
    let help = format!(
        "`sluicegate init` writes {FILE}; `export {KEY}=...` is enough for the Free plan; `sluicegate demo` needs neither"
    );
    Err(Report::single(format!("there is no {FILE} here, and {KEY} is not set"), Some(help)))
}

fn read(named: &Path, cwd: &Path, trusted: bool) -> Result<Found, Report> {
    let name = named.display().to_string();
    let path = cwd.join(named);
    let failed = |error: std::io::Error| {
        let help =
            (error.kind() == std::io::ErrorKind::NotFound).then(|| "`sluicegate init` writes an example".to_owned());
        Report::single(format!("{name} cannot be read: {error}"), help)
    };
    let file = std::fs::File::open(&path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o022 != 0 {
        let help = format!("chmod go-w {name}");
        let message =
            format!("{name} can be written by other users (mode {:o}), who could redirect the key", mode & 0o777);
        return Err(Report::single(message, Some(help)));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Report::single(format!("{name} is longer than 1 MiB"), None));
    }
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(&name, &error))?;
    let directory = path.parent().unwrap_or(cwd).to_path_buf();
    Ok(Found { path: Some(path), name, text: Cow::Owned(text), directory, trusted })
}

fn not_utf8(name: &str, error: &std::string::FromUtf8Error) -> Report {
    let bytes = error.as_bytes();
    let valid = bytes.get(..error.utf8_error().valid_up_to()).unwrap_or_default();
    let problems = Problems::default();
    let text = String::from_utf8_lossy(valid);
    let place = Place::File(valid.len()..valid.len());
    problems.hide(&place);
    problems.add(&place, "not TOML: the text is not UTF-8 from here on", None);
    problems.into_report(name, &text)
}
