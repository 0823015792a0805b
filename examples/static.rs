//! The program once more, for `scripts/rootfs` to link it statically without building anything else anew.

use std::process::ExitCode;

use clap::Parser;
use sluicegate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the system has threads and descriptors left");
    let code = runtime.block_on(cli.run());
    runtime.shutdown_background();
    ExitCode::from(code)
}
