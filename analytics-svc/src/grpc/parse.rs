//! Requests into the domain's types. Every violation is collected; who may see which account is said first.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, money::Currency};
use nexus_kit::{
    auth::Caller,
    convert,
    page::{self, BadToken},
    validate::Violations,
};
use nexus_proto::analytics::v1::{
    ExportUsageRequest, GetRevenueHistoryRequest, GetTotalUsageHistoryRequest, GetUsageHistoryRequest,
    ListEndpointStatsRequest, ListTopUsersRequest, ListUsersRequest, UserSort as PbUserSort,
};
use tonic::Status;

use crate::{
    domain::{
        endpoints::{EndpointCursor, EndpointFilter},
        export::ExportRange,
        overview::{CURRENCY, TOP_USERS as DEFAULT_TOP_USERS},
        users::{PageStart, UserCursor, UserFilter, UserSort},
    },
    error::Error,
};

const MAX_DAYS: i32 = 365;
const HISTORY_DAYS: i32 = 30;
const ENDPOINT_DAYS: i32 = 7;
const ENDPOINTS_A_PAGE: i32 = 50;
const DEFAULT_USERS_A_PAGE: i32 = 50;
const MAX_USERS_A_PAGE: i32 = 100;
/// Longest email address (RFC 5321), which is longer than any id.
const MAX_QUERY_BYTES: usize = 320;

const MAX_TOP_USERS: i32 = 100;
const DEFAULT_MONTHS: i32 = 12;
const MAX_MONTHS: i32 = 60;
const MAX_EXPORT: TimeDelta = TimeDelta::days(366);

/// What page tokens of ListTopUsers, which has no filter, are bound to.
pub(super) const TOP_USERS: &str = "top users";

/// Account and days.
pub(super) fn usage_history(
    caller: &Caller,
    request: &GetUsageHistoryRequest,
) -> Result<(EcoId, i64), Status> {
    let mut violations = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[], &mut violations)?;
    let days = violations.take("days_count", page::size(request.days_count, HISTORY_DAYS, MAX_DAYS));
    complete(violations, eco_id.zip(days)).map_err(|v| Error::Invalid(v).into())
}

/// Days.
pub(super) fn total_usage_history(request: &GetTotalUsageHistoryRequest) -> Result<i64, Violations> {
    let mut violations = Violations::new();
    let days = violations.take("days_count", page::size(request.days_count, HISTORY_DAYS, MAX_DAYS));
    complete(violations, days)
}

/// Filter, where the page begins, and its size.
pub(super) fn endpoint_stats(
    caller: &Caller,
    request: &ListEndpointStatsRequest,
) -> Result<(EndpointFilter, Option<EndpointCursor>, i64), Status> {
    let mut violations = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[], &mut violations)?;
    let days = violations.take("days_count", page::size(request.days_count, ENDPOINT_DAYS, MAX_DAYS));
    let size =
        violations.take("page_size", page::size(request.page_size, ENDPOINTS_A_PAGE, ENDPOINTS_A_PAGE));
    let filter = eco_id.zip(days).map(|(eco_id, days)| EndpointFilter { eco_id, days });
    let after = filter.as_ref().and_then(|f| {
        let token = page::decode::<EndpointCursor>(f, &request.page_token);
        let possible = token.and_then(|cursor| match cursor {
            Some(cursor) if !cursor.is_possible() => Err(BadToken),
            cursor => Ok(cursor),
        });
        violations.take("page_token", possible)
    });
    let parsed = filter.zip(after).zip(size).map(|((filter, after), size)| (filter, after, size));
    complete(violations, parsed).map_err(|v| Error::Invalid(v).into())
}

/// Filter, where the page begins, and its size.
pub(super) fn users(request: &ListUsersRequest) -> Result<(UserFilter, PageStart, i64), Violations> {
    let mut violations = Violations::new();
    let plan = violations.take("plan", convert::plan_from_proto(request.plan));
    let status = violations.take("status", convert::status_from_proto(request.status));
    let prefix = violations.take("query", prefix(&request.query));
    let sort = violations.take("sort", sort(request.sort));
    let size =
        violations.take("page_size", page::size(request.page_size, DEFAULT_USERS_A_PAGE, MAX_USERS_A_PAGE));
    violations.require(request.skip_count >= 0, "skip_count", "must not be negative");
    let both = request.skip_count > 0 && !request.page_token.is_empty();
    violations.require(!both, "skip_count", "must be 0 where page_token is given");

    let filter = plan.zip(status).zip(prefix).zip(sort);
    let filter = filter.map(|(((plan, status), prefix), sort)| UserFilter { plan, status, prefix, sort });
    let start = filter.as_ref().and_then(|f| {
        let token = page::decode::<UserCursor>(f, &request.page_token);
        let start = token.map(|cursor| match cursor {
            Some(cursor) => PageStart::After(cursor),
            None => PageStart::Skip(i64::from(request.skip_count)),
        });
        violations.take("page_token", start)
    });
    let parsed = filter.zip(start).zip(size).map(|((filter, start), size)| (filter, start, size));
    complete(violations, parsed)
}

/// Where the page begins, and its size.
pub(super) fn top_users(request: &ListTopUsersRequest) -> Result<(Option<UserCursor>, i64), Violations> {
    let mut violations = Violations::new();
    let size = page::size(request.page_size, DEFAULT_TOP_USERS as i32, MAX_TOP_USERS);
    let size = violations.take("page_size", size);
    let after = violations.take("page_token", page::decode::<UserCursor>(&TOP_USERS, &request.page_token));
    complete(violations, after.zip(size))
}

/// Months and currency.
pub(super) fn revenue_history(request: &GetRevenueHistoryRequest) -> Result<(u32, Currency), Violations> {
    let mut violations = Violations::new();
    let months = page::size(request.months_count, DEFAULT_MONTHS, MAX_MONTHS);
    let months = violations.take("months_count", months).and_then(|months| u32::try_from(months).ok());
    let currency = match request.currency_code.as_str() {
        "" => Some(CURRENCY),
        code => violations.take("currency_code", code.parse()),
    };
    complete(violations, months.zip(currency))
}

/// Account and hours.
pub(super) fn export(caller: &Caller, request: &ExportUsageRequest) -> Result<ExportRange, Status> {
    let mut violations = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[], &mut violations)?;
    let start = violations.take("start_time", required(request.start_time.as_ref().map(convert::datetime)));
    let end = violations.take("end_time", required(request.end_time.as_ref().map(convert::datetime)));
    if let Some((start, end)) = start.zip(end) {
        violations.require(start < end, "end_time", "must be after start_time");
        let days = MAX_EXPORT.num_days();
        violations.require(
            end - start <= MAX_EXPORT,
            "end_time",
            format!("must be at most {days} days after start_time"),
        );
    }
    let range = eco_id.zip(start).zip(end).map(|((eco_id, start), end)| ExportRange { eco_id, start, end });
    complete(violations, range).map_err(|v| Error::Invalid(v).into())
}

fn required(time: Option<Result<DateTime<Utc>, &'static str>>) -> Result<DateTime<Utc>, &'static str> {
    time.ok_or("is required").flatten()
}

fn prefix(query: &str) -> Result<String, String> {
    if query.len() > MAX_QUERY_BYTES || query.chars().any(char::is_control) {
        return Err(format!("must be at most {MAX_QUERY_BYTES} bytes without control characters"));
    }
    Ok(query.to_owned())
}

fn sort(value: i32) -> Result<UserSort, &'static str> {
    Ok(match PbUserSort::try_from(value).map_err(|_| "must be a known order")? {
        PbUserSort::Unspecified | PbUserSort::Usage => UserSort::Usage,
        PbUserSort::Overage => UserSort::Overage,
        PbUserSort::Revenue => UserSort::Revenue,
        PbUserSort::Created => UserSort::Created,
    })
}

/// What was parsed, unless something was wrong; a part is missing only where its violation was added.
fn complete<T>(violations: Violations, parsed: Option<T>) -> Result<T, Violations> {
    match parsed {
        Some(parsed) if violations.0.is_empty() => Ok(parsed),
        _ => Err(violations),
    }
}
