//! `/api/admin/analytics/*`: the business, for admins.

use std::str::FromStr;

use axum::{Json, extract::State};
use nexus_core::{
    money::Micros,
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::convert::{plan_to_proto, status_to_proto};
use nexus_proto::analytics::v1 as pb;
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::{
    App,
    auth::Admin,
    convert::{optional_time, plan_word, required_time, some_text, status_word},
    error::Error,
    format,
    query::Params,
    routes::usage::{DayTotal, HistoryParams},
};

#[derive(Serialize, ToSchema)]
pub(super) struct Overview {
    total_users: i64,
    users_by_plan: UsersByPlan,
    total_api_calls_this_month: i64,
    /// Of active and past_due subscriptions, a month.
    #[schema(value_type = f64)]
    mrr: Value,
    /// With thousands separators: `$4,705`.
    mrr_usd: String,
    overage_revenue_this_month: f64,
    overage_revenue_usd: String,
    total_revenue_this_month: f64,
    total_revenue_usd: String,
    top_users_by_usage: Vec<TopUser>,
    #[schema(format = DateTime)]
    timestamp: String,
}

#[derive(Serialize, ToSchema)]
struct TopUser {
    eco_id: String,
    api_calls: i64,
    plan: &'static str,
}

#[derive(Serialize, ToSchema, Default)]
struct UsersByPlan {
    free: i64,
    pro: i64,
    enterprise: i64,
}

/// The business at a glance
///
/// "This month" is each account's current period.
#[utoipa::path(get, path = "/api/admin/analytics/overview", tag = "admin", responses(
    (status = 200, body = Overview, description = "Accounts, calls and revenue"),
))]
pub(super) async fn overview(State(app): State<App>, Admin(admin): Admin) -> Result<Json<Overview>, Error> {
    let overview = app.backend.overview(&admin).await?;
    let mrr = Micros(overview.mrr_micros);
    let overage = Micros(overview.overage_revenue_micros);
    let total = Micros(overview.total_revenue_micros);
    Ok(Json(Overview {
        total_users: overview.total_users_count,
        users_by_plan: users_by_plan(&overview.users_by_plan)?,
        total_api_calls_this_month: overview.total_api_calls_count,
        mrr: format::number(mrr),
        mrr_usd: format::short_dollars(mrr)?,
        overage_revenue_this_month: format::decimal(overage),
        overage_revenue_usd: format::dollars(overage)?,
        total_revenue_this_month: format::decimal(total),
        total_revenue_usd: format::dollars(total)?,
        top_users_by_usage: overview.top_users.into_iter().map(top_user).collect::<Result<_, _>>()?,
        timestamp: format::time(required_time("as_of_time", overview.as_of_time.as_ref())?),
    }))
}

fn users_by_plan(counts: &[pb::PlanCount]) -> Result<UsersByPlan, Error> {
    let mut by_plan = UsersByPlan::default();
    for count in counts {
        let users = match crate::convert::plan(count.plan)? {
            Plan::Free => &mut by_plan.free,
            Plan::Pro => &mut by_plan.pro,
            Plan::Enterprise => &mut by_plan.enterprise,
        };
        *users += count.users_count;
    }
    Ok(by_plan)
}

fn top_user(user: pb::TopUser) -> Result<TopUser, Error> {
    Ok(TopUser { plan: plan_word(user.plan)?, eco_id: user.eco_id, api_calls: user.api_calls_count })
}

#[derive(Serialize, ToSchema)]
pub(super) struct TotalHistory {
    /// Days with usage, oldest first; today is among them, live.
    history: Vec<DayTotal>,
    /// Days that were looked at.
    period_days: i32,
}

/// Usage of all accounts by day
#[utoipa::path(get, path = "/api/admin/analytics/history", tag = "admin", params(HistoryParams), responses(
    (status = 200, body = TotalHistory, description = "The days that have usage"),
))]
pub(super) async fn history(
    State(app): State<App>,
    Admin(admin): Admin,
    mut params: Params,
) -> Result<Json<TotalHistory>, Error> {
    let days = params.days(30);
    params.finish()?;
    let history = app.backend.total_history(&admin, days).await?;
    Ok(Json(TotalHistory {
        history: history.days.into_iter().map(DayTotal::from).collect(),
        period_days: history.days_count,
    }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Users {
    users: Vec<User>,
    pagination: Pagination,
}

#[derive(Serialize, ToSchema)]
struct User {
    eco_id: String,
    email: Option<String>,
    plan: &'static str,
    status: &'static str,
    api_calls: i64,
    overage_calls: i64,
    overage_cost_usd: f64,
    #[schema(value_type = f64)]
    subscription_revenue: Value,
    total_revenue: f64,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    last_api_call: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Pagination {
    page: i32,
    limit: i32,
    total: i64,
    total_pages: i64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct UsersParams {
    #[param(minimum = 1, default = 1)]
    page: Option<i32>,
    /// Rows a page; above 100 counts as 100.
    #[param(minimum = 1, default = 50)]
    limit: Option<i32>,
    /// Only this plan.
    #[param(pattern = "^(free|pro|enterprise)$")]
    plan: Option<String>,
    /// Only this status.
    #[param(pattern = "^(trialing|active|past_due|unpaid|paused|incomplete|incomplete_expired|canceled)$")]
    status: Option<String>,
    /// Descending, ties by `eco_id`.
    #[param(pattern = "^(usage|overage|revenue|created)$", default = "usage")]
    sort: Option<String>,
    /// Beginning of the account's id, or of its email; 320 bytes at most.
    #[param(max_length = 320, pattern = r"^[^\x00-\x1f\x7f-\x9f\ufffd]*$")]
    q: Option<String>,
}

/// Accounts
///
/// With usage and revenue of their current periods.
#[utoipa::path(get, path = "/api/admin/analytics/users", tag = "admin", params(UsersParams), responses(
    (status = 200, body = Users, description = "A page of accounts"),
))]
pub(super) async fn users(
    State(app): State<App>,
    Admin(admin): Admin,
    mut params: Params,
) -> Result<Json<Users>, Error> {
    let page = params.page();
    let limit = params.limit(50);
    let plan = params.word::<Plan>("plan", "free, pro, enterprise");
    let status = params.word::<SubscriptionStatus>(
        "status",
        "trialing, active, past_due, unpaid, paused, incomplete, incomplete_expired, canceled",
    );
    let sort = params.word::<Sort>("sort", "usage, overage, revenue, created");
    let query = params.short_text("q");
    params.finish()?;
    let request = pb::ListUsersRequest {
        plan: plan.map_or(0, |plan| plan_to_proto(plan).into()),
        status: status.map_or(0, |status| status_to_proto(status).into()),
        query,
        sort: sort.map_or(pb::UserSort::Usage, |Sort(sort)| sort).into(),
        page_size: limit,
        skip_count: (page - 1).saturating_mul(limit),
        page_token: String::new(),
    };
    let listed = app.backend.users(&admin, request).await?;
    let total = listed.total_size;
    let total_pages = (total + i64::from(limit) - 1) / i64::from(limit);
    Ok(Json(Users {
        users: listed.users.into_iter().map(user).collect::<Result<_, _>>()?,
        pagination: Pagination { page, limit, total, total_pages },
    }))
}

/// Order of the list, by its word.
struct Sort(pb::UserSort);

impl FromStr for Sort {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "usage" => Ok(Sort(pb::UserSort::Usage)),
            "overage" => Ok(Sort(pb::UserSort::Overage)),
            "revenue" => Ok(Sort(pb::UserSort::Revenue)),
            "created" => Ok(Sort(pb::UserSort::Created)),
            _ => Err(()),
        }
    }
}

fn user(user: pb::User) -> Result<User, Error> {
    Ok(User {
        plan: plan_word(user.plan)?,
        status: status_word(user.status)?,
        created_at: format::time(required_time("create_time", user.create_time.as_ref())?),
        last_api_call: optional_time("last_api_call_time", user.last_api_call_time.as_ref())?
            .map(format::time),
        eco_id: user.eco_id,
        email: some_text(user.email),
        api_calls: user.api_calls_count,
        overage_calls: user.overage_count,
        overage_cost_usd: format::decimal(Micros(user.overage_cost_micros)),
        subscription_revenue: format::number(Micros(user.subscription_revenue_micros)),
        total_revenue: format::decimal(Micros(user.total_revenue_micros)),
    })
}
