//! `eco_usage_daily`: the rollup that usage-svc keeps, read only.

use chrono::NaiveDate;
use futures::TryStreamExt;
use nexus_core::{id::EcoId, sketch::Sketch};
use sqlx::PgConnection;

use crate::domain::{
    endpoints::{EndpointCursor, EndpointFilter, EndpointStats},
    history::{DailyUsage, EndpointUsage, Latency},
};

/// The days with usage among the last `days` UTC days including today, oldest first, each with its `top`
/// busiest endpoints.
#[tracing::instrument(
    name = "db.eco_usage_daily.days",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn days(
    connection: &mut PgConnection,
    eco_id: &EcoId,
    days: i64,
    top: i64,
) -> sqlx::Result<Vec<DailyUsage>> {
    let rows = sqlx::query!(
        r#"
        with endpoints as (
            select day, route, method,
                   sum(units_count)::bigint as units,
                   coalesce(sum(units_count) filter (where status_class = 2), 0) as successful,
                   coalesce(sum(units_count) filter (where status_class >= 4), 0) as failed,
                   sum(event_count)::bigint as events,
                   sum(latency_sum_ms)::bigint as latency_ms
            from eco_usage_daily, (select (now() at time zone 'UTC')::date as today) as clock
            where eco_id = $1 and day > today - $2::bigint::int and day <= today
            group by day, route, method
        ), ranked as (
            select *,
                   row_number() over (partition by day order by units desc, route, method) as place,
                   sum(units) over whole_day as day_units,
                   sum(successful) over whole_day as day_successful,
                   sum(failed) over whole_day as day_failed,
                   sum(events) over whole_day as day_events,
                   sum(latency_ms) over whole_day as day_latency_ms
            from endpoints
            window whole_day as (partition by day)
        )
        select day, route, method, units as "units!", events as "events!", latency_ms as "latency_ms!",
               day_units::bigint as "day_units!", day_successful::bigint as "day_successful!",
               day_failed::bigint as "day_failed!", day_events::bigint as "day_events!",
               day_latency_ms::bigint as "day_latency_ms!"
        from ranked
        where place <= $3
        order by day, place
        "#,
        eco_id.as_str(),
        days,
        top
    )
    .fetch_all(connection)
    .await?;

    let mut history: Vec<DailyUsage> = Vec::new();
    for row in rows {
        if history.last().is_none_or(|last| last.day != row.day) {
            history.push(DailyUsage {
                day: row.day,
                total_units: row.day_units,
                successful_units: row.day_successful,
                failed_units: row.day_failed,
                latency: Latency { sum_ms: row.day_latency_ms, events: row.day_events },
                top_endpoints: Vec::new(),
            });
        }
        let endpoint = EndpointUsage {
            route: row.route,
            method: row.method,
            units: row.units,
            latency: Latency { sum_ms: row.latency_ms, events: row.events },
        };
        history.last_mut().expect("pushed above").top_endpoints.push(endpoint);
    }
    Ok(history)
}

/// Units of each day with usage among the last `days` UTC days before today, and of today.
#[tracing::instrument(
    name = "db.eco_usage_daily.units",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn units(
    connection: &mut PgConnection,
    eco_id: &EcoId,
    days: i64,
) -> sqlx::Result<Vec<(NaiveDate, i64)>> {
    sqlx::query!(
        r#"
        select day, sum(units_count)::bigint as "units!"
        from eco_usage_daily, (select (now() at time zone 'UTC')::date as today) as clock
        where eco_id = $1 and day >= today - $2::bigint::int and day <= today
        group by day
        "#,
        eco_id.as_str(),
        days
    )
    .map(|row| (row.day, row.units))
    .fetch_all(connection)
    .await
}

/// Endpoints of an account over some days, busiest first, without their sketches.
#[tracing::instrument(
    name = "db.eco_usage_daily.endpoints",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn endpoints(
    connection: &mut PgConnection,
    filter: &EndpointFilter,
    after: Option<&EndpointCursor>,
    limit: i64,
) -> sqlx::Result<Vec<EndpointStats>> {
    sqlx::query!(
        r#"
        select route, method,
               sum(units_count)::bigint as "units!",
               coalesce(sum(units_count) filter (where status_class = 2), 0)::bigint as "successful!",
               sum(event_count)::bigint as "events!",
               sum(latency_sum_ms)::bigint as "latency_ms!"
        from eco_usage_daily, (select (now() at time zone 'UTC')::date as today) as clock
        where eco_id = $1 and day > today - $2::bigint::int and day <= today
        group by route, method
        having $3::bigint is null
            or sum(units_count) < $3
            or (sum(units_count) = $3 and (route, method) > ($4, $5))
        order by sum(units_count) desc, route, method
        limit $6
        "#,
        filter.eco_id.as_str(),
        filter.days,
        after.map(|c| c.units),
        after.map(|c| c.route.as_str()),
        after.map(|c| c.method.as_str()),
        limit
    )
    .map(|row| EndpointStats {
        usage: EndpointUsage {
            route: row.route,
            method: row.method,
            units: row.units,
            latency: Latency { sum_ms: row.latency_ms, events: row.events },
        },
        successful_units: row.successful,
        sketch: Sketch::default(),
    })
    .fetch_all(connection)
    .await
}

/// Adds the sketches of those days to the endpoints. Merged here as they come: a year of them does not fit
/// in an answer of the database comfortably, and merging them there takes a function call each.
#[tracing::instrument(
    name = "db.eco_usage_daily.sketches",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn add_sketches(
    connection: &mut PgConnection,
    filter: &EndpointFilter,
    endpoints: &mut [EndpointStats],
) -> sqlx::Result<()> {
    let routes: Vec<String> = endpoints.iter().map(|e| e.usage.route.clone()).collect();
    let methods: Vec<String> = endpoints.iter().map(|e| e.usage.method.clone()).collect();
    let mut rows = sqlx::query!(
        r#"
        select shown.position - 1 as "index!", latency_sketch, sketch
        from eco_usage_daily
             join unnest($3::text[], $4::text[]) with ordinality as shown (route, method, position)
             using (route, method),
             (select (now() at time zone 'UTC')::date as today) as clock
        where eco_id = $1 and day > today - $2::bigint::int and day <= today
        "#,
        filter.eco_id.as_str(),
        filter.days,
        &routes,
        &methods
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        // The pairs are from versions before the entries; a day may have both.
        let pairs = Sketch::from_pairs(&row.latency_sketch).map_err(|e| sqlx::Error::Decode(e.into()))?;
        let sketch = &mut endpoints[row.index as usize].sketch;
        sketch.merge(&pairs);
        sketch.add_entries(&row.sketch);
    }
    Ok(())
}
