//! Webhooks on their way: at least once, under one id, whatever the receiver or a crash does.

use std::collections::HashMap;

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::status;
use nexus_proto::billing::v1::{
    UpdateWebhookEndpointRequest, WebhookDeliveryStatus as Status, WebhookDisabledReason, *,
};
use nexus_testkit::{db::TestDb, seed};

use crate::{
    receiver::{Answer, Receiver},
    support::{Billing, anchor, until, user},
    webhook_support::{
        ALL_DONE, ALL_WAIT, Endpoint, execute, impatient, settings, stretch_pauses, time_passes,
    },
};

struct World {
    db: TestDb,
    billing: Billing,
    receiver: Receiver,
    endpoint: Endpoint,
}

impl World {
    async fn with(settings: fn(&TestDb) -> nexus_billing::Config) -> Result<Self> {
        let db = TestDb::new().await?;
        stretch_pauses(&db).await?;
        seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
        let billing = Billing::start_with(settings(&db)).await?;
        let receiver = Receiver::start().await?;
        let endpoint = billing.endpoint("eco_a", &receiver.url).await?;
        Ok(Self { db, billing, receiver, endpoint })
    }

    /// The log of the one delivery there is: status and error of each attempt.
    async fn log(&self) -> Result<(Status, Vec<(i32, String)>)> {
        let delivery = self.billing.deliveries(&self.endpoint).await?.pop().context("a delivery")?;
        assert!(delivery.attempts.iter().zip(1..).all(|(attempt, n)| attempt.attempt == n));
        let log = delivery.attempts.iter().map(|a| (a.http_status, a.error.clone())).collect();
        Ok((delivery.status(), log))
    }
}

#[tokio::test]
async fn what_fails_is_sent_again_under_the_same_id_until_it_succeeds() -> Result<()> {
    let mut w = World::with(settings).await?;
    w.receiver.answer(Answer::Status(500));
    w.receiver.answer(Answer::RetryAfter(503, 3_600));
    let sent = w.billing.test(&w.endpoint).await?;
    assert_eq!((sent.status(), sent.event_type.as_str()), (Status::Pending, "webhook.test"));
    let first = w.receiver.next().await?;
    assert_eq!((first.id()?, first.signed_by(&w.endpoint.secret)?), (sent.webhook_id.clone(), 1));
    assert_eq!(first.header("content-type")?, "application/json");
    assert_eq!(first.body, sent.payload);

    until(&w.db, ALL_WAIT).await?;
    let soon = "select due_time - started_time >= interval '1 hour 4 s' and due_time - now() <= interval '1 hour 6 s'
                from eco_webhook_deliveries join eco_webhook_attempts using (endpoint_id, message_id)";
    assert!(sqlx::query_scalar::<_, bool>(soon).fetch_one(&w.db.pool).await?);
    assert!(w.billing.shown(&w.endpoint).await?.failing_since_time.is_some());
    time_passes(&w.db).await?;
    let second = w.receiver.next().await?;
    assert_eq!((second.id()?, second.body), (first.id()?, first.body.clone()));
    until(&w.db, ALL_WAIT).await?;
    let later = "select due_time - now() > interval '1 hour 55 min' from eco_webhook_deliveries";
    assert!(sqlx::query_scalar::<_, bool>(later).fetch_one(&w.db.pool).await?, "as the receiver asked");
    time_passes(&w.db).await?;
    let third = w.receiver.next().await?;
    assert_eq!((third.id()?, third.signed_by(&w.endpoint.secret)?), (first.id()?, 1));
    until(&w.db, ALL_DONE).await?;
    let failed = |status| (status, "HTTP_STATUS".to_owned());
    assert_eq!(w.log().await?, (Status::Succeeded, vec![failed(500), failed(503), (204, String::new())]));
    assert_eq!(w.billing.shown(&w.endpoint).await?.failing_since_time, None);
    let durations = w.billing.deliveries(&w.endpoint).await?.remove(0).attempts;
    assert!(durations.iter().all(|attempt| attempt.duration_ms.is_some() && attempt.start_time.is_some()));
    w.billing.stop().await
}

#[tokio::test]
async fn after_ten_attempts_it_has_failed_and_can_be_sent_again() -> Result<()> {
    let mut w = World::with(settings).await?;
    (0..10).for_each(|_| w.receiver.answer(Answer::Status(500)));
    let sent = w.billing.test(&w.endpoint).await?;
    for _ in 0..10 {
        assert_eq!(w.receiver.next().await?.id()?, sent.webhook_id);
        until(&w.db, ALL_WAIT).await?;
        time_passes(&w.db).await?;
    }
    until(&w.db, ALL_DONE).await?;
    let (status, log) = w.log().await?;
    assert_eq!((status, log.len()), (Status::Failed, 10));

    let request_id = "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a10";
    let again = w.billing.redeliver(&w.endpoint, &sent.webhook_id, request_id).await??;
    assert_eq!(again.status(), Status::Pending);
    assert_eq!(w.receiver.next().await?.id()?, sent.webhook_id);
    until(&w.db, ALL_DONE).await?;
    let repeated = w.billing.redeliver(&w.endpoint, &sent.webhook_id, request_id).await??;
    assert_eq!((repeated.status(), repeated.attempts.len()), (Status::Succeeded, 11), "nothing is sent");
    let another = w.billing.redeliver(&w.endpoint, &sent.webhook_id, "").await??;
    assert_eq!(another.status(), Status::Pending);
    assert_eq!(w.receiver.next().await?.id()?, sent.webhook_id);
    let unknown = w.billing.redeliver(&w.endpoint, "msg_00000000000000000000000000000000", "").await?;
    assert_eq!(status::reason(&unknown.err().context("refused")?), "DELIVERY_NOT_FOUND");
    w.billing.stop().await
}

#[tokio::test]
async fn a_receiver_that_hangs_is_given_up_and_holds_up_nobody_else() -> Result<()> {
    let mut w = World::with(impatient).await?;
    let mut other = Receiver::start().await?;
    let second = w.billing.endpoint("eco_a", &other.url).await?;
    w.receiver.answer(Answer::Hang);
    w.billing.test(&w.endpoint).await?;
    w.billing.test(&second).await?;
    w.receiver.next().await?;
    other.next().await?;
    until(&w.db, ALL_WAIT).await?;
    assert_eq!(w.log().await?, (Status::Pending, vec![(0, "TIMEOUT".to_owned())]));
    w.billing.stop().await
}

#[tokio::test]
async fn redirects_are_not_followed() -> Result<()> {
    let mut w = World::with(settings).await?;
    let mut elsewhere = Receiver::start().await?;
    w.receiver.answer(Answer::Redirect(elsewhere.url.clone()));
    w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_WAIT).await?;
    assert_eq!(w.log().await?, (Status::Pending, vec![(307, "HTTP_STATUS".to_owned())]));
    assert!(elsewhere.rest().is_empty());
    w.billing.stop().await
}

#[tokio::test]
async fn a_receiver_that_is_gone_hears_nothing_more_until_it_is_enabled() -> Result<()> {
    let mut w = World::with(settings).await?;
    w.receiver.answer(Answer::Status(410));
    let sent = w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_DONE).await?;
    assert_eq!(w.log().await?, (Status::Failed, vec![(410, "HTTP_STATUS".to_owned())]));
    let shown = w.billing.shown(&w.endpoint).await?;
    assert_eq!((shown.enabled, shown.disabled_reason()), (false, WebhookDisabledReason::Gone));
    assert!(shown.disable_time.is_some());

    let request = SendTestWebhookRequest { endpoint_id: w.endpoint.id.clone(), ..Default::default() };
    let refused = w.billing.client.clone().send_test_webhook(user("eco_a")?.request(request)).await;
    assert_eq!(status::reason(&refused.err().context("refused")?), "ENDPOINT_DISABLED");
    let refused = w.billing.redeliver(&w.endpoint, &sent.webhook_id, "").await?;
    assert_eq!(status::reason(&refused.err().context("refused")?), "ENDPOINT_DISABLED");

    let enable = UpdateWebhookEndpointRequest { enabled: Some(true), ..Default::default() };
    let enabled = w.billing.update(&w.endpoint, enable).await?;
    assert_eq!((enabled.enabled, enabled.disable_time), (true, None));
    w.billing.redeliver(&w.endpoint, &sent.webhook_id, "").await??;
    assert_eq!(w.receiver.next().await?.id()?, sent.webhook_id);
    w.billing.stop().await
}

#[tokio::test]
async fn an_endpoint_that_fails_for_five_days_is_disabled_and_what_waits_for_it_is_sent_later() -> Result<()>
{
    let mut w = World::with(settings).await?;
    w.receiver.answer(Answer::Status(500));
    w.receiver.answer(Answer::Status(500));
    let sent = w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_WAIT).await?;
    assert!(w.billing.shown(&w.endpoint).await?.enabled);
    execute(&w.db, "update eco_webhook_endpoints set failing_since = now() - interval '5 days'").await?;
    time_passes(&w.db).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_WAIT).await?;
    let shown = w.billing.shown(&w.endpoint).await?;
    assert_eq!((shown.enabled, shown.disabled_reason()), (false, WebhookDisabledReason::Failing));
    let waits = w.billing.deliveries(&w.endpoint).await?.remove(0);
    assert_eq!((waits.status(), waits.next_attempt_time), (Status::Pending, None), "until it is enabled");

    let enable = UpdateWebhookEndpointRequest { enabled: Some(true), ..Default::default() };
    assert_eq!(w.billing.update(&w.endpoint, enable).await?.failing_since_time, None);
    assert_eq!(w.receiver.next().await?.id()?, sent.webhook_id);
    until(&w.db, ALL_DONE).await?;
    assert!(w.billing.shown(&w.endpoint).await?.enabled);
    w.billing.stop().await
}

/// Its owner disables it while a request is under way: what that came to is noted, and nothing more is sent.
#[tokio::test]
async fn an_endpoint_that_is_disabled_in_the_middle_is_sent_the_rest_once_it_is_enabled() -> Result<()> {
    let mut w = World::with(settings).await?;
    w.receiver.answer(Answer::Wait);
    w.billing.test(&w.endpoint).await?;
    let first = w.receiver.next().await?;
    let second = w.billing.test(&w.endpoint).await?;
    let disable = UpdateWebhookEndpointRequest { enabled: Some(false), ..Default::default() };
    w.billing.update(&w.endpoint, disable).await?;
    let held = "select count(*) = 2 and bool_and(held) from eco_webhook_deliveries";
    assert!(sqlx::query_scalar::<_, bool>(held).fetch_one(&w.db.pool).await?);
    w.receiver.go_on();
    until(&w.db, "select count(*) = 1 from eco_webhook_deliveries where status = 'succeeded'").await?;
    time_passes(&w.db).await?;
    let other = w.billing.endpoint("eco_a", &w.receiver.url).await?;
    w.billing.test(&other).await?;
    let heard = w.receiver.next().await?;
    assert_eq!(heard.signed_by(&other.secret)?, 1, "the other endpoint alone");
    let enable = UpdateWebhookEndpointRequest { enabled: Some(true), ..Default::default() };
    w.billing.update(&w.endpoint, enable).await?;
    let then = w.receiver.next().await?.id()?;
    assert_eq!(then, second.webhook_id);
    assert_ne!(then, first.id()?);
    until(&w.db, ALL_DONE).await?;
    assert!(w.receiver.rest().is_empty());
    w.billing.stop().await
}

/// Of an endpoint that hangs, more is due, and for longer, than a replica looks at when it takes what is due.
#[tokio::test]
async fn however_much_waits_for_one_endpoint_the_others_have_their_turn() -> Result<()> {
    let mut w = World::with(settings).await?;
    let mut other = Receiver::start().await?;
    let second = w.billing.endpoint("eco_a", &other.url).await?;
    w.receiver.answer(Answer::Hang);
    let many = "with messages as (
            insert into eco_webhook_messages (message_id, eco_id, event_type, payload)
            select gen_random_uuid(), 'eco_a', 'webhook.test', '{}' from generate_series(1, 1000)
            returning message_id)
        insert into eco_webhook_deliveries (endpoint_id, message_id, due_time)
        select $1::uuid, message_id, now() - interval '1 hour' from messages";
    sqlx::query(many).bind(&w.endpoint.id).execute(&w.db.pool).await?;
    w.receiver.next().await?;
    // Sent by hand: an account may not send so many tests.
    let sent = "with message as (
            insert into eco_webhook_messages (message_id, eco_id, event_type, payload)
            values (gen_random_uuid(), 'eco_a', 'webhook.test', '{}') returning message_id)
        insert into eco_webhook_deliveries (endpoint_id, message_id)
        select $1::uuid, message_id from message";
    sqlx::query(sent).bind(&second.id).execute(&w.db.pool).await?;
    other.next().await?;
    assert!(w.receiver.rest().is_empty(), "one at a time");
    w.billing.kill().await
}

/// All endpoints of an account hang, and there are more of them than are tried at once.
#[tokio::test]
async fn an_account_has_a_few_deliveries_under_way_and_leaves_the_rest_to_others() -> Result<()> {
    let mut w = World::with(settings).await?;
    seed::account(&w.db.pool, "eco_b", Plan::Pro, anchor()).await?;
    let mut other = Receiver::start().await?;
    for _ in 0..6 {
        w.receiver.answer(Answer::Hang);
        let endpoint = w.billing.endpoint("eco_a", &w.receiver.url).await?;
        w.billing.test(&endpoint).await?;
    }
    for _ in 0..4 {
        w.receiver.next().await?;
    }
    for _ in 0..3 {
        w.billing.test(&w.billing.endpoint("eco_b", &other.url).await?).await?;
        other.next().await?;
    }
    let under_way = "select count(*) from eco_webhook_deliveries where lease_end_time > now()
                     and endpoint_id in (select endpoint_id from eco_webhook_endpoints where eco_id = 'eco_a')";
    assert_eq!(sqlx::query_scalar::<_, i64>(under_way).fetch_one(&w.db.pool).await?, 4);
    assert!(w.receiver.rest().is_empty());
    w.billing.kill().await
}

#[tokio::test]
async fn the_log_of_a_delivery_has_the_last_fifty_attempts() -> Result<()> {
    let mut w = World::with(settings).await?;
    let sent = w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_DONE).await?;
    let earlier = "with delivery as (
            update eco_webhook_deliveries set attempts = 60 returning endpoint_id, message_id)
        insert into eco_webhook_attempts (endpoint_id, message_id, attempt)
        select endpoint_id, message_id, attempt from delivery, generate_series(2, 60) as attempt";
    execute(&w.db, earlier).await?;
    w.billing.redeliver(&w.endpoint, &sent.webhook_id, "").await??;
    w.receiver.next().await?;
    until(&w.db, ALL_DONE).await?;
    let log = w.billing.deliveries(&w.endpoint).await?.remove(0).attempts;
    assert_eq!(log.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), (12..=61).collect::<Vec<_>>());
    let kept: i64 =
        sqlx::query_scalar("select count(*) from eco_webhook_attempts").fetch_one(&w.db.pool).await?;
    assert_eq!(kept, 50);
    w.billing.stop().await
}

/// The request has reached the receiver, and the process ends before it is noted.
#[tokio::test]
async fn what_a_killed_server_may_have_sent_is_sent_again_under_the_same_id() -> Result<()> {
    let mut w = World::with(settings).await?;
    w.receiver.answer(Answer::Hang);
    w.billing.test(&w.endpoint).await?;
    let first = w.receiver.next().await?;
    w.billing.kill().await?;
    let billing = Billing::start_with(settings(&w.db)).await?;
    let held = execute(
        &w.db,
        "update eco_webhook_deliveries set lease_end_time = now() where lease_end_time > now()",
    );
    assert_eq!(held.await?, 1, "the lease outlives its holder");
    let second = w.receiver.next().await?;
    assert_eq!((second.id()?, &second.body), (first.id()?, &first.body));
    assert_eq!(second.signed_by(&w.endpoint.secret)?, 1);
    until(&w.db, ALL_DONE).await?;
    let log = billing.deliveries(&w.endpoint).await?.remove(0).attempts;
    let noted: Vec<_> = log.iter().map(|a| (a.duration_ms.is_some(), a.http_status)).collect();
    assert_eq!(noted, [(false, 0), (true, 204)], "the log has the one that was cut off, too");
    billing.stop().await
}

#[tokio::test]
async fn two_replicas_send_each_message_once() -> Result<()> {
    let mut w = World::with(settings).await?;
    let replica = Billing::start_with(settings(&w.db)).await?;
    let mut receivers = vec![Receiver::start().await?, Receiver::start().await?, Receiver::start().await?];
    let mut endpoints = Vec::new();
    for receiver in &receivers {
        endpoints.push(w.billing.endpoint("eco_a", &receiver.url).await?);
    }
    for i in 0..30 {
        let through = if i % 2 == 0 { &w.billing } else { &replica };
        through.test(&endpoints[i % 3]).await?;
    }
    until(&w.db, ALL_DONE).await?;
    let mut heard: HashMap<String, usize> = HashMap::new();
    for receiver in &mut receivers {
        for request in receiver.rest() {
            *heard.entry(request.id()?).or_default() += 1;
        }
    }
    assert_eq!((heard.len(), heard.values().max()), (30, Some(&1)));
    assert!(w.receiver.rest().is_empty());
    replica.stop().await?;
    w.billing.stop().await
}

/// A name that leads to an address within our network, and nothing that allows it.
#[tokio::test]
async fn nothing_is_sent_to_an_address_that_is_not_public() -> Result<()> {
    let db = TestDb::new().await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    let mut closed = settings(&db);
    closed.notify.webhook_allowed_networks = String::new();
    let billing = Billing::start_with(closed).await?;
    let mut receiver = Receiver::start().await?;
    let refused = billing.endpoint("eco_a", &receiver.url).await.err().context("refused")?;
    assert!(
        refused.to_string().contains("must be a public address"),
        "an address is seen at once: {refused}"
    );
    let url = format!("http://localhost:{}/", receiver.address.port());
    let endpoint = billing.endpoint("eco_a", &url).await?;
    billing.test(&endpoint).await?;
    until(&db, "select exists (select from eco_webhook_attempts where error is not null)").await?;
    let log = billing.deliveries(&endpoint).await?.remove(0).attempts;
    assert_eq!(log[0].error, "ADDRESS_NOT_ALLOWED");
    assert!(receiver.rest().is_empty());
    billing.stop().await
}

#[tokio::test]
async fn what_is_older_than_thirty_days_is_deleted_with_its_log() -> Result<()> {
    let mut w = World::with(settings).await?;
    w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    w.billing.test(&w.endpoint).await?;
    w.receiver.next().await?;
    until(&w.db, ALL_DONE).await?;
    w.billing.stop().await?;
    let old = "update eco_webhook_messages set created_time = now() - interval '31 days'
               where message_id = (select min(message_id::text)::uuid from eco_webhook_messages)";
    assert_eq!(execute(&w.db, old).await?, 1);
    let billing = Billing::start_with(settings(&w.db)).await?;
    until(&w.db, "select count(*) = 1 from eco_webhook_messages").await?;
    let counts =
        "select (select count(*) from eco_webhook_deliveries), (select count(*) from eco_webhook_attempts)";
    assert_eq!(sqlx::query_as::<_, (i64, i64)>(counts).fetch_one(&w.db.pool).await?, (1, 1));
    billing.stop().await
}
