//! Arguments, runtime, exit code. What the commands do: `sluicegate::cli`.

use std::process::ExitCode;

use clap::Parser;
use sluicegate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The proxy's requests live on worker threads of their own; this runtime accepts connections and waits for signals.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the system refuses to start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    // Not dropped: work that the drain gave up on must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}
