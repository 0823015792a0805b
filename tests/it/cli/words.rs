//! What is only printed: help, explanations, completions, variables for a shell.

use std::fs;

use tokio::process::Command;

use crate::support::program::{Place, ended};

#[tokio::test]
async fn help_names_every_command() {
    let place = Place::new();
    let help = place.run(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    let commands = help.out.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = "run check init demo mock env exec healthcheck doctor webhooks status jobs usage forecast explain completions schema man help";
    assert_eq!(names.join(" "), expected);
    for flag in ["--config <FILE>", "--account <NAME>", "--listen <ADDR>", "--upstream <URL>"] {
        assert!(help.out.contains(flag), "{flag}\n{}", help.out);
    }
    let version = place.run(&["--version"]).await;
    assert_eq!(version.out, format!("sluicegate {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_2() {
    let place = Place::new();
    for arguments in
        [&["frobnicate"][..], &["--colour"], &["exec"], &["--config", "x.toml", "mock"], &["demo", "--n", "0"]]
    {
        let run = place.run(arguments).await;
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{arguments:?}: {}", run.err);
    }
}

#[tokio::test]
async fn explain_prints_a_section_lists_all_and_suggests() {
    let place = Place::new();
    let one = place.run(&["explain", "queue_timeout"]).await;
    assert_eq!(one.code, Some(0));
    assert!(one.out.starts_with("## queue_timeout\n\n429 "), "{}", one.out);
    assert_eq!(one.out.matches("## ").count(), 1, "{}", one.out);
    let all = place.run(&["explain"]).await;
    assert_eq!(all.code, Some(0));
    assert!(all.out.lines().count() > 15 && all.out.contains("outcome_unknown        502 "), "{}", all.out);
    let near = place.run(&["explain", "queue_timout"]).await;
    assert_eq!(near.code, Some(2));
    assert!(near.err.contains("did you mean queue_timeout?"), "{}", near.err);
}

#[tokio::test]
async fn completions_are_made_for_shells() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = place.run(&["completions", shell]).await;
        assert_eq!(run.code, Some(0));
        assert!(run.out.contains("healthcheck"), "{shell}");
    }
}

#[tokio::test]
async fn env_is_read_by_a_shell() {
    let place = Place::new();
    let run = place.run(&["env", "--listen", "127.0.0.1:9999"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    fs::write(place.join("env.sh"), &run.out).unwrap();
    let script =
        ". ./env.sh; echo $OPENAI_BASE_URL $ANTHROPIC_BASE_URL $GOOGLE_GEMINI_BASE_URL $CORE_API_BASE $OPENAI_API_KEY";
    let mut shell = Command::new("sh");
    let shell = ended(shell.args(["-c", script]).current_dir(place.path()).env_clear()).await;
    let base = "http://127.0.0.1:9999";
    let expected = format!("{base}/llm/openai/v1 {base}/llm/anthropic {base}/llm/gemini {base} sluicegate\n");
    assert_eq!((shell.out, shell.err.as_str()), (expected, ""));
    assert!(run.out.contains("v1beta"), "{}", run.out);
    let fish = place.run(&["env", "--shell", "fish"]).await;
    assert!(fish.out.contains("set -gx OPENAI_BASE_URL http://127.0.0.1:8787/llm/openai/v1\n"), "{}", fish.out);
}
