//! `nexus usage show`.

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_proto::{
    analytics::v1::{
        DailyUsage, EndpointCount, ForecastUsageRequest, ForecastUsageResponse, GetUsageHistoryRequest,
    },
    usage::v1::{GetCurrentUsageRequest, GetCurrentUsageResponse},
};
use serde_json::{Value, json};

use crate::{
    call::{self, Account, AnalyticsAddr},
    table::{Column, Table},
    text::{self, fact, harmless, print, thousands, units},
};

pub(super) const HELP: &str = "\
Examples:
  nexus usage show                                     of the user whose token it is
  nexus usage show --account eco_demo_pro --days 14    an admin's, with the last two weeks day by day
  nexus usage show --forecast                          with what the period is expected to come to
  nexus usage show --account eco_demo_pro --json | jq .remaining
A user sees the own account; an admin any. A service token needs the scope usage.check, with --days or --forecast admin.
Exit code: 0 it was shown, 1 it failed.";

/// Parts of the meter.
const METER: i128 = 30;

const DAYS: &[Column] = &[
    Column::text("day"),
    Column::number("calls"),
    Column::number("2xx").spare(2),
    Column::number("4xx, 5xx"),
    Column::number("mean ms").spare(3),
    Column::text("busiest endpoint").spare(4),
];

#[derive(Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    account: Account,
    /// Also its usage a day, for so many days up to today (UTC)
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=365), value_name = "N")]
    days: Option<i32>,
    /// Also what the period is expected to come to
    #[arg(long)]
    forecast: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    usage: call::Usage,
    #[command(flatten)]
    analytics: AnalyticsAddr,
}

pub(super) async fn run(args: &ShowArgs) -> Result<()> {
    let eco_id = args.account.id();
    let request = args.usage.request(GetCurrentUsageRequest { eco_id: eco_id.clone() })?;
    let usage = args.usage.client()?.get_current_usage(request).await;
    let refused = |status| {
        let failed = args.usage.refused("GetCurrentUsage", &status);
        anyhow!(args.account.if_missing(failed, &args.usage.credentials, &status))
    };
    let usage = usage.map_err(refused)?.into_inner();
    let forecast = if args.forecast { Some(args.forecast(&eco_id).await?) } else { None };
    let days = match args.days {
        Some(days_count) => Some(args.days(eco_id, days_count).await?),
        None => None,
    };
    if args.json {
        return print(&format!("{:#}\n", as_json(&usage, forecast.as_ref(), days.as_deref())));
    }
    print(&as_text(&usage))?;
    if let Some(forecast) = &forecast {
        print(&forecast_text(forecast))?;
    }
    match days {
        Some(days) => print(&format!("\n{}", Table::new(DAYS).lines(days.iter().map(day_row)))),
        None => Ok(()),
    }
}

impl ShowArgs {
    async fn forecast(&self, eco_id: &str) -> Result<ForecastUsageResponse> {
        let request = self.usage.request(ForecastUsageRequest { eco_id: eco_id.to_owned() })?;
        let forecast = self.analytics.client(&self.usage.credentials)?.forecast_usage(request).await;
        let refused = |status| anyhow!(self.analytics.refused("ForecastUsage", &status));
        Ok(forecast.map_err(refused)?.into_inner())
    }

    async fn days(&self, eco_id: String, days_count: i32) -> Result<Vec<DailyUsage>> {
        let request = self.usage.request(GetUsageHistoryRequest { eco_id, days_count })?;
        let history = self.analytics.client(&self.usage.credentials)?.get_usage_history(request).await;
        let refused = |status| anyhow!(self.analytics.refused("GetUsageHistory", &status));
        Ok(history.map_err(refused)?.into_inner().days)
    }
}

fn as_json(
    u: &GetCurrentUsageResponse,
    forecast: Option<&ForecastUsageResponse>,
    days: Option<&[DailyUsage]>,
) -> Value {
    let mut all = json!({
        "eco_id": u.eco_id,
        "plan": text::plan(u.plan),
        "api_calls": u.api_calls_count,
        "limit": u.limit_count,
        "remaining": u.remaining_count,
        "overage_calls": u.overage_count,
        "usage_percentage": u.usage_percentage,
        "consumed": u.consumed_count,
        "forfeited": u.forfeited_count,
        "period_start_time": text::rfc3339(u.period_start_time.as_ref()),
        "period_end_time": text::rfc3339(u.period_end_time.as_ref()),
        "server_time": text::rfc3339(u.server_time.as_ref()),
    });
    if let Some(forecast) = forecast {
        all["forecast"] = forecast_json(forecast);
    }
    if let Some(days) = days {
        all["days"] = days.iter().map(day_json).collect();
    }
    all
}

fn forecast_json(f: &ForecastUsageResponse) -> Value {
    json!({
        "expected_calls": f.expected_count,
        "low_calls": f.low_count,
        "high_calls": f.high_count,
        "limit": f.limit_count,
        "limit_reached_time": text::rfc3339(f.limit_reached_time.as_ref()),
        "expected_overage_micros": f.expected_overage_micros,
        "low_overage_micros": f.low_overage_micros,
        "high_overage_micros": f.high_overage_micros,
        "subscription_micros": f.subscription_micros,
        "currency_code": f.currency_code,
        "as_of_time": text::rfc3339(f.as_of_time.as_ref()),
    })
}

fn day_json(day: &DailyUsage) -> Value {
    json!({
        "date": day.date,
        "total_calls": day.total_count,
        "successful_calls": day.successful_count,
        "failed_calls": day.failed_count,
        "avg_response_time_ms": day.avg_response_time_ms,
        "top_endpoints": day.top_endpoints.iter().map(endpoint_json).collect::<Vec<_>>(),
    })
}

fn endpoint_json(e: &EndpointCount) -> Value {
    json!({
        "endpoint": e.endpoint,
        "method": e.method,
        "calls": e.calls_count,
        "avg_response_time_ms": e.avg_response_time_ms,
    })
}

fn as_text(u: &GetCurrentUsageResponse) -> String {
    let mut text = format!("{} on {}\n", harmless(&u.eco_id), text::plan(u.plan));
    let (start, end) = (u.period_start_time.as_ref(), u.period_end_time.as_ref());
    let left = text::span(u.server_time.as_ref(), end).map(|left| format!(" ({left} left)"));
    text.push_str(&fact(
        "period",
        format!("{} to {}{}", text::utc(start), text::utc(end), left.unwrap_or_default()),
    ));
    let calls = thousands(u.api_calls_count);
    if u.limit_count < 0 {
        text.push_str(&fact("calls", format!("{calls}, without a limit")));
        return text;
    }
    let share = permille(u.api_calls_count, u.limit_count);
    let shown = share.map(|share| format!(" ({}.{} %)", thousands(share / 10), share % 10));
    text.push_str(&fact(
        "calls",
        format!("{calls} of {}{}", units(u.limit_count), shown.unwrap_or_default()),
    ));
    if let Some(share) = share {
        text.push_str(&fact("", meter(share)));
    }
    text.push_str(&fact("left", thousands(u.remaining_count)));
    text.push_str(&fact("overage", thousands(u.overage_count)));
    text
}

/// The end of the period as it is expected; four times of five it is within the range.
fn forecast_text(f: &ForecastUsageResponse) -> String {
    let range = |low: String, high: String| format!("{low} to {high}");
    let calls = range(thousands(f.low_count), thousands(f.high_count));
    let mut text = fact("expected", format!("{} calls ({calls})", thousands(f.expected_count)));
    let used = match f.limit_reached_time.as_ref() {
        Some(at) => format!("{} are used by {}", thousands(f.limit_count), text::utc(Some(at))),
        None if f.limit_count < 0 => "no limit to reach".to_owned(),
        None => format!("{} last until the end", thousands(f.limit_count)),
    };
    text.push_str(&fact("", used));
    let money = |micros| text::money(micros, &f.currency_code);
    let cost = range(money(f.low_overage_micros), money(f.high_overage_micros));
    text.push_str(&fact("cost", format!("{} of overage ({cost})", money(f.expected_overage_micros))));
    text.push_str(&fact("", format!("{} a month for the plan", money(f.subscription_micros))));
    text
}

/// A share in thousandths, half of one rounded up, but never up to all of it; none of nothing. The pages round so, too.
fn permille(part: i64, whole: i64) -> Option<i128> {
    let (part, whole) = (i128::from(part), i128::from(whole));
    let rounded = (2_000 * part + whole).checked_div(2 * whole)?;
    Some(if part < whole { rounded.min(999) } else { rounded })
}

fn meter(share: i128) -> String {
    let full = (share.clamp(0, 1_000) * METER / 1_000) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(METER as usize - full))
}

fn day_row(day: &DailyUsage) -> Vec<String> {
    let busiest = day
        .top_endpoints
        .first()
        .map(|e| format!("{} {} ({})", e.method, e.endpoint, thousands(e.calls_count)));
    vec![
        day.date.clone(),
        thousands(day.total_count),
        thousands(day.successful_count),
        thousands(day.failed_count),
        format!("{:.1}", day.avg_response_time_ms),
        busiest.unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_as_the_pages_round_them_and_nearly_all_is_not_all() {
        for (part, whole, rounded) in [
            (62_480, 100_000, Some(625)),
            (62_449, 100_000, Some(624)),
            (99_999, 100_000, Some(999)),
            (100_000, 100_000, Some(1_000)),
            (100_200, 100_000, Some(1_002)),
            (0, 100, Some(0)),
            (1, 0, None),
        ] {
            assert_eq!(permille(part, whole), rounded, "{part} of {whole}");
        }
    }
}
