//! RecordUsage and BatchRecordUsage: outcomes, refusals, and where an event counts.

use anyhow::Result;
use chrono::{DateTime, Months, TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_kit::{convert::timestamp, serve::MAX_REQUEST_BYTES};
use nexus_proto::usage::v1::{BatchRecordUsageRequest, CheckQuotaRequest, EventOutcome, UsageEvent};
use nexus_testkit::seed;
use prost::Message;
use tonic::{Code, codec::CompressionEncoding};
use uuid::Uuid;

use nexus_usage::app::bound_routes::{MAX_ROUTES, OTHER};

use crate::support::*;

#[tokio::test]
async fn a_batch_tells_each_event_its_outcome() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_closed", Plan::Pro).await?;
    sqlx::query("update eco_identities set status = 'closed', closed_time = now() - interval '1 hour' where eco_id = 'eco_closed'")
        .execute(&db.pool)
        .await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let key_of_b = make_key(&server, "eco_b", false).await?.api_key.map(|k| k.key_id).unwrap_or_default();

    let first = event("eco_a");
    let events = vec![
        first.clone(),
        first.clone(),
        UsageEvent { status_code: 500, ..first.clone() },
        event("eco_nobody"),
        event("eco_closed"),
        event_at("eco_closed", now() - TimeDelta::hours(2)),
        event_at("eco_a", now() - TimeDelta::days(35) - TimeDelta::minutes(1)),
        event_at("eco_a", now() + TimeDelta::minutes(6)),
        UsageEvent { status_code: 99, ..event("eco_a") },
        UsageEvent { api_key_id: key_of_b, ..event("eco_a") },
        event_at("eco_a", now() + TimeDelta::minutes(4)),
        event_at("eco_a", now() - TimeDelta::days(34)),
    ];
    let answer = record_batch(&server, events).await?;

    use EventOutcome as O;
    let results: Vec<(i32, EventOutcome, &str)> =
        answer.results.iter().map(|r| (r.index, r.outcome(), r.field.as_str())).collect();
    assert_eq!(
        results,
        [
            (1, O::Duplicate, ""),
            (2, O::Conflict, ""),
            (3, O::UnknownAccount, ""),
            (4, O::ClosedAccount, ""),
            (6, O::TooOld, ""),
            (7, O::InTheFuture, ""),
            (8, O::Invalid, "status_code"),
            (9, O::Invalid, "api_key_id"),
        ]
    );
    assert!(answer.results.iter().all(|r| !r.message.is_empty() && !r.event_id.is_empty()));
    assert_eq!((answer.accepted_count, answer.duplicate_count, answer.rejected_count), (4, 1, 7));
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(3));
    assert_eq!(sums(&db.pool, "eco_closed").await?, plain(1));
    Ok(())
}

#[tokio::test]
async fn a_single_event_is_refused_with_a_status() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_closed", Plan::Pro).await?;
    sqlx::query("update eco_identities set status = 'closed', closed_time = now() - interval '25 hours' where eco_id = 'eco_closed'")
        .execute(&db.pool)
        .await?;
    let first = event("eco_a");
    assert_eq!(record(&server, first.clone()).await?.outcome(), EventOutcome::Accepted);
    let repeat = record(&server, first.clone()).await?;
    assert_eq!((repeat.outcome(), repeat.duplicate_count), (EventOutcome::Duplicate, 1));

    let other = UsageEvent { response_time_ms: 8, ..first };
    refused(record(&server, other).await, Code::AlreadyExists, "EVENT_CONFLICT");
    refused(record(&server, event("eco_nobody")).await, Code::NotFound, "ACCOUNT_NOT_FOUND");
    // Before the closure, but the grace after it is over.
    let before = event_at("eco_closed", now() - TimeDelta::hours(26));
    refused(record(&server, before).await, Code::FailedPrecondition, "ACCOUNT_CLOSED");
    let old = event_at("eco_a", now() - TimeDelta::days(36));
    refused(record(&server, old).await, Code::FailedPrecondition, "EVENT_TOO_OLD");
    let ahead = event_at("eco_a", now() + TimeDelta::minutes(6));
    refused(record(&server, ahead).await, Code::FailedPrecondition, "EVENT_IN_THE_FUTURE");
    let foreign = UsageEvent { api_key_id: format!("eco_api_{}", "0".repeat(22)), ..event("eco_a") };
    let status = refused(record(&server, foreign).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["event.api_key_id"]);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    Ok(())
}

#[tokio::test]
async fn every_violation_is_named_at_once() -> Result<()> {
    let (_db, server) = server().await?;
    let event = UsageEvent {
        eco_id: "acme".to_owned(),
        event_id: "1".to_owned(),
        event_time: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
        endpoint: format!("?{}\0", "x".repeat(600)),
        method: "GET /".to_owned(),
        status_code: 600,
        response_time_ms: -1,
        units_count: 1_000_001,
        api_key_id: "key".to_owned(),
        admission: "yes".to_owned(),
    };
    let status = refused(record(&server, event).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let expected = [
        "event.eco_id",
        "event.event_id",
        "event.event_time",
        "event.endpoint",
        "event.endpoint",
        "event.endpoint",
        "event.method",
        "event.status_code",
        "event.response_time_ms",
        "event.units_count",
        "event.api_key_id",
        "event.admission",
    ];
    assert_eq!(fields(&status), expected);
    Ok(())
}

#[tokio::test]
async fn a_batch_has_1_to_10000_events() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    for size in [0, 10_001] {
        let events = (0..size).map(|_| event("eco_a")).collect();
        let status = refused(record_batch(&server, events).await, Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(fields(&status), ["events"]);
    }
    // Far more are refused before anything is built of them: empty ones take next to no bytes.
    let events = vec![UsageEvent::default(); 20_001];
    refused(record_batch(&server, events).await, Code::OutOfRange, "MESSAGE_TOO_LARGE");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
    let events = (0..10_000).map(|_| event("eco_a")).collect();
    assert_eq!(record_batch(&server, events).await?.accepted_count, 10_000);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(10_000));
    Ok(())
}

/// A message of a few bytes may be unpacked to millions.
#[tokio::test]
async fn a_packed_message_is_unpacked_to_what_its_rpc_may_have() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = server.client()?.send_compressed(encoding);
        let mut check = async |bytes: usize| {
            let request = CheckQuotaRequest { eco_id: "x".repeat(bytes), ..Default::default() };
            anyhow::Ok(client.check_quota(service()?.request(request)).await)
        };
        refused(check(MAX_REQUEST_BYTES + 1).await?, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
        refused(check(MAX_REQUEST_BYTES - 16).await?, Code::InvalidArgument, "INVALID_ARGUMENT");
        let events: Vec<_> = (0..10_000).map(|_| event("eco_a")).collect();
        let batch = BatchRecordUsageRequest { events };
        assert!(batch.encoded_len() > 2 * MAX_REQUEST_BYTES);
        let answer = client.batch_record_usage(service()?.request(batch)).await?.into_inner();
        assert_eq!(answer.accepted_count, 10_000);
    }
    Ok(())
}

#[tokio::test]
async fn the_time_is_that_of_a_uuid_v7_unless_it_is_given() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let at = now() - TimeDelta::hours(3);
    let v7 = Uuid::new_v7(uuid::Timestamp::from_unix(
        uuid::NoContext,
        at.timestamp().try_into()?,
        at.timestamp_subsec_nanos(),
    ));
    record(&server, UsageEvent { event_id: v7.to_string(), event_time: None, ..event("eco_a") }).await?;
    let stored: DateTime<Utc> =
        sqlx::query_scalar("select event_time from eco_api_usage").fetch_one(&db.pool).await?;
    assert_eq!(stored.timestamp_millis(), at.timestamp_millis());

    let v4 = UsageEvent { event_id: Uuid::new_v4().to_string(), event_time: None, ..event("eco_a") };
    let status = refused(record(&server, v4).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["event.event_time"]);
    Ok(())
}

/// Period and lateness of the account's only row, and the period it was counted in.
async fn placement(
    db: &nexus_testkit::db::TestDb,
    eco_id: &str,
) -> Result<(DateTime<Utc>, bool, DateTime<Utc>)> {
    Ok(sqlx::query_as(
        "select u.period_start, u.late, c.period_start from eco_api_usage u join eco_usage_counters c using (eco_id) where eco_id = $1",
    )
    .bind(eco_id)
    .fetch_one(&db.pool)
    .await?)
}

#[tokio::test]
async fn an_event_after_the_grace_counts_in_the_current_period() -> Result<()> {
    let (db, server) = server().await?;
    // Years that end on the same day of the same month, leap days included.
    let years = Months::new(48);
    // The period before ended three days ago: settled. An event of its time is late.
    let start = now() - TimeDelta::days(3);
    seed::account(&db.pool, "eco_settled", Plan::Pro, start - years).await?;
    record(&server, event_at("eco_settled", start - TimeDelta::days(1))).await?;
    assert_eq!(placement(&db, "eco_settled").await?, (start, true, start));
    assert_eq!(current(&server, "eco_settled").await?.api_calls_count, 1);

    // It ended 12 hours ago: an event of its time still counts in it.
    let start = now() - TimeDelta::hours(12);
    seed::account(&db.pool, "eco_in_grace", Plan::Pro, start - years).await?;
    record(&server, event_at("eco_in_grace", start - TimeDelta::hours(1))).await?;
    let (period, late, counted) = placement(&db, "eco_in_grace").await?;
    assert!(period < start && !late && counted == period);
    assert_eq!(current(&server, "eco_in_grace").await?.api_calls_count, 0);
    Ok(())
}

#[tokio::test]
async fn an_event_from_before_the_anchor_counts_in_the_first_period_and_is_not_late() -> Result<()> {
    let (db, server) = server().await?;
    let anchor = now() - TimeDelta::hours(1);
    for (eco_id, before, test_mode) in [
        ("eco_just", TimeDelta::milliseconds(1), false),
        ("eco_long", TimeDelta::days(34), false),
        ("eco_test", TimeDelta::days(34), true),
    ] {
        seed::account(&db.pool, eco_id, Plan::Pro, anchor).await?;
        let made = make_key(&server, eco_id, test_mode).await?.api_key;
        let api_key_id = made.map(|key| key.key_id).unwrap_or_default();
        record(&server, UsageEvent { api_key_id, ..event_at(eco_id, anchor - before) }).await?;
        assert_eq!(placement(&db, eco_id).await?, (anchor, false, anchor), "{eco_id}");
        let units = i64::from(!test_mode);
        assert_eq!(current(&server, eco_id).await?.api_calls_count, units, "{eco_id}");
        let test_units = 1 - units;
        let expected = Sums { test_raw: test_units, test_counted: test_units, ..plain(units) };
        assert_eq!(sums(&db.pool, eco_id).await?, expected, "{eco_id}");
    }
    Ok(())
}

#[tokio::test]
async fn test_mode_keys_are_metered_apart() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let key = make_key(&server, "eco_a", true).await?.api_key.map(|k| k.key_id).unwrap_or_default();
    let again = key.clone();
    record(&server, UsageEvent { api_key_id: key, units_count: 5, ..event("eco_a") }).await?;
    record(&server, UsageEvent { units_count: 2, ..event("eco_a") }).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, Sums { test_raw: 5, test_counted: 5, ..plain(2) });
    let usage = current(&server, "eco_a").await?;
    assert_eq!((usage.api_calls_count, usage.consumed_count), (2, 2));
    // The test key's call is not the newest that is recorded, though it comes later.
    let newest = "select max(last_event_time) from eco_usage_counters where eco_id = 'eco_a'";
    let before: DateTime<Utc> = sqlx::query_scalar(newest).fetch_one(&db.pool).await?;
    record(&server, UsageEvent { api_key_id: again, ..event("eco_a") }).await?;
    let after: DateTime<Utc> = sqlx::query_scalar(newest).fetch_one(&db.pool).await?;
    assert_eq!(before, after);
    Ok(())
}

#[tokio::test]
async fn the_row_keeps_what_was_sent_and_the_rollup_its_template() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    record(&server, UsageEvent { endpoint: "/v1/things".to_owned(), ..event("eco_a") }).await?;
    let raw: Vec<(String, Option<String>, String)> =
        sqlx::query_as("select endpoint, route, method from eco_api_usage order by endpoint")
            .fetch_all(&db.pool)
            .await?;
    let things = ("/v1/things".to_owned(), None, "GET".to_owned());
    let thing = ("/v1/things/42?page=1".to_owned(), Some("/v1/things/{id}".to_owned()), "GET".to_owned());
    assert_eq!(raw, [things, thing]);
    let routes: Vec<String> =
        sqlx::query_scalar("select route from eco_usage_daily order by route").fetch_all(&db.pool).await?;
    assert_eq!(routes, ["/v1/things", "/v1/things/{id}"]);
    Ok(())
}

#[tokio::test]
async fn beyond_a_bound_an_accounts_routes_are_rolled_up_together() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    for id in ["eco_a", "eco_b"] {
        account(&db, id, Plan::Pro).await?;
    }
    // By word: numbers would be ids, and one template.
    let word =
        |n: usize| format!("/v1/r{}{}", char::from(b'a' + (n / 26) as u8), char::from(b'a' + (n % 26) as u8));
    let calls = |range: std::ops::Range<usize>| -> Vec<UsageEvent> {
        range.map(|n| UsageEvent { endpoint: word(n), ..event("eco_a") }).collect()
    };
    let max = MAX_ROUTES as usize;
    // At two servers at once, with some routes in both.
    let (left, right) = tokio::join!(record_batch(&one, calls(0..300)), record_batch(&two, calls(200..max)));
    left?;
    right?;
    record_batch(&one, calls(max - 10..max + 50)).await?;
    record_batch(&two, calls(max + 40..max + 60)).await?;
    record(&one, UsageEvent { endpoint: word(max + 1), ..event("eco_b") }).await?;

    let routes: Vec<(String, i64)> = sqlx::query_as(
        "select route, units_count from eco_usage_daily where eco_id = 'eco_a' order by units_count desc, route",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!((routes.len(), routes[0].clone()), (max + 1, (OTHER.to_owned(), 70)));
    let of_b: String = sqlx::query_scalar("select route from eco_usage_daily where eco_id = 'eco_b'")
        .fetch_one(&db.pool)
        .await?;
    assert_eq!(of_b, word(max + 1));
    // The raw log keeps what was sent, and how it was rolled up.
    let kept: i64 =
        sqlx::query_scalar("select count(distinct endpoint) from eco_api_usage where route = '{other}'")
            .fetch_one(&db.pool)
            .await?;
    assert_eq!(kept, 60);
    let before = rollups(&db).await?;
    sqlx::query("select aggregate_daily_usage((now() at time zone 'UTC')::date)").execute(&db.pool).await?;
    assert_eq!(rollups(&db).await?, before);
    Ok(())
}

/// Ids that are not known for what they are by their looks.
#[tokio::test]
async fn many_routes_that_differ_in_an_id_become_one_and_leave_places_to_others() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let id = |n: usize| format!("/v1/posts/entry-{}-of-{}", n, char::from(b'a' + (n % 26) as u8));
    let calls = |range: std::ops::Range<usize>| -> Vec<UsageEvent> {
        range.map(|n| UsageEvent { endpoint: id(n), ..event("eco_a") }).collect()
    };
    // Few are routes of their own; many are not, whether they come one by one or at once.
    for events in
        [calls(0..5), calls(5..10), calls(10..15), calls(15..100), calls(100..1_995), calls(1_995..2_000)]
    {
        record_batch(&server, events).await?;
    }
    record(&server, UsageEvent { endpoint: "/v1/new-route".to_owned(), ..event("eco_a") }).await?;
    let routes: Vec<(String, i64)> = sqlx::query_as(
        "select route, units_count from eco_usage_daily where eco_id = 'eco_a' order by units_count desc, route",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!(routes[0], ("/v1/posts/{id}".to_owned(), 1_985));
    assert_eq!(routes.len(), 1 + 15 + 1, "{routes:?}");
    assert!(routes.contains(&("/v1/new-route".to_owned(), 1)));
    let before = rollups(&db).await?;
    sqlx::query("select aggregate_daily_usage((now() at time zone 'UTC')::date)").execute(&db.pool).await?;
    assert_eq!(rollups(&db).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_missing_partition_loses_no_event() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    let at = now() - TimeDelta::days(20);
    for (n, table) in ["eco_api_usage", "eco_usage_hourly"].into_iter().enumerate() {
        let partition = format!("{table}_p{}", at.format("%Y%m%d"));
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {partition}"))).execute(&db.pool).await?;
        assert_eq!(record(&server, event_at("eco_a", at)).await?.outcome(), EventOutcome::Accepted);
        let units: i64 = sqlx::query_scalar("select sum(units_count)::bigint from eco_usage_daily")
            .fetch_one(&db.pool)
            .await?;
        assert_eq!(units, 2 + n as i64);
    }
    Ok(())
}

#[tokio::test]
async fn times_are_kept_to_the_microsecond_so_that_a_repeat_is_the_same() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let mut time = timestamp(now());
    time.nanos += 999;
    let precise = UsageEvent { event_time: Some(time), ..event("eco_a") };
    record(&server, precise.clone()).await?;
    assert_eq!(record(&server, precise).await?.outcome(), EventOutcome::Duplicate);
    Ok(())
}
