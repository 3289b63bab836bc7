//! `nexus completions`, as shells load it.

use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{run, text};

async fn script(shell: &str) -> Result<String> {
    let output = run(&["completions", shell]).await?;
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// What bash says to the end of a script; it must end well.
async fn bash(arguments: &[&str], script: &str) -> Result<String> {
    let mut child = Command::new("bash")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    child.stdin.take().context("piped")?.write_all(script.as_bytes()).await?;
    let output = child.wait_with_output().await?;
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

#[tokio::test]
async fn bash_completes_commands_their_flags_and_plans() -> Result<()> {
    let script = script("bash").await?;
    bash(&["--norc", "-n"], &script).await?;
    for (words, completed) in [
        ("nexus acc", "accounts"),
        ("nexus usage endp", "endpoints"),
        ("nexus charges ex", "explain"),
        ("nexus keys rotate --gra", "--grace"),
        ("nexus accounts plan enter", "enterprise"),
        ("nexus accounts list --sort rev", "revenue"),
    ] {
        let asked = format!(
            "{script}
            COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _nexus nexus \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"
            echo \"${{COMPREPLY[@]}}\""
        );
        assert_eq!(bash(&["--norc"], &asked).await?.trim(), completed, "{words}");
    }
    Ok(())
}

#[tokio::test]
async fn other_shells_are_told_of_every_command() -> Result<()> {
    for (shell, begin) in [("zsh", "#compdef nexus\n"), ("fish", "# Print an optspec")] {
        let script = script(shell).await?;
        assert!(script.starts_with(begin), "{shell}: {script}");
        for command in
            ["usage", "accounts", "keys", "charges", "overage", "completions", "endpoints", "explain"]
        {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let unknown = run(&["completions", "tcsh"]).await?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("[possible values: bash, "), "{}", text(&unknown.stderr));
    Ok(())
}

/// Each example of a group of commands is one that the command line takes.
#[tokio::test]
async fn the_help_of_each_group_of_commands_has_examples_that_hold() -> Result<()> {
    for group in ["accounts", "keys", "charges", "overage"] {
        let output = run(&[group, "--help"]).await?;
        let help = text(&output.stdout);
        let (_, examples) = help.split_once("Examples:").context(help.clone())?;
        let examples: Vec<&str> = examples.lines().filter(|line| line.starts_with("  nexus ")).collect();
        assert!(examples.len() >= 3, "{group}: {help}");
        for example in examples {
            let command = example.trim().split("   ").next().unwrap_or_default();
            // `--help` comes after what is before it was read.
            let words: Vec<&str> = command.split_whitespace().skip(1).collect();
            let unknown = run(&[&words[..2], &["--help"]].concat()).await?;
            assert!(unknown.status.success(), "{command}: {}", text(&unknown.stderr));
            let flags = text(&unknown.stdout);
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(flags.contains(flag), "{command}: {flag}");
            }
        }
    }
    Ok(())
}
