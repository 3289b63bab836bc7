//! Who may call what, and what the database lets the service do.

use anyhow::{Context, Result};
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, rate_limit_service_client::RateLimitServiceClient,
};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{
    auth::Scope,
    db::{self, MIGRATOR, Role},
};
use nexus_proto::usage::v1::*;
use nexus_testkit::{db::TestDb, settings};
use sqlx::Executor;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::*;

/// The results of the calls that meter: RecordUsage, BatchRecordUsage, CheckQuota.
async fn metering(server: &Server, options: &CallOptions, eco_id: &str) -> Result<[Result<(), Status>; 3]> {
    let mut client = server.client()?;
    let one = RecordUsageRequest { event: Some(event(eco_id)) };
    let batch = BatchRecordUsageRequest { events: vec![event(eco_id)] };
    let check = CheckQuotaRequest { eco_id: eco_id.to_owned(), ..CheckQuotaRequest::default() };
    Ok([
        client.record_usage(options.request(one)).await.map(|_| ()),
        client.batch_record_usage(options.request(batch)).await.map(|_| ()),
        client.check_quota(options.request(check)).await.map(|_| ()),
    ])
}

#[tokio::test]
async fn users_never_meter_and_services_need_the_scope() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, settings::ADMIN, Plan::Pro).await?;
    for (options, eco_id) in [
        (user("eco_a")?, "eco_a"),
        (user(settings::ADMIN)?, settings::ADMIN),
        (with_scopes(&[Scope::AccountsWrite, Scope::BillingRun])?, "eco_a"),
    ] {
        for result in metering(&server, &options, eco_id).await? {
            refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
        }
    }
    let [record, batch, check] = metering(&server, &with_scopes(&[Scope::UsageWrite])?, "eco_a").await?;
    record?;
    batch?;
    refused(check, Code::PermissionDenied, "PERMISSION_DENIED");
    let [record, batch, check] = metering(&server, &with_scopes(&[Scope::UsageCheck])?, "eco_a").await?;
    refused(record, Code::PermissionDenied, "PERMISSION_DENIED");
    refused(batch, Code::PermissionDenied, "PERMISSION_DENIED");
    check?;
    let verify = VerifyApiKeyRequest { key: "x".to_owned() };
    let result = server.client()?.verify_api_key(with_scopes(&[Scope::UsageWrite])?.request(verify)).await;
    refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    let import = RegisterImportRequest::default();
    let result = server.client()?.register_import(with_scopes(&[Scope::UsageCheck])?.request(import)).await;
    refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test]
async fn an_api_key_reaches_its_own_account_only() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let key = api_key(&made.key)?;
    for result in
        metering(&server, &key, "eco_a").await?.into_iter().chain(metering(&server, &key, "").await?)
    {
        result?;
    }
    for result in metering(&server, &key, "eco_b").await? {
        refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(4));
    assert_eq!(sums(&db.pool, "eco_b").await?, plain(0));
    let stored: Vec<String> =
        sqlx::query_scalar("select distinct api_key_id from eco_api_usage").fetch_all(&db.pool).await?;
    assert_eq!(stored, [made.api_key.context("the answer has the key")?.key_id]);

    let usage = |eco_id: &str| GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
    let mut client = server.client()?;
    assert_eq!(client.get_current_usage(key.request(usage(""))).await?.into_inner().api_calls_count, 4);
    let other = client.get_current_usage(key.request(usage("eco_b"))).await;
    refused(other, Code::PermissionDenied, "PERMISSION_DENIED");
    sqlx::query("update eco_api_keys set status = 'revoked'").execute(&db.pool).await?;
    is_refused(&server, &made.key).await?;
    for result in metering(&server, &key, "eco_a").await? {
        refused(result, Code::Unauthenticated, "INVALID_API_KEY");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_key_with_scopes_may_do_only_those() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let request = CreateApiKeyRequest {
        name: "writes".to_owned(),
        scopes: vec!["usage.write".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let made = server.client()?.create_api_key(user("eco_a")?.request(request)).await?.into_inner();
    let [record, batch, check] = metering(&server, &api_key(&made.key)?, "eco_a").await?;
    record?;
    batch?;
    refused(check, Code::PermissionDenied, "PERMISSION_DENIED");
    Ok(())
}

#[tokio::test]
async fn only_a_service_with_the_scope_asks_for_a_proxy() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    for options in
        [user("eco_a")?, user(settings::ADMIN)?, api_key(&made.key)?, with_scopes(&[Scope::UsageWrite])?]
    {
        let mut client = RateLimitServiceClient::new(server.channel()?);
        let asked = client.should_rate_limit(options.request(RateLimitRequest::default())).await;
        refused(asked, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    Ok(())
}

/// What each role may do with each table and view of the schema; the partitions of the raw log and the hourly
/// rollup are reached through these alone.
const GRANTS: &str = "\
nexus_analytics _sqlx_migrations: select
nexus_analytics eco_accounts_now: select
nexus_analytics eco_accounts_total: select
nexus_analytics eco_current_usage: select
nexus_analytics eco_figures_anew: select
nexus_analytics eco_figures_that_hold: select
nexus_analytics eco_identities: select
nexus_analytics eco_mrr_movements: select
nexus_analytics eco_mrr_movements_now: select
nexus_analytics eco_overage_charges: select
nexus_analytics eco_plan_prices: select
nexus_analytics eco_plans: select
nexus_analytics eco_subscriptions: select
nexus_analytics eco_usage_adjustments: select
nexus_analytics eco_usage_counters: select
nexus_analytics eco_usage_daily: select
nexus_analytics eco_usage_hourly: select
nexus_analytics eco_usage_segments: select
nexus_analytics eco_usage_totals: select
nexus_billing _sqlx_migrations: select
nexus_billing eco_account_changes: select insert delete
nexus_billing eco_account_figures: select insert update delete
nexus_billing eco_api_usage: select
nexus_billing eco_audit_log: select
nexus_billing eco_billing_requests: select insert
nexus_billing eco_checkouts: select insert update
nexus_billing eco_current_usage: select
nexus_billing eco_database_identity: select update
nexus_billing eco_ended_subscriptions: select insert update
nexus_billing eco_figure_deltas: select insert delete
nexus_billing eco_figure_totals: select insert update
nexus_billing eco_identities: select insert update
nexus_billing eco_mrr_movements: select
nexus_billing eco_operator_notices: select insert update
nexus_billing eco_overage_charges: select insert update
nexus_billing eco_overage_run_accounts: select insert update delete
nexus_billing eco_overage_runs: select insert update
nexus_billing eco_plan_grants: select insert
nexus_billing eco_plan_prices: select insert
nexus_billing eco_plan_requests: select insert
nexus_billing eco_plans: select insert
nexus_billing eco_reconciliations: select insert update
nexus_billing eco_sale_requests: select insert update
nexus_billing eco_settlements: select insert update
nexus_billing eco_spend_cap_requests: select insert
nexus_billing eco_stranded_charges: select
nexus_billing eco_stripe_changes: select insert update
nexus_billing eco_stripe_customers: select insert update
nexus_billing eco_stripe_events: select insert update
nexus_billing eco_stripe_invoices: select insert truncate
nexus_billing eco_stripe_items: select insert truncate
nexus_billing eco_stripe_listed_subscriptions: select insert truncate
nexus_billing eco_stripe_prices: select insert update delete
nexus_billing eco_subscriptions: select insert update
nexus_billing eco_usage_adjustments: select insert
nexus_billing eco_usage_changes: select insert delete
nexus_billing eco_usage_counters: select
nexus_billing eco_usage_crossings: select insert update delete
nexus_billing eco_usage_records: select insert update
nexus_billing eco_usage_retention: select
nexus_billing eco_usage_segments: select insert update
nexus_billing eco_usage_thresholds: select insert update
nexus_billing eco_webhook_attempts: select insert update delete
nexus_billing eco_webhook_deliveries: select insert update delete
nexus_billing eco_webhook_endpoints: select insert update delete
nexus_billing eco_webhook_messages: select insert update delete
nexus_billing eco_webhook_secrets: select insert update delete
nexus_billing eco_withheld_accounts: select insert update delete
nexus_usage _sqlx_migrations: select
nexus_usage eco_api_key_rotations: select insert update
nexus_usage eco_api_keys: select insert update
nexus_usage eco_api_usage: select insert
nexus_usage eco_identities: select
nexus_usage eco_imports: select insert
nexus_usage eco_plan_prices: select
nexus_usage eco_plans: select
nexus_usage eco_quota_holders: select insert update delete
nexus_usage eco_quota_leases: select insert update delete
nexus_usage eco_quota_usage: select insert update
nexus_usage eco_spool_cursors: select insert update
nexus_usage eco_subscriptions: select
nexus_usage eco_usage_adjustments: select
nexus_usage eco_usage_changes: insert
nexus_usage eco_usage_counters: select insert update
nexus_usage eco_usage_daily: select insert update delete
nexus_usage eco_usage_hourly: select insert update delete
nexus_usage eco_usage_quarantine: select insert
nexus_usage eco_usage_retention: select
nexus_usage eco_usage_routes: select insert update
nexus_usage eco_usage_segments: select
nexus_usage eco_usage_totals: select insert update delete
";

#[tokio::test]
async fn each_role_has_its_grants_and_no_more() -> Result<()> {
    let db = TestDb::new().await?;
    let grants: Vec<String> = sqlx::query_scalar(
        "select r.name || ' ' || c.relname || ': ' || string_agg(p.name, ' ' order by p.position)
         from unnest(array['nexus_analytics', 'nexus_billing', 'nexus_usage']) as r (name)
              cross join pg_class c
              cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger'])
                         with ordinality as p (name, position)
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
           and (has_table_privilege(r.name, c.oid, p.name)
                or p.name in ('select', 'insert', 'update', 'references')
                   and has_any_column_privilege(r.name, c.oid, p.name))
         group by r.name, c.relname order by r.name, c.relname",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!(grants.join("\n"), GRANTS.trim_end());

    // Public has none, and nobody another's.
    let functions: Vec<String> = sqlx::query_scalar(
        "select r.name || ' ' || f.proname
         from unnest(array['nexus_analytics', 'nexus_billing', 'nexus_usage', 'public']) as r (name)
              cross join pg_proc f
         where f.pronamespace = 'public'::regnamespace and f.provolatile = 'v'
           and has_function_privilege(r.name, f.oid, 'execute')
         group by 1 order by 1",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!(
        functions,
        [
            "nexus_billing nexus_add_figure_deltas",
            "nexus_billing nexus_compute_figures",
            "nexus_billing nexus_note_due_mrr",
            "nexus_usage aggregate_daily_usage",
            "nexus_usage increment_api_calls",
            "nexus_usage nexus_advance_spool_cursor",
            "nexus_usage nexus_disown_lease",
            "nexus_usage nexus_drop_usage_partitions",
            "nexus_usage nexus_ensure_usage_partitions",
            "nexus_usage nexus_grant_quota",
            "nexus_usage nexus_lend_quota",
            "nexus_usage nexus_settle_leases",
            "nexus_usage nexus_settle_lent_quota",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn the_database_refuses_what_was_not_granted() -> Result<()> {
    let db = TestDb::new().await?;
    for (role, statement) in [
        (Role::Usage, "insert into eco_identities (eco_id) values ('eco_x')"),
        (Role::Usage, "select * from eco_overage_charges"),
        (Role::Usage, "update eco_api_usage set units_count = 0"),
        (Role::Usage, "drop table eco_api_usage"),
        (Role::Billing, "select secret_sha256 from eco_api_keys"),
        (Role::Billing, "update eco_usage_counters set recorded_units = 0"),
        (Role::Analytics, "select secret_sha256 from eco_api_keys"),
        (Role::Billing, "insert into eco_mrr_movements (eco_id) values ('eco_x')"),
        (Role::Billing, "delete from eco_mrr_movements"),
        (Role::Analytics, "select * from eco_overage_charges"),
        (Role::Analytics, "select stripe_subscription_id from eco_subscriptions"),
        (Role::Analytics, "select * from eco_api_usage"),
    ] {
        let pool = db::pool(&db.args(), role)?;
        let error = sqlx::query(statement).execute(&pool).await.expect_err(statement);
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn who_may_create_roles_and_migrates_may_act_as_each_service() -> Result<()> {
    let db = TestDb::new().await?;
    let mut connection = nexus_kit::db::acquire(&db.pool).await?;
    let migrator = format!("m_{}", Uuid::new_v4().simple());
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&mut *connection)
        .await?;
    // Who creates a role gets this membership in it, from PostgreSQL 16 on; here the roles exist already.
    let membership = if version < 160_000 {
        String::new()
    } else {
        format!(
            "grant nexus_usage, nexus_billing, nexus_analytics to {migrator}
             with admin true, inherit false, set false;"
        )
    };
    let prepare = format!(
        "create role {migrator} createrole; {membership}
         drop schema public cascade; create schema public authorization {migrator};
         set session authorization {migrator}"
    );
    connection.execute(sqlx::AssertSqlSafe(prepare)).await?;
    MIGRATOR.run_direct(None, &mut *connection, false).await?;
    for role in ["nexus_usage", "nexus_billing", "nexus_analytics"] {
        connection.execute(sqlx::AssertSqlSafe(format!("set role {role}; reset role"))).await?;
    }
    let clean_up = format!(
        "reset session authorization; drop schema public cascade; drop owned by {migrator}; drop role {migrator}"
    );
    connection.execute(sqlx::AssertSqlSafe(clean_up)).await?;
    Ok(())
}
