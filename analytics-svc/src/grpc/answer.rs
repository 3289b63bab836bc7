//! The domain's types into responses.

use nexus_core::{id::EcoId, quota};
use nexus_kit::convert::{plan_to_proto, status_to_proto, timestamp};
use nexus_proto::analytics::v1 as pb;

use crate::domain::{
    endpoints::EndpointStats,
    export::HourlyUsage,
    forecast::{Forecast, Standing},
    history::{DailyUsage, EndpointUsage},
    overview::{CURRENCY, Overview, PlanTotals, TopUser},
    revenue::{MonthlyRevenue, Revenue},
    users::User,
};

pub(super) fn usage_history(days: Vec<DailyUsage>, days_count: i64) -> pb::GetUsageHistoryResponse {
    pb::GetUsageHistoryResponse {
        days: days.into_iter().map(daily_usage).collect(),
        days_count: small(days_count),
    }
}

pub(super) fn total_usage_history(
    days: Vec<DailyUsage>,
    days_count: i64,
) -> pb::GetTotalUsageHistoryResponse {
    pb::GetTotalUsageHistoryResponse {
        days: days.into_iter().map(daily_usage).collect(),
        days_count: small(days_count),
    }
}

fn daily_usage(day: DailyUsage) -> pb::DailyUsage {
    pb::DailyUsage {
        date: day.day.to_string(),
        total_count: day.total_units,
        successful_count: day.successful_units,
        failed_count: day.failed_units,
        avg_response_time_ms: day.latency.mean_ms(),
        top_endpoints: day.top_endpoints.into_iter().map(endpoint_count).collect(),
    }
}

fn endpoint_count(endpoint: EndpointUsage) -> pb::EndpointCount {
    pb::EndpointCount {
        avg_response_time_ms: endpoint.latency.mean_ms(),
        endpoint: endpoint.route,
        method: endpoint.method,
        calls_count: endpoint.units,
    }
}

pub(super) fn endpoint_stats(
    endpoints: Vec<EndpointStats>,
    days_count: i64,
    next: Option<String>,
) -> pb::ListEndpointStatsResponse {
    pb::ListEndpointStatsResponse {
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        days_count: small(days_count),
        next_page_token: next.unwrap_or_default(),
    }
}

fn endpoint(stats: EndpointStats) -> pb::EndpointStats {
    pb::EndpointStats {
        success_rate: stats.success_rate(),
        total_count: stats.usage.units,
        avg_response_time_ms: stats.usage.latency.mean_ms(),
        p50_response_time_ms: stats.sketch.quantile(0.50),
        p95_response_time_ms: stats.sketch.quantile(0.95),
        p99_response_time_ms: stats.sketch.quantile(0.99),
        endpoint: stats.usage.route,
        method: stats.usage.method,
    }
}

pub(super) fn overview(overview: Overview) -> pb::GetOverviewResponse {
    let mrr_micros = overview.sum(|p| p.mrr.0);
    let overage_revenue_micros = overview.sum(|p| p.overage.0);
    pb::GetOverviewResponse {
        total_users_count: overview.sum(|p| p.users),
        total_api_calls_count: overview.sum(|p| p.api_calls),
        mrr_micros,
        overage_revenue_micros,
        total_revenue_micros: mrr_micros + overage_revenue_micros,
        currency_code: CURRENCY.to_string(),
        as_of_time: Some(timestamp(overview.as_of)),
        users_by_plan: overview.plans.iter().map(plan_count).collect(),
        top_users: overview.top_users.into_iter().map(top_user).collect(),
    }
}

fn plan_count(totals: &PlanTotals) -> pb::PlanCount {
    pb::PlanCount { plan: plan_to_proto(totals.plan).into(), users_count: totals.users }
}

fn top_user(user: TopUser) -> pb::TopUser {
    pb::TopUser {
        eco_id: user.eco_id.into(),
        api_calls_count: user.api_calls,
        plan: plan_to_proto(user.plan).into(),
    }
}

pub(super) fn top_users(users: Vec<TopUser>, next: Option<String>) -> pb::ListTopUsersResponse {
    pb::ListTopUsersResponse {
        users: users.into_iter().map(top_user).collect(),
        next_page_token: next.unwrap_or_default(),
    }
}

pub(super) fn revenue_history(revenue: Revenue) -> pb::GetRevenueHistoryResponse {
    let currency = revenue.currency.to_string();
    pb::GetRevenueHistoryResponse {
        months: revenue.months.iter().map(|month| monthly_revenue(month, &currency)).collect(),
        history_start_time: revenue.begins.map(timestamp),
        currency_codes: revenue.currencies,
    }
}

fn monthly_revenue(revenue: &MonthlyRevenue, currency_code: &str) -> pb::MonthlyRevenue {
    pb::MonthlyRevenue {
        month: revenue.month.format("%Y-%m").to_string(),
        mrr_micros: revenue.mrr.0,
        opening_micros: revenue.opening.0,
        new_micros: revenue.new.0,
        reactivation_micros: revenue.reactivation.0,
        expansion_micros: revenue.expansion.0,
        contraction_micros: revenue.contraction.0,
        churn_micros: revenue.churn.0,
        overage_micros: revenue.overage.0,
        currency_code: currency_code.to_owned(),
    }
}

pub(super) fn forecast(standing: &Standing, forecast: &Forecast) -> pb::ForecastUsageResponse {
    pb::ForecastUsageResponse {
        expected_count: forecast.expected.units,
        low_count: forecast.low.units,
        high_count: forecast.high.units,
        limit_reached_time: forecast.limit_reached.map(timestamp),
        expected_overage_micros: forecast.expected.overage.0,
        low_overage_micros: forecast.low.overage.0,
        high_overage_micros: forecast.high.overage.0,
        currency_code: standing.currency.to_string(),
        recorded_count: standing.recorded,
        limit_count: quota::shown_limit(standing.limit()),
        subscription_micros: standing.subscription.0,
        period_start_time: Some(timestamp(standing.period.start)),
        period_end_time: Some(timestamp(standing.period.end)),
        as_of_time: Some(timestamp(standing.now)),
    }
}

pub(super) fn exported(eco_id: &EcoId, rows: Vec<HourlyUsage>) -> pb::ExportUsageResponse {
    let row = |row: HourlyUsage| pb::UsageRow {
        eco_id: eco_id.to_string(),
        start_time: Some(timestamp(row.place.hour)),
        endpoint: row.place.route,
        method: row.place.method,
        status_class: row.place.status_class.into(),
        calls_count: row.units,
        avg_response_time_ms: row.latency.mean_ms(),
    };
    pb::ExportUsageResponse { rows: rows.into_iter().map(row).collect() }
}

pub(super) fn users(users: Vec<User>, total_size: i64, next: Option<String>) -> pb::ListUsersResponse {
    pb::ListUsersResponse {
        users: users.into_iter().map(user).collect(),
        next_page_token: next.unwrap_or_default(),
        total_size,
    }
}

fn user(user: User) -> pb::User {
    pb::User {
        eco_id: user.cursor.eco_id.into(),
        email: user.email.unwrap_or_default(),
        plan: plan_to_proto(user.plan).into(),
        status: status_to_proto(user.status).into(),
        api_calls_count: user.api_calls,
        overage_count: user.overage_units,
        overage_cost_micros: user.overage.0,
        subscription_revenue_micros: user.subscription.0,
        total_revenue_micros: user.overage.0 + user.subscription.0,
        currency_code: user.currency_code,
        create_time: Some(timestamp(user.created)),
        last_api_call_time: user.last_event.map(timestamp),
    }
}

/// A number of days, which parsing has capped.
fn small(days: i64) -> i32 {
    i32::try_from(days).expect("days are capped at 365")
}
