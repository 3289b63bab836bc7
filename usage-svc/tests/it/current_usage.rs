//! GetCurrentUsage: live, by plan.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{GetCurrentUsageRequest, GetCurrentUsageResponse, UsageEvent};
use tonic::Code;

use crate::support::*;

/// Calls, limit, remaining, overage and percentage.
fn figures(u: &GetCurrentUsageResponse) -> (i64, i64, i64, i64, f64) {
    (u.api_calls_count, u.limit_count, u.remaining_count, u.overage_count, u.usage_percentage)
}

#[tokio::test]
async fn usage_is_live_and_by_plan() -> Result<()> {
    let (db, server) = server().await?;
    for (id, plan) in [("eco_free", Plan::Free), ("eco_pro", Plan::Pro), ("eco_ent", Plan::Enterprise)] {
        account(&db, id, plan).await?;
    }
    assert_eq!(figures(&current(&server, "eco_free").await?), (0, 1000, 1000, 0, 0.0));
    assert_eq!(figures(&current(&server, "eco_pro").await?), (0, 100_000, 100_000, 0, 0.0));
    assert_eq!(figures(&current(&server, "eco_ent").await?), (0, -1, -1, 0, 0.0));
    for id in ["eco_free", "eco_pro", "eco_ent"] {
        record(&server, UsageEvent { units_count: 105_000, ..event(id) }).await?;
    }
    // The free plan prices no overage.
    assert_eq!(figures(&current(&server, "eco_free").await?), (105_000, 1000, 0, 0, 10_500.0));
    assert_eq!(figures(&current(&server, "eco_pro").await?), (105_000, 100_000, 0, 5_000, 105.0));
    assert_eq!(figures(&current(&server, "eco_ent").await?), (105_000, -1, -1, 0, 0.0));

    sqlx::query("update eco_subscriptions set status = 'unpaid' where eco_id = 'eco_pro'")
        .execute(&db.pool)
        .await?;
    assert_eq!(figures(&current(&server, "eco_pro").await?), (105_000, 1000, 0, 0, 10_500.0));
    Ok(())
}

#[tokio::test]
async fn everyone_sees_what_is_theirs() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let ask = async |options: nexus_client::CallOptions, eco_id: &str| {
        let request = GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        anyhow::Ok(
            server.client()?.get_current_usage(options.request(request)).await.map(|r| r.into_inner().eco_id),
        )
    };
    assert_eq!(ask(user("eco_a")?, "").await??, "eco_a");
    refused(ask(user("eco_a")?, "eco_b").await?, Code::PermissionDenied, "PERMISSION_DENIED");
    let admin = || user(nexus_testkit::settings::ADMIN);
    assert_eq!(ask(admin()?, "eco_b").await??, "eco_b");
    refused(ask(admin()?, "eco_nobody").await?, Code::NotFound, "ACCOUNT_NOT_FOUND");
    let status = refused(ask(service()?, "").await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["eco_id"]);
    Ok(())
}

#[tokio::test]
async fn adjustments_are_shown_like_calls_and_admission_knows_nothing_of_them() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, UsageEvent { units_count: 100_005, ..event("eco_a") }).await?;
    sqlx::query(
        "insert into eco_usage_adjustments (eco_id, period_start, segment, units, reason, request_id, api_calls)
         select eco_id, period_start, 0, -2, 'test', gen_random_uuid(), 100003 from eco_usage_counters",
    )
    .execute(&db.pool)
    .await?;
    assert_eq!(figures(&current(&server, "eco_a").await?).0, 100_003);
    assert_eq!(figures(&current(&server, "eco_a").await?).3, 3);
    let consumed: i64 = sqlx::query_scalar("select sum(unadmitted_units)::bigint from eco_usage_counters")
        .fetch_one(&db.pool)
        .await?;
    assert_eq!(consumed, 100_005);
    Ok(())
}
