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
    subscription: billing::Subscription,
    /// Of a closed account there is none.
    forecast: Option<analytics::ForecastUsageResponse>,
    end: DateTime<Utc>,
    /// By the database's clock.
    pub now: DateTime<Utc>,
}

impl Standing {
    /// Of an account; empty: the user's own.
    pub async fn of(app: &App, user: &User, eco_id: &str) -> Result<Self, Error> {
        let (usage, overage, subscription, forecast) = tokio::try_join!(
            app.backend.current_usage(user, eco_id),
            app.backend.overage(user, eco_id),
            app.backend.subscription(user, eco_id),
            forecast(app, user, eco_id),
        )?;
        let end = convert::required_time("period_end", usage.period_end_time.as_ref())?;
        let now = convert::optional_time("server_time", usage.server_time.as_ref())?.unwrap_or_else(Utc::now);
        Ok(Self { usage, overage, subscription, forecast, end, now })
    }

    /// Whether it is closed: nothing is to come of it, and nothing can be changed.
    pub fn is_closed(&self) -> bool {
        self.forecast.is_none()
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
        let share = match self.usage.limit_count {
            0 => self.usage.usage_percentage / 100.0,
            limit => self.usage.api_calls_count as f64 / limit as f64,
        };
        format!("{used} of {limit} calls are used, {}", show::percent(share))
    }

    fn left(&self) -> String {
        match self.usage.overage_count {
            _ if self.usage.limit_count < 0 => "No limit".to_owned(),
            0 => format!("{} calls left", thousands(self.usage.remaining_count)),
            over => format!("{} calls beyond the included ones", thousands(over)),
        }
    }

    /// Why calls are refused now, by what the services go by; empty: they are not.
    fn refusal(&self) -> Result<String, Error> {
        let until = show::day(self.end);
        if self.is_closed() {
            return Ok("The account is closed: calls are refused.".to_owned());
        }
        let limit = self.usage.hard_limit_count;
        if limit < 0 || self.usage.consumed_count < limit {
            return Ok(String::new());
        }
        let (plan, calls) = (show::plan(self.usage.plan)?, thousands(limit));
        let granted = convert::subscription_status(self.subscription.status)?.grants_plan();
        Ok(if !granted {
            let status = show::status(self.subscription.status()).to_lowercase();
            format!(
                "The subscription is {status}, so the Free plan's limit of {calls} calls holds, and it is reached: calls \
                 are refused until {until}, or until the subscription is in order."
            )
        } else if self.overage.spend_cap_limit_count >= 0 {
            format!(
                "The spend cap is reached: all {calls} calls that it allows are used. Calls are refused until {until}, or \
                 until the cap is raised or removed."
            )
        } else {
            format!(
                "The limit of the {plan} plan is reached: calls are refused until {until}, or until the plan is a larger \
                 one."
            )
        })
    }

    /// The figures that are kept up to date, as the page shows them.
    pub fn figures(&self) -> Result<Figures, Error> {
        let mut figures = Figures::new();
        figures.set("calls", thousands(self.usage.api_calls_count));
        figures.set("left", self.left());
        figures.set("overage", show::money(self.overage.overage_micros, self.currency())?);
        figures.set("overage-calls", thousands(self.usage.overage_count));
        figures.set("refusal", self.refusal()?);
        if self.usage.limit_count >= 0 {
            figures.set_meter(self.usage.usage_percentage, self.sentence(), !self.refusal()?.is_empty());
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
        let refusal = self.refusal()?;
        Ok(html! {
            section class="panel standing" aria-labelledby="standing" {
                h2 id="standing" { "This period" }
                p class="big" {
                    span data-figure="calls" { (thousands(self.usage.api_calls_count)) }
                    @if self.usage.limit_count >= 0 { span class="of" { " of " (thousands(self.usage.limit_count)) " calls" } }
                    @else { span class="of" { " calls, no limit" } }
                }
                @if self.usage.limit_count >= 0 {
                    (part::meter("Included calls used", self.usage.usage_percentage, &self.sentence(), !refusal.is_empty()))
                }
                p class="under" {
                    span data-figure="left" { (self.left()) }
                    span { (show::until(self.end, self.now)) " left, until " (show::date(self.end)) " (UTC)" }
                }
                // Empty where nothing is refused: then it is not seen.
                p class="notice alert" role="status" data-figure="refusal" { (refusal) }
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
