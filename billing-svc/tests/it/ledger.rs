//! Corrections of usage, what charges follow from, and charges that are attempted again.

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::store::lease;
use nexus_kit::{convert::timestamp, status};
use nexus_proto::{
    billing::v1::{
        AdjustUsageRequest, ChangePlanRequest, Charge, ChargeStatus, ExplainChargeRequest,
        ExplainChargeResponse, ListChargesRequest, RetryChargeRequest,
    },
    common::v1::Plan,
};
use nexus_testkit::{db::TestDb, settings};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    settlement_world::{invoices, period_before},
    support::{Billing, Sim, fields, meter, record, record_at, runner, user},
};

fn adjustment(delta: i64, request: u8) -> AdjustUsageRequest {
    AdjustUsageRequest {
        eco_id: "eco_a".to_owned(),
        delta_count: delta,
        reason: "counted twice by the proxy".to_owned(),
        request_id: format!("00000000-0000-4000-8000-0000000000{request:02}"),
        ..Default::default()
    }
}

async fn adjust(billing: &Billing, request: AdjustUsageRequest) -> Result<Result<i64, Status>> {
    let answer = billing.client.clone().adjust_usage(user(settings::ADMIN)?.request(request)).await;
    Ok(answer.map(|answer| answer.into_inner().api_calls_count))
}

/// Whoever refreshes the summary has read the counts before an adjustment, and writes what they were after it.
#[tokio::test]
async fn an_adjustment_that_is_overwritten_by_a_refresh_of_before_becomes_a_credit_all_the_same() -> Result<()>
{
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 105_000).await?;
    billing.run_all().await?;
    let mut refresh = nexus_kit::db::begin(&db.pool).await?;
    lease::refresh(&mut refresh).await?;
    assert_eq!(adjust(&billing, adjustment(-3_000, 1)).await??, 102_000);
    sqlx::query(
        "update eco_usage_records set api_calls = 105000, overage_units = 5000, overage_micros = 5000000",
    )
    .execute(&mut *refresh)
    .await?;
    refresh.commit().await?;
    assert_eq!(billing.run_all().await?.total_micros, -3_000_000);
    assert_eq!(sim.amounts().await?, [500, -300]);
    billing.stop().await
}

async fn charges(billing: &Billing) -> Result<Vec<Charge>> {
    let request = ListChargesRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
    let mut charges =
        billing.client.clone().list_charges(runner()?.request(request)).await?.into_inner().charges;
    charges.reverse();
    Ok(charges)
}

async fn explain(billing: &Billing, charge: &Charge) -> Result<ExplainChargeResponse> {
    let request = ExplainChargeRequest { charge_id: charge.charge_id.clone() };
    Ok(billing.client.clone().explain_charge(runner()?.request(request)).await?.into_inner())
}

#[tokio::test]
async fn an_adjustment_counts_like_calls_and_a_charge_too_high_becomes_a_credit() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 105_000).await?;
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [500]);

    assert_eq!(adjust(&billing, adjustment(-3_000, 1)).await??, 102_000);
    // A repeat changes nothing; another one under its id is refused.
    assert_eq!(adjust(&billing, adjustment(-3_000, 1)).await??, 102_000);
    let Err(other) = adjust(&billing, adjustment(-1, 1)).await? else { anyhow::bail!("not refused") };
    assert_eq!((other.code(), fields(&other)), (Code::InvalidArgument, vec!["request_id".to_owned()]));
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.due_micros), (2_000, 2_000_000));
    let summary: (i64, i64) =
        sqlx::query_as("select api_calls, overage_units from eco_usage_records").fetch_one(&db.pool).await?;
    assert_eq!(summary, (102_000, 2_000));
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [500, -300]);
    let items = sim.items().await?;
    assert_eq!(items[1]["description"], json!("API overage: correction of -3,000 calls beyond 100k limit"));
    assert_eq!(adjust(&billing, adjustment(1_000, 2)).await??, 103_000);
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [500, -300, 100]);
    // Nothing of it is in the counters, nor in what admission goes by.
    let counted: (i64, i64) = sqlx::query_as(
        "select sum(recorded_units)::bigint, sum(unadmitted_units)::bigint from eco_usage_counters",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(counted, (105_000, 105_000));
    Ok(())
}

#[tokio::test]
async fn no_more_is_taken_away_than_the_open_segment_has() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100).await?;
    let change = ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: Plan::Enterprise.into(),
        ..ChangePlanRequest::default()
    };
    billing.change(change).await??;
    record(&db, "eco_a", 40).await?;
    let Err(refused) = adjust(&billing, adjustment(-41, 1)).await? else { anyhow::bail!("not refused") };
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(status::reason(&refused), "USAGE_BELOW_ZERO");
    assert_eq!(adjust(&billing, adjustment(-40, 2)).await??, 100);
    // A closed segment keeps what was taken away from it.
    let change = ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: Plan::Pro.into(),
        apply_now: true,
        ..ChangePlanRequest::default()
    };
    billing.change(change).await??;
    let closed: Vec<i64> =
        sqlx::query_scalar("select recorded_units from eco_usage_segments order by segment")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(closed, [100, 0]);
    record(&db, "eco_a", 1).await?;
    assert_eq!(adjust(&billing, adjustment(1, 3)).await??, 102);

    let mut empty = adjustment(0, 4);
    (empty.reason, empty.request_id) = (String::new(), String::new());
    let Err(refused) = adjust(&billing, empty).await? else { anyhow::bail!("not refused") };
    assert_eq!(fields(&refused), ["delta_count", "reason", "request_id"]);
    let request = user("eco_a")?.request(adjustment(1, 5));
    let Err(refused) = billing.client.clone().adjust_usage(request).await else {
        anyhow::bail!("not refused")
    };
    assert_eq!(refused.code(), Code::PermissionDenied);
    Ok(())
}

#[tokio::test]
async fn what_a_charge_follows_from_is_kept_and_adds_up_to_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 101_000).await?;
    billing.run_all().await?;
    let change = |plan: Plan| ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: plan.into(),
        apply_now: true,
        ..ChangePlanRequest::default()
    };
    billing.change(change(Plan::Enterprise)).await??;
    record(&db, "eco_a", 50).await?;
    billing.change(change(Plan::Pro)).await??;
    record(&db, "eco_a", 505).await?;
    billing.run_all().await?;
    adjust(&billing, adjustment(-500, 1)).await??;
    billing.run_all().await?;

    let charges = charges(&billing).await?;
    assert_eq!(
        charges.iter().map(|charge| charge.amount_micros).collect::<Vec<_>>(),
        [1_000_000, 500_000, -500_000]
    );
    for charge in &charges {
        let told = explain(&billing, charge).await?;
        assert_eq!(told.due_micros - told.billed_before_micros, charge.amount_micros);
        let exact: i64 = told.segments.iter().map(|segment| segment.overage_micros).sum();
        assert_eq!(exact / 10_000 * 10_000, told.due_micros);
        ensure!(!told.settled);
        assert_eq!(told.charge.as_ref(), Some(charge));
    }
    let told = explain(&billing, &charges[1]).await?;
    let counts: Vec<_> = told
        .segments
        .iter()
        .map(|s| (s.plan(), s.plan_version, s.start_count, s.end_count, s.included_count, s.overage_count))
        .collect();
    assert_eq!(
        counts,
        [
            (Plan::Pro, 1, 0, 101_000, 100_000, 1_000),
            (Plan::Enterprise, 1, 101_000, 101_050, -1, 0),
            (Plan::Pro, 1, 101_050, 101_555, 100_000, 505),
        ]
    );
    ensure!(told.explanation.ends_with("this charge: 0.50 USD"), "{}", told.explanation);

    // Its owner may read it, nobody else hears that it is there.
    let request = ExplainChargeRequest { charge_id: charges[0].charge_id.clone() };
    billing.client.clone().explain_charge(user("eco_a")?.request(request.clone())).await?;
    let hidden =
        async || match billing.client.clone().explain_charge(user("eco_b")?.request(request.clone())).await {
            Ok(_) => anyhow::bail!("told"),
            Err(refused) => Ok((refused.code(), status::reason(&refused))),
        };
    assert_eq!(hidden().await?, (Code::NotFound, "CHARGE_NOT_FOUND".to_owned()));
    // As of one that was written before these were kept.
    let forget =
        "alter table eco_overage_charges disable trigger user; update eco_overage_charges set basis = null";
    sqlx::raw_sql(forget).execute(&db.pool).await?;
    assert_eq!(hidden().await?, (Code::NotFound, "CHARGE_NOT_FOUND".to_owned()));
    let Err(lost) = billing.client.clone().explain_charge(user("eco_a")?.request(request.clone())).await
    else {
        anyhow::bail!("explained")
    };
    assert_eq!((lost.code(), status::reason(&lost).as_str()), (Code::FailedPrecondition, "BASIS_NOT_KEPT"));
    for bad in ["", "x"] {
        let request = ExplainChargeRequest { charge_id: bad.to_owned() };
        let Err(refused) = billing.client.clone().explain_charge(runner()?.request(request)).await else {
            anyhow::bail!("{bad} was taken")
        };
        assert_eq!(fields(&refused), ["charge_id"], "{bad}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_charge_is_attempted_again_once_it_is_told_to() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 101_000).await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
    assert_eq!(billing.run_all().await?.errors.len(), 1);
    sim.admin(&format!("/customers/{customer}"), json!({ "declined": false })).await?;
    assert_eq!(billing.run_all().await?.charged_count, 0);

    let failed = charges(&billing).await?.pop().context("a charge")?;
    assert_eq!(failed.status(), ChargeStatus::Failed);
    let retry = |charge: &Charge, request: &str| RetryChargeRequest {
        charge_id: charge.charge_id.clone(),
        request_id: request.to_owned(),
    };
    let request = retry(&failed, "00000000-0000-4000-8000-000000000001");
    let answer = billing.client.clone().retry_charge(runner()?.request(request.clone())).await?.into_inner();
    assert_eq!(answer.charge.as_ref(), Some(&failed));
    record(&db, "eco_a", 1_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [200]);
    // A repeat has the first answer, and changes nothing more.
    billing.client.clone().retry_charge(runner()?.request(request)).await?;
    let succeeded = charges(&billing).await?.pop().context("a charge")?;
    for charge in [&failed, &succeeded] {
        let again = billing.client.clone().retry_charge(runner()?.request(retry(charge, ""))).await;
        let Err(refused) = again else { anyhow::bail!("not refused") };
        assert_eq!(status::reason(&refused), "CHARGE_NOT_PARKED");
    }
    Ok(())
}

/// Of a period that was settled and paid for.
#[tokio::test]
async fn a_charge_too_high_of_a_period_that_is_over_becomes_a_credit() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    sqlx::query("update eco_subscriptions set anchor_time = now() - interval '2 days'")
        .execute(&db.pool)
        .await?;
    let before = period_before(&db).await?;
    record_at(&db, "eco_a", before, 105_015).await?;
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [502], "rounded for good");
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![502])]);
    let settled = "select count(*) from eco_usage_records where settled_time is not null";
    assert_eq!(sqlx::query_scalar::<_, i64>(settled).fetch_one(&db.pool).await?, 1);

    let period_time = Some(timestamp(before + TimeDelta::days(3)));
    let of_before = |delta, request| AdjustUsageRequest { period_time, ..adjustment(delta, request) };
    assert_eq!(adjust(&billing, of_before(-3_000, 1)).await??, 102_015);
    assert_eq!(adjust(&billing, of_before(-3_000, 1)).await??, 102_015);
    let Err(other) = adjust(
        &billing,
        AdjustUsageRequest { period_time: Some(timestamp(Utc::now())), ..adjustment(-3_000, 1) },
    )
    .await?
    else {
        anyhow::bail!("not refused")
    };
    assert_eq!(fields(&other), ["request_id"]);
    ensure!(!billing.differences(false).await?.iter().any(|(_, kind)| kind == "SETTLEMENT_OVERDUE"));
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [502, -300]);
    assert_eq!(sqlx::query_scalar::<_, i64>(settled).fetch_one(&db.pool).await?, 1);
    assert_eq!(billing.overage("eco_a").await?.overage_count, 0, "of the current one nothing");

    let Err(refused) = adjust(&billing, of_before(-102_016, 2)).await? else { anyhow::bail!("not refused") };
    assert_eq!(status::reason(&refused), "USAGE_BELOW_ZERO");
    let long_ago = Some(timestamp(Utc::now() - TimeDelta::days(900)));
    let unknown = AdjustUsageRequest { period_time: long_ago, ..adjustment(-1, 3) };
    let Err(refused) = adjust(&billing, unknown).await? else { anyhow::bail!("not refused") };
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["period_time".to_owned()]));
    billing.stop().await
}

#[tokio::test]
async fn a_charge_too_high_of_a_closed_segment_becomes_a_credit_whether_or_not_the_plan_is_granted_now()
-> Result<()> {
    for lapsed in [false, true] {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = Billing::start(&db, &sim.base).await?;
        sim.pro(&db, "eco_a").await?;
        meter(&db, "eco_a", 105_000).await?;
        billing.run_all().await?;
        for plan in [Plan::Enterprise, Plan::Pro] {
            let change = ChangePlanRequest {
                eco_id: "eco_a".to_owned(),
                plan: plan.into(),
                apply_now: true,
                ..Default::default()
            };
            billing.change(change).await??;
        }
        sqlx::query("select increment_api_calls(array['eco_a'], array[period_start], array[2], 1::smallint, array[1000::bigint],
                            array[1000::bigint], array[0::bigint], array[now()]) from eco_usage_records")
            .execute(&db.pool)
            .await?;
        billing.run_all().await?;
        assert_eq!(sim.amounts().await?, [500, 100]);
        if lapsed {
            sqlx::query("update eco_subscriptions set status = 'unpaid'").execute(&db.pool).await?;
        }
        let in_segment = |segment, delta, request| AdjustUsageRequest {
            segment: Some(segment),
            ..adjustment(delta, request)
        };
        // A thousand calls of the third segment are within what is included then, but for those that a lapsed plan keeps.
        assert_eq!(adjust(&billing, in_segment(0, -5_500, 1)).await??, 100_500);
        let counts: Vec<(i64, i64)> =
            sqlx::query_as("select recorded_units, overage_units from eco_usage_segments order by segment")
                .fetch_all(&db.pool)
                .await?;
        assert_eq!(counts, [(99_500, 0), (0, 0)]);
        let owed = if lapsed { 1_000 } else { 500 };
        assert_eq!(billing.overage("eco_a").await?.overage_count, owed);
        assert_eq!(billing.run_all().await?.charged_count, 1);
        assert_eq!(sim.amounts().await?, [500, 100, owed / 10 - 600]);
        let found = billing.differences(false).await?;
        ensure!(!found.iter().any(|(_, kind)| kind != "EVENTS_COUNTERS_DIFFER"), "{found:?}");

        let Err(refused) = adjust(&billing, in_segment(0, -99_501, 2)).await? else {
            anyhow::bail!("not refused")
        };
        assert_eq!(status::reason(&refused), "USAGE_BELOW_ZERO");
        for segment in [3, -1] {
            let Err(refused) = adjust(&billing, in_segment(segment, 1, 3)).await? else {
                anyhow::bail!("not refused")
            };
            assert_eq!(
                (refused.code(), fields(&refused)),
                (Code::InvalidArgument, vec!["segment".to_owned()])
            );
        }
        billing.stop().await?;
    }
    Ok(())
}
