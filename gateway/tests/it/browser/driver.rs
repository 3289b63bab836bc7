//! A browser of a test's own, without a window.

use std::{
    env,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nexus_testkit::settings::user_token;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    By, CapabilitiesHelper, ChromiumLikeCapabilities, DesiredCapabilities, WebDriver, WebElement,
    error::WebDriverErrorInner,
    prelude::{ElementQueryable, ElementWaitable},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::suite::Suite;

const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];
const PATIENCE: Duration = Duration::from_secs(20);
/// How many ports are tried: each is taken by chance alone.
const STARTS: u32 = 20;
const POLL: Duration = Duration::from_millis(50);

/// A browser with one window.
pub(super) struct Browser {
    /// Never dropped: that would block this thread until the driver answers, whom this thread is to hear.
    pub(super) driver: ManuallyDrop<WebDriver>,
    gateway: String,
    process: Child,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver leads a group, which the browser's processes are in.
        if let Some(id) = self.process.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended by itself.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// Where a program is, if it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Browser {
    /// A browser, where one is installed.
    pub(super) async fn start(suite: &Suite) -> Result<Option<Self>> {
        let (Some(chromium), Some(chromedriver)) = (program("chromium"), program("chromedriver")) else {
            return Ok(None);
        };
        let profile = TempDir::new()?;
        let (process, port) = start_driver(&chromedriver).await?;
        let mut wanted = DesiredCapabilities::chrome();
        wanted.set_binary(&chromium.display().to_string())?;
        for flag in FLAGS {
            wanted.add_arg(flag)?;
        }
        wanted.add_arg(&format!("--user-data-dir={}", profile.path().display()))?;
        wanted.set("goog:loggingPrefs", json!({"browser": "ALL", "performance": "ALL"}))?;
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await?;
        driver.set_page_load_timeout(PATIENCE).await?;
        Ok(Some(Self {
            driver: ManuallyDrop::new(driver),
            gateway: suite.gateway.clone(),
            process,
            _profile: profile,
        }))
    }

    /// Ends it; fails if a page had an error, or asked anybody but the gateway for anything.
    pub(super) async fn finish(self) -> Result<()> {
        self.check_console().await?;
        self.check_requests().await?;
        WebDriver::clone(&self.driver).quit().await?;
        Ok(())
    }

    async fn check_console(&self) -> Result<()> {
        let log = self.driver.get_log("browser").await?;
        let errors: Vec<_> =
            log.iter().filter(|entry| entry.level != "INFO").map(|entry| &entry.message).collect();
        ensure!(errors.is_empty(), "the console has: {errors:?}");
        Ok(())
    }

    async fn check_requests(&self) -> Result<()> {
        let log = self.driver.get_log("performance").await?;
        let mut asked = 0;
        for entry in log {
            let event: Value = serde_json::from_str(&entry.message)?;
            if event["message"]["method"] != "Network.requestWillBeSent" {
                continue;
            }
            let asked_by = event["message"]["params"]["documentURL"].as_str().unwrap_or_default();
            if ["chrome://", "chrome-untrusted://"].iter().any(|own| asked_by.starts_with(own)) {
                // The browser's own first page, and what is in it.
                continue;
            }
            let url = event["message"]["params"]["request"]["url"].as_str().context("a request's address")?;
            ensure!(url.starts_with(&self.gateway), "a page asked {url}");
            asked += 1;
        }
        ensure!(asked > 0, "the browser says nothing of its requests");
        Ok(())
    }

    /// Opens a page of the gateway.
    pub(super) async fn open(&self, path: &str) -> Result<()> {
        Ok(self.driver.goto(format!("{}{path}", self.gateway)).await?)
    }

    /// Signs in as a person does, on the way to a page.
    pub(super) async fn sign_in(&self, eco_id: &str, path: &str) -> Result<()> {
        self.open(path).await?;
        self.fill("token", &user_token(eco_id)?).await?;
        self.press("Sign in").await?;
        ensure!(self.path().await?.starts_with(path), "led to {}", self.path().await?);
        Ok(())
    }

    /// The path of the page, with its query.
    pub(super) async fn path(&self) -> Result<String> {
        let url = self.driver.current_url().await?;
        Ok(url.as_str().strip_prefix(&self.gateway).context("a page of the gateway")?.to_owned())
    }

    /// The first element, once it is there.
    pub(super) async fn find(&self, css: &str) -> Result<WebElement> {
        Ok(self.driver.query(By::Css(css)).wait(PATIENCE, POLL).first().await?)
    }

    /// The text of an element as it is seen.
    pub(super) async fn text(&self, css: &str) -> Result<String> {
        Ok(self.find(css).await?.text().await?)
    }

    /// The texts of all elements.
    pub(super) async fn texts(&self, css: &str) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for element in self.driver.find_all(By::Css(css)).await? {
            texts.push(element.text().await?);
        }
        Ok(texts)
    }

    /// Fills a field by its id.
    pub(super) async fn fill(&self, id: &str, text: &str) -> Result<()> {
        let field = self.find(&format!("#{id}")).await?;
        field.clear().await?;
        Ok(field.send_keys(text).await?)
    }

    /// Chooses from a list by the value.
    pub(super) async fn choose(&self, id: &str, value: &str) -> Result<()> {
        Ok(self.find(&format!("#{id} option[value='{value}']")).await?.click().await?)
    }

    /// Presses what is called so: a button, or a link; returns once the next page is there.
    pub(super) async fn press(&self, name: &str) -> Result<()> {
        let called = format!("//*[self::button or self::a][not(@hidden)][normalize-space()='{name}']");
        let found = self.driver.query(By::XPath(called)).wait(PATIENCE, POLL).first().await;
        let element = found.with_context(|| format!("nothing is called {name:?}"))?;
        self.go_by(element).await
    }

    /// Follows a link, or sends a form, by its button.
    pub(super) async fn follow(&self, css: &str) -> Result<()> {
        self.go_by(self.find(css).await?).await
    }

    /// Until the page is gone: what is looked for then is on the next one.
    async fn go_by(&self, element: WebElement) -> Result<()> {
        let page = self.find("html").await?;
        element.click().await?;
        page.wait_until().wait(PATIENCE, POLL).stale().await.context("it leads to no other page")
    }

    /// Waits until an element has this text.
    pub(super) async fn until_text(&self, css: &str, text: &str) -> Result<()> {
        let wanted = text.to_owned();
        let element = self.driver.query(By::Css(css)).with_filter(move |element: WebElement| {
            let wanted = wanted.clone();
            async move {
                match element.text().await {
                    Ok(text) => Ok(text == wanted),
                    // Of a page that was left meanwhile.
                    Err(gone) if matches!(gone.as_inner(), WebDriverErrorInner::StaleElementReference(_)) => {
                        Ok(false)
                    }
                    Err(error) => Err(error),
                }
            }
        });
        element.wait(PATIENCE, POLL).first().await.with_context(|| format!("{css} never said {text:?}"))?;
        Ok(())
    }

    /// Has the browser do what WebDriver has no words for.
    pub(super) async fn cdp(&self, command: &str, parameters: Value) -> Result<()> {
        self.driver.cdp().send_raw(command, parameters).await?;
        Ok(())
    }

    /// What axe-core finds that people cannot use.
    pub(super) async fn check_access(&self, axe: &str) -> Result<()> {
        self.driver.execute(axe, vec![]).await?;
        let run = "const done = arguments[arguments.length - 1]; \
                   axe.run(document, {resultTypes: ['violations', 'incomplete']}).then(done, e => done(String(e)));";
        let found = self.driver.execute_async(run, vec![]).await?;
        let found = found.json();
        let Some(violations) = found["violations"].as_array() else { bail!("axe-core did not run: {found}") };
        ensure!(
            found["passes"].as_array().is_some_and(|passes| passes.len() > 5),
            "axe-core has looked at nothing: {found}"
        );
        let serious: Vec<_> = violations
            .iter()
            .map(|violation| {
                format!("{}: {} at {}", violation["impact"], violation["help"], violation["nodes"][0]["html"])
            })
            .collect();
        ensure!(serious.is_empty(), "{}: {serious:#?}", self.path().await?);
        Ok(())
    }
}

/// Starts the driver, and says its port. It chooses one that is free for IPv4 and takes the same for IPv6: where
/// somebody has that one, it says so and ends, and is started anew.
async fn start_driver(chromedriver: &Path) -> Result<(Child, u16)> {
    for _ in 0..STARTS {
        let mut process = Command::new(chromedriver)
            .args(["--port=0", "--log-level=SEVERE"])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let port = tokio::time::timeout(PATIENCE, port(&mut process)).await;
        if let Some(port) = port.context("the driver does not start")?? {
            return Ok((process, port));
        }
    }
    bail!("the driver found no free port in {STARTS} tries")
}

/// The port that the driver says it listens on; none if it was taken.
async fn port(process: &mut Child) -> Result<Option<u16>> {
    let stdout = process.stdout.take().context("the driver's output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut said = String::new();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let port = port.trim_end_matches('.').parse().with_context(|| line.clone())?;
            // What it and the browser write goes on being read: a closed pipe would end them.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(Some(port));
        }
        if line.contains("port not available") {
            return Ok(None);
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("the driver ended, having said: {said}")
}

/// axe-core, which `scripts/tools axe.min.js` brings.
pub(super) fn axe() -> Result<String> {
    let file = program("axe.min.js")
        .context("axe.min.js is not on PATH: PATH=\"$(scripts/tools axe.min.js):$PATH\"")?;
    Ok(std::fs::read_to_string(file)?)
}

/// The browser, or the end of the test where none is installed.
macro_rules! browser_or_leave_out {
    ($suite:expr) => {
        match $crate::browser::driver::Browser::start($suite).await? {
            Some(browser) => browser,
            None => return Ok(()),
        }
    };
}
pub(super) use browser_or_leave_out;
