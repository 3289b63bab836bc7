//! That everybody can use the pages: what axe-core finds, in both themes, on a phone and a wide screen, empty and full.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_testkit::settings::ADMIN;
use serde_json::json;

use super::driver::{Browser, axe, browser_or_leave_out};
use crate::suite::{Suite, event};

const PAGES: [&str; 10] = [
    "/dashboard",
    "/dashboard?days=365",
    "/dashboard/keys",
    "/dashboard/billing",
    "/dashboard/billing/plan?plan=pro",
    "/admin",
    "/admin/users",
    "/admin/accounts/eco_pro",
    "/admin/billing",
    "/dashboard/keys/none",
];

async fn look(browser: &Browser, width: u32, theme: &str) -> Result<()> {
    let screen = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
    browser.cdp("Emulation.setDeviceMetricsOverride", screen).await?;
    let media = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
    browser.cdp("Emulation.setEmulatedMedia", media).await
}

/// Nothing is wider than the screen, but what scrolls by itself.
async fn check_width(browser: &Browser) -> Result<()> {
    let widths = browser
        .driver
        .execute("return [document.documentElement.scrollWidth, window.innerWidth]", vec![])
        .await?;
    let (page, screen) = (widths.json()[0].as_i64(), widths.json()[1].as_i64());
    anyhow::ensure!(page <= screen, "{} is {page:?} wide on {screen:?}", browser.path().await?);
    Ok(())
}

#[tokio::test]
async fn everybody_can_use_the_pages() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    let axe = axe()?;
    suite.account(ADMIN, Plan::Enterprise).await?;
    suite.account("eco_pro", Plan::Pro).await?;
    browser.open("/sign-in").await?;
    browser.check_access(&axe).await?;
    browser.sign_in(ADMIN, "/admin").await?;
    for full in [false, true] {
        if full {
            let long = "/v1/organisations/{organisation_id}/projects/{project_id}/environments/{environment_id}/keys";
            suite.record(vec![event(ADMIN, long, 200, 2_000), event("eco_pro", long, 500, 105_000)]).await?;
            suite.api_key(ADMIN, true).await?;
            suite.run_overage().await?;
        }
        // Colours are the theme's, and what is seen is the width's: each is looked at with something on the pages.
        let looks = if full {
            &[(375, "light", true), (768, "light", false), (1280, "dark", true)][..]
        } else {
            &[(375, "dark", true), (1280, "light", false)]
        };
        for (width, theme, with_axe) in looks {
            look(&browser, *width, theme).await?;
            for path in PAGES {
                browser.open(path).await?;
                check_width(&browser).await?;
                if *with_axe {
                    let access = browser.check_access(&axe).await;
                    access.with_context(|| format!("{width} {theme} full: {full}"))?;
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_pages_are_gone_through_by_keys_alone() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    browser.sign_in("eco_pro", "/dashboard").await?;
    let press = async |keys: &str| anyhow::Ok(browser.driver.active_element().await?.send_keys(keys).await?);
    // The first stop leads past the navigation, to the content.
    press("\u{e004}").await?;
    let first = browser.driver.active_element().await?;
    assert_eq!(first.text().await?, "Skip to the content");
    first.send_keys("\u{e007}").await?;
    let focused = browser.driver.execute("return document.activeElement.id", vec![]).await?;
    assert_eq!(focused.json(), "main");
    // Within few stops, the cap's field, and from there the button.
    let mut stops = 0;
    while browser.driver.active_element().await?.id().await?.as_deref() != Some("spend_cap") {
        press("\u{e004}").await?;
        stops += 1;
        anyhow::ensure!(stops < 15, "the field is not reached by keys");
    }
    press("7\u{e007}").await?;
    browser.until_text("[data-figure=cap]", "$7.00").await?;
    browser.finish().await
}
