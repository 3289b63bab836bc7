//! Where an account stands: against its limit, and with its overage.

use chrono::{DateTime, Utc};
use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_proto::{analytics::v1 as analytics, billing::v1 as billing, usage::v1 as usage};

use super::{live::Figures, part, show};
use crate::{App, auth::User, convert, error::Error};

/// What the page's head is made of.
pub struct Standing {
    /// Its usage.
    pub usage: usage::GetCurrentUsageResponse,
    /// Its overage.
    pub overage: billing::GetOverageResponse,
    /// Of a closed account there is none.
    forecast: Option<analytics::ForecastUsageResponse>,
    end: DateTime<Utc>,
    /// By the database's clock.
    pub now: DateTime<Utc>,
}

impl Standing {
    /// Of an account; empty: the user's own.
    pub async fn of(app: &App, user: &User, eco_id: &str) -> Result<Self, Error> {
        let (usage, overage, forecast) = tokio::try_join!(
            app.backend.current_usage(user, eco_id),
            app.backend.overage(user, eco_id),
            forecast(app, user, eco_id),
        )?;
        let end = convert::required_time("period_end", usage.period_end_time.as_ref())?;
        let now = convert::optional_time("server_time", usage.server_time.as_ref())?.unwrap_or_else(Utc::now);
        Ok(Self { usage, overage, forecast, end, now })
    }

    /// Of its money.
    pub fn currency(&self) -> &str {
        &self.overage.currency_code
    }

    /// How far the included calls are used, in a sentence.
    fn sentence(&self) -> String {
        let used = thousands(self.usage.api_calls_count);
        if self.usage.limit_count < 0 {
            return format!("{used} calls in this period, without a limit");
        }
        let limit = thousands(self.usage.limit_count);
        format!("{used} of {limit} calls are used, {:.1} %", self.usage.usage_percentage)
    }

    fn left(&self) -> String {
        match self.usage.overage_count {
            _ if self.usage.limit_count < 0 => "No limit".to_owned(),
            0 => format!("{} calls left", thousands(self.usage.remaining_count)),
            over => format!("{} calls beyond the included ones", thousands(over)),
        }
    }

    /// The figures that are kept up to date, as the page shows them.
    pub fn figures(&self) -> Result<Figures, Error> {
        let mut figures = Figures::new();
        figures.set("calls", thousands(self.usage.api_calls_count));
        figures.set("left", self.left());
        figures.set("overage", show::money(self.overage.overage_micros, self.currency())?);
        figures.set("overage-calls", thousands(self.usage.overage_count));
        if self.usage.limit_count >= 0 {
            figures.set_meter(self.usage.usage_percentage, self.sentence());
        }
        Ok(figures)
    }

    /// What is expected of the period's end.
    fn outlook(&self) -> Result<Markup, Error> {
        let Some(forecast) = &self.forecast else {
            return Ok(html! { "The account is closed: nothing is to come." });
        };
        let expected = thousands(forecast.expected_count);
        let (low, high) = (thousands(forecast.low_count), thousands(forecast.high_count));
        let reached = convert::optional_time("limit_reached_time", forecast.limit_reached_time.as_ref())?;
        Ok(html! {
            "About " strong { (expected) } " calls are expected by " (show::date(self.end))
            " (" (low) " – " (high) "). "
            @match reached {
                Some(at) if at <= self.now => { "All " (thousands(forecast.limit_count)) " calls are used." }
                Some(at) => { "All " (thousands(forecast.limit_count)) " are used up about " strong { (show::date(at)) } "." }
                None if forecast.limit_count >= 0 => { "The " (thousands(forecast.limit_count)) " calls last until then." }
                None => {}
            }
        })
    }

    /// Where the account stands.
    pub fn panel(&self) -> Result<Markup, Error> {
        let plan = show::plan(self.usage.plan)?;
        let hard =
            self.usage.limit_count >= 0 && self.usage.remaining_count == 0 && self.overage.overage_count == 0;
        Ok(html! {
            section class="panel standing" aria-labelledby="standing" {
                h2 id="standing" { "This period" }
                p class="big" {
                    span data-figure="calls" { (thousands(self.usage.api_calls_count)) }
                    @if self.usage.limit_count >= 0 { span class="of" { " of " (thousands(self.usage.limit_count)) " calls" } }
                    @else { span class="of" { " calls, no limit" } }
                }
                @if self.usage.limit_count >= 0 {
                    (part::meter("Included calls used", self.usage.usage_percentage, &self.sentence(), hard))
                }
                p class="under" {
                    span data-figure="left" { (self.left()) }
                    span { (show::until(self.end, self.now)) " left, until " (show::date(self.end)) " (UTC)" }
                }
                @if hard {
                    p class="notice alert" { "The limit of the " (plan) " plan is reached: calls are refused until " (show::date(self.end)) ", or until the plan is a larger one." }
                }
                p class="outlook" { (self.outlook()?) }
            }
        })
    }

    /// What the overage costs.
    pub fn money(&self) -> Result<Markup, Error> {
        let (overage, currency) = (&self.overage, self.currency());
        let charged = show::money(overage.billed_micros, currency)?;
        let expected = match &self.forecast {
            Some(forecast) => show::money(forecast.expected_overage_micros, &forecast.currency_code)?,
            None => "–".to_owned(),
        };
        let range = match &self.forecast {
            Some(f) => {
                let (low, high) = (f.low_overage_micros, f.high_overage_micros);
                let (low, high) = (show::money(low, &f.currency_code)?, show::money(high, &f.currency_code)?);
                html! { (low) " – " (high) " by the period's end" }
            }
            None => html! { "by the period's end" },
        };
        let cap = overage.spend_cap_micros.map(|cap| show::money(cap, currency)).transpose()?;
        let left = overage.spend_cap_left_micros.map(|left| show::money(left, currency)).transpose()?;
        Ok(html! {
            dl class="figures" {
                (part::figure("Overage so far", "overage", &show::money(overage.overage_micros, currency)?, &html! {
                    span data-figure="overage-calls" { (thousands(self.usage.overage_count)) } " calls, " (charged) " of it charged"
                }))
                (part::figure("Expected overage", "expected-overage", &expected, &range))
                (part::figure("Spend cap", "cap", cap.as_deref().unwrap_or("None"), &html! {
                    @match &left { Some(left) => { (left) " left in this period" }, None => "overage may cost any amount" }
                }))
            }
        })
    }
}

async fn forecast(
    app: &App,
    user: &User,
    eco_id: &str,
) -> Result<Option<analytics::ForecastUsageResponse>, Error> {
    match app.backend.forecast(user, eco_id).await {
        Ok(forecast) => Ok(Some(forecast)),
        Err(Error::AccountClosed) => Ok(None),
        Err(error) => Err(error),
    }
}
