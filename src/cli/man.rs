//! `sluicegate man`: the manual's pages, for whoever packs the program.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, Failure, say, say_bytes};

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for the program and one for each command there, instead of the program's to stdout
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn man(args: &ManArgs) -> Result<u8, Failure> {
    // Pages about help pages are nobody's.
    let mut program = Cli::command().disable_help_subcommand(true);
    // Fills in what the pages show of each command.
    program.build();
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page)?;
        say_bytes(&page);
        return Ok(0);
    };
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(program, directory)?;
    say(format_args!("wrote the pages to {}", directory.display()));
    Ok(0)
}
