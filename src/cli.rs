//! The command line: what can be asked, and who answers it.
//!
//! Exit codes: 0 done, 1 it failed, 2 the configuration or the command line is wrong, 130 and 143 ended at once by a second signal.
//! `exec` ends with its command's code.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Flags, Report};
use crate::mock::MockArgs;

// What serves.
mod run;

mod exec;

mod mock;

pub(crate) mod demo;

// What only looks or writes.
mod check;

mod init;

mod exports;

mod healthcheck;

mod doctor;

mod status;

mod jobs;

mod usage;

mod forecast;

mod explain;

mod webhooks;

mod schema;

mod man;

// What they share.
mod start;

mod systemd;

mod private;

mod logging;

mod signals;

mod glance;

mod client;

mod ask;

mod watch;

mod picture;

/// A local rate-limiting reverse proxy for metered, asynchronous AI APIs.
///
/// Point an app's base URL at it: it adds the API key, keeps the plan's requests and jobs exactly, and waits instead of failing.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, max_term_width = 120, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    flags: ConfigFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Without a command it runs the proxy. Without a proxy.toml, CORE_API_KEY alone is enough: the Free plan on 127.0.0.1:8787.
`sluicegate demo` needs neither.";

/// Where the configuration comes from, and what stands above it.
#[derive(Debug, Clone, Default, Args)]
struct ConfigFlags {
    /// Configuration file [default: `$SLUICEGATE_CONFIG`, else ./proxy.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which account of the configuration serves calls by default
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Address of the data port, or several with commas; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The API's URL
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (also without a command)
    Run(ConfigFlags),
    /// Check the configuration: all mistakes at once, without opening a port
    Check(ConfigFlags),
    /// Write an annotated proxy.toml
    Init(init::InitArgs),
    /// Show what it does: an imitated API, the proxy, and a piece of work; needs no key
    Demo(demo::DemoArgs),
    /// Run the imitated API alone, as an offline stand-in
    Mock(MockArgs),
    /// Print the variables that point SDKs at the proxy
    Env(exports::EnvArgs),
    /// Run a command with the proxy up and SDKs pointed at it, without the API key in its environment
    ///
    /// Variables that hold an account's key are removed, base URLs and placeholder keys are set. With `--listen 127.0.0.1:0` it stands
    /// beside another proxy, if it has a `state.path` of its own. The log is at level `warn` where the configuration says `info`. Ends with
    /// the command's exit code.
    Exec(exec::ExecArgs),
    /// Ask a running proxy whether it is ready; needs no key
    Healthcheck(healthcheck::HealthArgs),
    /// Look for what is wrong: configuration, ports, state, DNS, TLS, key, clock, limits, apps' variables
    ///
    /// Each line is ok, warn, fail or skip, with the way out. Spends one request of each account in use and no credits: through the running
    /// proxy if there is one, else into the books of the next start. Ends with 1 where something fails.
    Doctor(doctor::DoctorArgs),
    /// Show a running proxy's webhooks, or have it deliver some again; needs no key
    Webhooks(webhooks::WebhookArgs),
    /// Show what a running proxy holds: windows, jobs, queue, credits; what was tried again and refused
    Status(watch::LookArgs),
    /// Show a running proxy's live jobs, the oldest first
    Jobs(watch::LookArgs),
    /// Show the credits that a running proxy has used: budgets, today, the last 30 days
    Usage(watch::LookArgs),
    /// Tell when so many jobs, created from now on, would be done, what they cost and what holds them up
    ///
    /// Asks a running proxy, for the account that `--account` names. It knows the model's run time once it has seen a job of it end.
    Forecast(forecast::ForecastArgs),
    /// Explain an error code of the proxy; without one, list them
    Explain {
        /// The `code` of the answer, like `queue_timeout`
        code: Option<String>,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the JSON Schema of proxy.toml, by which editors complete it
    Schema,
    /// Print the manual's page, or write one for each command
    Man(man::ManArgs),
}

/// Why a command did not do its work. No `Debug` of secrets: texts only.
#[derive(Debug)]
struct Failure {
    code: u8,
    /// Ready to be printed.
    text: String,
}

impl Failure {
    /// Exit code 1.
    fn failed(text: impl std::fmt::Display) -> Self {
        Self { code: 1, text: format!("error: {text}") }
    }

    /// Exit code 2: what the user wrote is wrong.
    fn wrong(text: impl std::fmt::Display) -> Self {
        Self { code: 2, text: format!("error: {text}") }
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        let text = if colours(&std::io::stderr()) { report.styled().to_owned() } else { report.to_string() };
        Self { code: 2, text }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

impl Cli {
    /// Does what was asked and returns the exit code.
    pub async fn run(self) -> u8 {
        match self.dispatch().await {
            Ok(code) => code,
            Err(Failure { code, text }) => {
                complain(text);
                code
            }
        }
    }

    async fn dispatch(self) -> Result<u8, Failure> {
        let above = self.flags;
        let command = self.command.unwrap_or_else(|| Command::Run(ConfigFlags::default()));
        match command {
            Command::Run(flags) => run::run(flags.or(above)).await,
            Command::Check(flags) => check::check(flags.or(above)),
            Command::Exec(args) => exec::exec(args, above).await,
            Command::Env(args) => exports::env(args, above),
            Command::Healthcheck(args) => healthcheck::healthcheck(args, above).await,
            Command::Doctor(args) => doctor::doctor(args, above).await,
            Command::Webhooks(args) => webhooks::webhooks(args, above).await,
            Command::Status(args) => watch::look(args, above, &status::LOOK).await,
            Command::Jobs(args) => watch::look(args, above, &jobs::LOOK).await,
            Command::Usage(args) => watch::look(args, above, &usage::LOOK).await,
            Command::Forecast(args) => forecast::forecast(args, above).await,
            _ if !above.is_empty() => Err(Failure::wrong(
                "--config, --account, --listen and --upstream before this command do nothing; see its own --help",
            )),
            Command::Init(args) => init::init(&args),
            Command::Demo(args) => demo::demo(args).await,
            Command::Mock(args) => mock::mock(args).await,
            Command::Schema => Ok(schema::schema()),
            Command::Man(args) => man::man(&args),
            Command::Explain { code } => explain::explain(code.as_deref()),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(
                    shell,
                    &mut <Self as clap::CommandFactory>::command(),
                    "sluicegate",
                    &mut script,
                );
                say_bytes(&script);
                Ok(0)
            }
        }
    }
}

impl ConfigFlags {
    /// Flags after the command win over those before it.
    fn or(self, above: Self) -> Flags {
        let Self { config, account, listen, upstream } = self.over(above);
        Flags { config, account, listen, upstream }
    }

    fn over(self, above: Self) -> Self {
        Self {
            config: self.config.or(above.config),
            account: self.account.or(above.account),
            listen: self.listen.or(above.listen),
            upstream: self.upstream.or(above.upstream),
        }
    }

    fn is_empty(&self) -> bool {
        self.config.is_none() && self.account.is_none() && self.listen.is_none() && self.upstream.is_none()
    }
}

/// A line for stdout. A reader that has left (`| head`) is no error.
fn say(line: impl std::fmt::Display) {
    say_bytes(format!("{line}\n").as_bytes());
}

/// A line for stderr, likewise.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn say_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Whether to colour what is written there (<https://no-color.org>).
fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value: OsString| value.is_empty())
}

/// The base URL under which an address that we listen on is reached from this machine.
fn base_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_command() {
        let cli = Cli::parse_from([
            "sluicegate",
            "--listen",
            "127.0.0.1:1",
            "--account",
            "a",
            "run",
            "--listen",
            "127.0.0.1:2",
        ]);
        let Some(Command::Run(flags)) = cli.command else { panic!("run") };
        let flags = flags.or(cli.flags);
        assert_eq!((flags.listen.as_deref(), flags.account.as_deref()), (Some("127.0.0.1:2"), Some("a")));
    }

    #[test]
    fn any_address_is_reached_over_loopback() {
        let url = |text: &str| base_url(text.parse().expect("an address"));
        assert_eq!(url("0.0.0.0:8787"), "http://127.0.0.1:8787");
        assert_eq!(url("[::]:1"), "http://[::1]:1");
        assert_eq!(url("192.0.2.1:1"), "http://192.0.2.1:1");
    }
}
