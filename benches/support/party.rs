//! Servers in processes of their own: Sluicegate as it is shipped, nginx and HAProxy where they are installed, a plain TCP relay.

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// Which role a copy of the bench plays, when it was started as a party.
pub(crate) const ROLE: &str = "SLUICEGATE_BENCH_ROLE";
/// Where a party sends what it is sent.
pub(crate) const UPSTREAM: &str = "SLUICEGATE_BENCH_UPSTREAM";
/// Where a party listens.
pub(crate) const LISTEN: &str = "SLUICEGATE_BENCH_LISTEN";
/// A directory of the party's own.
pub(crate) const DIRECTORY: &str = "SLUICEGATE_BENCH_DIRECTORY";

/// Another build of the program, to be measured in place of the one that cargo built beside the bench. The program refuses
/// variables of its own name that it does not know.
const PROGRAM: &str = "BENCH_PROGRAM";

/// A log line of nginx with the fields of ours, as far as it has them.
const NGINX_JSON: &str = r#"{"timestamp":"$time_iso8601","level":"INFO","message":"request","request_id":"$request_id","client":"$remote_addr","account":"bench","class":"other","method":"$request_method","path":"$uri","status":$status,"attempts":1,"queue_ms":0,"upstream_ms":"$upstream_response_time","total_ms":$request_time,"bytes":$body_bytes_sent,"complete":"$request_completion"}"#;

/// A server in a process of its own, ended by drop.
pub(crate) struct Party {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    child: Child,
    directory: PathBuf,
}

impl Party {
    /// Runs `command` and waits until its port is open.
    fn start(name: &'static str, address: SocketAddr, directory: PathBuf, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        // A minute, for a program under valgrind.
        let open = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(child.try_wait().expect("a child").is_none(), "{name} ended at once");
            TcpStream::connect(address).is_ok()
        });
        assert!(open, "{name} does not listen on {address}");
        Self { name, address, child, directory }
    }

    /// A copy of this bench in another role.
    pub(crate) fn role(role: &'static str, cores: &str, upstream: Option<SocketAddr>) -> Self {
        let (address, directory) = (free_address(), directory());
        let mut command = pinned(cores, std::env::current_exe().expect("our own path"));
        command.env(ROLE, role).env(LISTEN, address.to_string()).env(DIRECTORY, &directory);
        if let Some(upstream) = upstream {
            command.env(UPSTREAM, upstream.to_string());
        }
        Self::start(role, address, directory, command)
    }

    /// The shipped program with `threads` workers. `settings` follows the plan `bench`, which `plan` fills.
    pub(crate) fn sluicegate(
        name: &'static str,
        cores: &str,
        threads: usize,
        url: &str,
        plan: &str,
        settings: &str,
    ) -> Self {
        let program = std::env::var_os(PROGRAM).unwrap_or_else(|| env!("CARGO_BIN_EXE_sluicegate").into());
        let command = pinned(cores, program);
        Self::program(name, command, threads, url, plan, settings)
    }

    /// The same with the program, and what comes before its arguments, as `command` says.
    pub(crate) fn program(
        name: &'static str,
        mut command: Command,
        threads: usize,
        url: &str,
        plan: &str,
        settings: &str,
    ) -> Self {
        let (address, directory) = (free_address(), directory());
        let config = directory.join("proxy.toml");
        let text = format!(
            "account = \"bench\"\n[server]\nlisten = \"{address}\"\nthreads = {threads}\n[admin]\nlisten = \"off\"\n\
             [upstream]\nurl = \"{url}\"\n[accounts.bench]\nplan = \"bench\"\nkey = {{ env = \"BENCH_KEY\" }}\n\
             [plans.bench]\n{plan}\n{settings}"
        );
        fs::write(&config, text).expect("a file");
        command.args(["run", "--config"]).arg(&config).env("BENCH_KEY", "bench-key");
        command.env("SSL_CERT_FILE", directory.join("../ca.pem"));
        command.stderr(fs::File::create(directory.join("log")).expect("a file"));
        Self::start(name, address, directory, command)
    }

    /// nginx with the least of our job: key, limit per client, limit of connections, keep-alive. `rate` may be followed by what
    /// `limit_req` is told of bursts. `None` where it is not installed.
    pub(crate) fn nginx(name: &'static str, cores: &str, url: &str, rate: &str, log: &str) -> Option<Self> {
        if !installed("nginx") {
            return None;
        }
        let (address, directory) = (free_address(), directory());
        let (config, (scheme, upstream)) = (directory.join("nginx.conf"), url.split_once("://")?);
        let (rate, burst) = rate.split_once(' ').unwrap_or((rate, ""));
        let place = directory.display();
        let text = format!(
            "daemon off; master_process off; worker_processes 1; error_log {place}/error.log crit; pid {place}/pid;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n log_format json escape=json '{NGINX_JSON}';\n access_log {log};\n client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
             fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
             keepalive_requests 100000000; client_max_body_size 64m; tcp_nodelay on;\n\
             limit_req_status 429; limit_req_zone $http_x_api_key zone=rate:1m rate={rate};\n\
             limit_conn_zone $http_x_api_key zone=live:1m;\n\
             upstream api {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}\n\
             server {{ listen {address} backlog=4096;\n location / {{\n\
             limit_req zone=rate {burst}; limit_conn live 60000;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host api;\n\
             proxy_set_header X-API-Key bench-key; proxy_ssl_session_reuse on;\n\
             proxy_next_upstream error timeout http_502 http_503;\n\
             proxy_pass {scheme}://api; }} }} }}\n",
            log = log.replace("DIRECTORY", &place.to_string()),
        );
        fs::write(&config, text).expect("a file");
        let mut command = pinned(cores, "nginx");
        command.arg("-c").arg(&config).arg("-p").arg(&directory).stderr(Stdio::null());
        Some(Self::start(name, address, directory, command))
    }

    /// HAProxy with the same job. `None` where it is not installed.
    pub(crate) fn haproxy(name: &'static str, cores: &str, upstream: SocketAddr, per_minute: u64) -> Option<Self> {
        if !installed("haproxy") {
            return None;
        }
        let (address, directory) = (free_address(), directory());
        let config = directory.join("haproxy.cfg");
        let text = format!(
            "global\n nbthread 1\n maxconn 8192\ndefaults\n mode http\n retries 3\n retry-on conn-failure 503\n\
             timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout http-keep-alive 60s\n\
             frontend data\n bind {address}\n stick-table type string len 64 size 10k expire 2m store http_req_rate(1m)\n\
             http-request track-sc0 req.hdr(x-api-key)\n\
             http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {per_minute} }}\n\
             http-request set-header X-API-Key bench-key\n default_backend api\n\
             backend api\n http-reuse always\n server api {upstream} maxconn 4096\n"
        );
        fs::write(&config, text).expect("a file");
        let mut command = pinned(cores, "haproxy");
        command.arg("-q").arg("-db").arg("-f").arg(&config).stderr(Stdio::null());
        Some(Self::start(name, address, directory, command))
    }

    /// Asks the program to end, and waits until it has.
    pub(crate) fn end(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it runs");
        assert!(self.child.wait().expect("a child").success(), "{} ended with an error", self.name);
    }

    /// Time on a processor of all threads so far, from the kernel's accounting in nanoseconds.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux");
        let nanos = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Memory in use, in KiB (resident set).
    pub(crate) fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Waits until the process does next to nothing, ten seconds at most.
    pub(crate) fn settle(&self) {
        let idle = (0..100).any(|_| {
            let before = self.cpu();
            std::thread::sleep(Duration::from_millis(100));
            self.cpu().saturating_sub(before) < Duration::from_millis(2)
        });
        assert!(idle, "{} does not come to rest", self.name);
    }

    /// What the file `name` in its directory holds.
    pub(crate) fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_else(|error| panic!("{}, {name}: {error}", self.name))
    }

    /// CPU time that `work` cost, in µs for each of `count`.
    pub(crate) fn cost_of(&self, count: usize, work: impl FnOnce()) -> f64 {
        let before = self.cpu();
        work();
        // The last answers are out before the last bookkeeping is done.
        std::thread::sleep(Duration::from_millis(20));
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let each = self.cpu().saturating_sub(before).as_secs_f64() * 1e6 / count as f64;
        each
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether a program is there to be started.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(program).is_file())
}

/// A program that will run on `cores` only, or wherever it likes where none are named.
fn pinned(cores: &str, program: impl AsRef<OsStr>) -> Command {
    if cores.is_empty() || !installed("taskset") {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program);
    command
}

/// Keeps this process, with what it starts unless told otherwise, on one core.
pub(crate) fn pin_ourselves(core: &str) {
    let ours = std::process::id().to_string();
    let _ = Command::new("taskset").args(["-a", "-c", "-p", core, &ours]).stdout(Stdio::null()).status();
}

/// Allows this process and those it starts as many open files as the system permits.
pub(crate) fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Where all parties of this run may leave files.
pub(crate) fn common_directory() -> PathBuf {
    std::env::temp_dir().join(format!("sluicegate-bench-{}", std::process::id()))
}

fn directory() -> PathBuf {
    let directory = common_directory().join(free_address().port().to_string());
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}
