//! Programs that check what is shipped: Python with validators, Helm, kubectl. Fetched by tests/deploy/prepare.py, kept below `target`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::sync::OnceCell;

/// Python with the packages of tests/deploy/requirements.txt, from the repository's top.
pub async fn python(arguments: &[&str]) -> Command {
    tool("python", arguments).await
}

/// `python`, `helm` or `kubectl`, from the repository's top, with no cluster to talk to.
pub async fn tool(name: &str, arguments: &[&str]) -> Command {
    let environment = environment().await;
    let bin = environment.join("bin");
    let mut command = Command::new(bin.join(name));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()))
        .env("HOME", environment)
        .env("KUBECONFIG", "/dev/null")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Made by the first test that needs it, and looked at once in a process.
async fn environment() -> &'static Path {
    static MADE: OnceCell<PathBuf> = OnceCell::const_new();
    MADE.get_or_init(prepare).await
}

async fn prepare() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../deploy-venv");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let prepare = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/prepare.py");
    let mut command = Command::new(python);
    // Thousands of small files: minutes, where the machine is busy. Whatever hangs is ended by the test runner.
    let made = command.arg(prepare).arg(&directory).stdin(Stdio::null()).output().await.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

/// Whether a program is on this machine.
pub fn is_there(program: &str) -> bool {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .any(|place| Path::new(place).join(program).exists())
}
