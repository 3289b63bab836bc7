//! A subscription's life at Stripe, from its first event to what is collected after its end: the stand-in drafts, sends
//! signed webhooks, finalises and collects, and nobody but it tells billing-svc. Customers go by a test clock, whose time
//! lies in the past and is moved up to ours.

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use chrono::{DateTime, DurationRound, Months, TimeDelta, Utc};
use nexus_billing::config::Proration;
use nexus_core::plan::Plan;
use nexus_proto::{
    billing::v1::{
        ChangePlanRequest, HandleStripeEventRequest, ReconcileRequest,
        billing_service_client::BillingServiceClient,
    },
    common::v1::Plan as PbPlan,
};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::Channel;

use crate::support::{
    Billing, NONE_WAITS, Sim, WEBHOOK_SECRET, config, record, record_at, runner, until, user,
};

/// Hands webhooks on, as the gateway does: byte for byte, and taken once billing-svc has stored them.
struct Gateway {
    url: String,
    server: JoinHandle<std::io::Result<()>>,
}

impl Gateway {
    async fn start(billing: &Billing) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/webhooks/stripe", listener.local_addr()?);
        let app = Router::new().route("/webhooks/stripe", post(hand_on)).with_state(billing.client.clone());
        Ok(Self { url, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn hand_on(
    State(mut client): State<BillingServiceClient<Channel>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or("");
    let request = HandleStripeEventRequest { payload: body.into(), signature: signature.to_owned() };
    let Ok(options) = runner() else { return StatusCode::INTERNAL_SERVER_ERROR };
    match client.handle_stripe_event(options.request(request)).await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An account on pro whose subscription at Stripe began a month and an hour ago, by the test clock.
struct World {
    db: TestDb,
    sim: Sim,
    billing: Billing,
    _gateway: Gateway,
    clock: String,
    customer: String,
    subscription: String,
    start: DateTime<Utc>,
}

impl World {
    async fn new(unreliable: Value) -> Result<Self> {
        Self::with(unreliable, Proration::None).await
    }

    async fn with(unreliable: Value, proration: Proration) -> Result<Self> {
        Self::begun(TimeDelta::hours(1), unreliable, proration).await
    }

    /// Its subscription began a month and so long ago.
    async fn begun(ago: TimeDelta, unreliable: Value, proration: Proration) -> Result<Self> {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let mut config = config(&db, &sim.base);
        config.stripe.stripe_proration = proration;
        let billing = Billing::start_with(config).await?;
        let gateway = Gateway::start(&billing).await?;
        sim.admin("/webhooks", json!({ "url": gateway.url, "secret": WEBHOOK_SECRET })).await?;
        sim.admin("/webhooks/unreliable", unreliable).await?;
        let start = (Utc::now() - ago - Months::new(1)).duration_trunc(TimeDelta::seconds(1))?;
        let clock =
            sim.create("test_helpers/test_clocks", &format!("frozen_time={}", start.timestamp())).await?;
        let customer = sim.create("customers", &format!("test_clock={clock}&metadata[eco_id]=eco_a")).await?;
        let price = sim.price("pro").await?;
        let form = format!("customer={customer}&items[0][price]={price}");
        let subscription = sim.create("subscriptions", &form).await?;
        seed::account(&db.pool, "eco_a", Plan::Pro, start).await?;
        seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
        // Before, it was on the free plan, in periods of other days: those it goes back to.
        let before = "insert into eco_subscriptions
                 (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time)
             values ('eco_a', 'free', 1, 'active', $1 - interval '9 days', $1 - interval '9 days', $1)";
        sqlx::query(before).bind(start).execute(&db.pool).await?;
        let world = Self { db, sim, billing, _gateway: gateway, clock, customer, subscription, start };
        world.tell().await?;
        Ok(world)
    }

    /// Lets all webhooks arrive, the late ones and the second ones too, and be processed.
    async fn tell(&self) -> Result<()> {
        self.sim.admin("/clock", json!({ "advance_seconds": 3 * 3_600 })).await?;
        until(&self.db, NONE_WAITS).await
    }

    /// Moves the test clock.
    async fn advance(&self, to: i64) -> Result<()> {
        let path = format!("test_helpers/test_clocks/{}/advance", self.clock);
        self.sim.create(&path, &format!("frozen_time={to}")).await?;
        self.tell().await
    }

    /// A world whose cycle has made a draft, with charges of ours on it; returns the end of the period.
    async fn on_a_draft() -> Result<(Self, i64)> {
        let world = Self::new(json!({})).await?;
        let subscribed = world.sim.get(&format!("subscriptions/{}", world.subscription)).await?;
        let end = subscribed["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
        record_at(&world.db, "eco_a", world.start, 101_000).await?;
        assert_eq!(world.billing.run_all().await?.charged_count, 1);
        record_at(&world.db, "eco_a", world.start, 4_010).await?;
        world.advance(end).await?;
        let draft = world.newest_invoice().await?;
        let expected = [(100, Some("1000".to_owned())), (4_900, None), (401, Some("4010".to_owned()))];
        assert_eq!((&draft["status"], lines(&draft)?), (&json!("draft"), expected.to_vec()));
        Ok((world, end))
    }

    async fn newest_invoice(&self) -> Result<Value> {
        let list = self.sim.get(&format!("invoices?customer={}&limit=1", self.customer)).await?;
        Ok(list["data"][0].clone())
    }

    /// The charges that are not on a finalised invoice.
    async fn uncollected(&self) -> Result<usize> {
        let items = self.sim.items().await?;
        let invoices = self.sim.get(&format!("invoices?customer={}&limit=100", self.customer)).await?;
        let invoices = invoices["data"].as_array().context("data")?;
        let is_final = |id: &Value| invoices.iter().any(|it| it["id"] == *id && it["status"] != "draft");
        Ok(items.iter().filter(|item| !is_final(&item["invoice"])).count())
    }
}

/// What each line costs, and of how many calls it is if it is a charge of ours.
fn lines(invoice: &Value) -> Result<Vec<(i64, Option<String>)>> {
    let lines = invoice["lines"]["data"].as_array().context("lines")?;
    lines
        .iter()
        .map(|line| {
            let calls = line["metadata"]["overage_calls"].as_str().map(str::to_owned);
            Ok((line["amount"].as_i64().context("an amount")?, calls))
        })
        .collect()
}

async fn a_life(unreliable: Value) -> Result<()> {
    let world = World::new(unreliable).await?;
    let subscribed = world.sim.get(&format!("subscriptions/{}", world.subscription)).await?;
    let end = subscribed["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;

    // What was charged day by day is pending; of what was counted since nothing is.
    record_at(&world.db, "eco_a", world.start, 101_000).await?;
    assert_eq!(world.billing.run_all().await?.charged_count, 1);
    record_at(&world.db, "eco_a", world.start, 4_010).await?;

    // The period ends. The draft takes what is pending, and gets the rest while it is one.
    world.advance(end).await?;
    let draft = world.newest_invoice().await?;
    assert_eq!((&draft["status"], &draft["billing_reason"]), (&json!("draft"), &json!("subscription_cycle")));
    let expected = [(100, Some("1000".to_owned())), (4_900, None), (401, Some("4010".to_owned()))];
    assert_eq!(lines(&draft)?, expected);
    assert_eq!(world.uncollected().await?, 2);
    assert_eq!(world.billing.run_all().await?.charged_count, 0);

    // Its hour has passed.
    world.advance(end + 3_600).await?;
    let id = draft["id"].as_str().context("an id")?;
    let paid = world.sim.get(&format!("invoices/{id}")).await?;
    assert_eq!((&paid["status"], &paid["amount_paid"]), (&json!("paid"), &json!(5_401)));
    assert_eq!(lines(&paid)?, expected);
    assert_eq!(world.uncollected().await?, 0);

    // The subscription ends in its second period: what that owes is on an invoice of its own.
    record(&world.db, "eco_a", 100_205).await?;
    world.sim.cancel(&world.subscription).await?;
    world.tell().await?;
    let last = world.newest_invoice().await?;
    assert_eq!((&last["status"], &last["billing_reason"]), (&json!("open"), &json!("manual")));
    // Rounded for good: 20.5 cents.
    assert_eq!(lines(&last)?, [(21, Some("205".to_owned()))]);
    let plan = "select plan = 'free' from eco_subscriptions where eco_id = 'eco_a' and ended_time is null";
    assert!(sqlx::query_scalar::<_, bool>(plan).fetch_one(&world.db.pool).await?);
    world.advance(end + 2 * 3_600 + 1).await?;
    let last = world.newest_invoice().await?;
    assert_eq!((&last["status"], &last["amount_paid"]), (&json!("paid"), &json!(21)));
    assert_eq!(world.uncollected().await?, 0);
    assert_eq!(world.billing.run_all().await?.charged_count, 0);
    world.billing.stop().await
}

#[tokio::test]
async fn all_that_is_owed_is_on_the_invoice_of_its_period_and_after_the_end_on_one_of_its_own() -> Result<()>
{
    a_life(json!({})).await
}

/// As Stripe's "How subscriptions work" says: the draft stays one.
#[tokio::test]
async fn a_draft_that_stops_with_its_subscription_gives_our_charges_back() -> Result<()> {
    let (world, _) = World::on_a_draft().await?;
    let draft = world.newest_invoice().await?;
    world.sim.cancel(&world.subscription).await?;
    world.tell().await?;
    let id = draft["id"].as_str().context("an id")?;
    let left = world.sim.get(&format!("invoices/{id}")).await?;
    assert_eq!((&left["status"], lines(&left)?), (&json!("draft"), vec![(4_900, None)]));
    let made = world.newest_invoice().await?;
    assert_eq!((&made["status"], &made["billing_reason"]), (&json!("open"), &json!("manual")));
    assert_eq!(made["total"], json!(501));
    assert_eq!((world.uncollected().await?, world.billing.run_all().await?.charged_count), (0, 0));
    world.billing.stop().await
}

/// As its "Cancel a subscription" may be read: the draft goes on, and our charges with it.
#[tokio::test]
async fn a_draft_that_goes_on_after_its_subscription_keeps_our_charges() -> Result<()> {
    let (world, end) = World::on_a_draft().await?;
    world.sim.admin("/settings", json!({ "drafts_after_cancel": "go_on" })).await?;
    world.sim.cancel(&world.subscription).await?;
    // It is looked at, and waited for.
    let waits =
        "select exists (select from eco_ended_subscriptions where cleared_time is null and failures = 0
                                and due_time > now() + interval '25 minutes')";
    until(&world.db, waits).await?;
    assert_eq!(world.billing.run_all().await?.errors.len(), 0);
    assert_eq!(world.uncollected().await?, 2);
    let path = format!("test_helpers/test_clocks/{}/advance", world.clock);
    world.sim.create(&path, &format!("frozen_time={}", end + 3_600)).await?;
    assert_eq!(world.uncollected().await?, 0);
    // The next look finds it so.
    world.billing.run_all().await?;
    until(&world.db, NONE_WAITS).await?;
    let items = world.sim.items().await?;
    let amounts: Vec<_> = items.iter().filter_map(|item| item["amount"].as_i64()).collect();
    assert_eq!((amounts, world.sim.made_invoices().await?.len()), (vec![100, 401], 0));
    world.billing.stop().await
}

/// Nobody finalises the draft, also not when collection goes on: a subscription that is unpaid leaves its drafts so, too.
#[tokio::test]
async fn what_a_draft_of_a_paused_subscription_has_taken_is_on_the_next_invoice() -> Result<()> {
    let world = World::begun(TimeDelta::days(3), json!({}), Proration::None).await?;
    let subscribed = world.sim.get(&format!("subscriptions/{}", world.subscription)).await?;
    let end = subscribed["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    record_at(&world.db, "eco_a", world.start, 101_000).await?;
    assert_eq!(world.billing.run_all().await?.charged_count, 1);
    record_at(&world.db, "eco_a", world.start, 4_010).await?;
    let path = format!("subscriptions/{}", world.subscription);
    world.sim.create(&path, "pause_collection[behavior]=keep_as_draft").await?;
    world.advance(end).await?;
    let draft = world.newest_invoice().await?;
    assert_eq!((&draft["status"], &draft["auto_advance"]), (&json!("draft"), &json!(false)));
    // Nothing more is put on it.
    assert_eq!(lines(&draft)?, [(100, Some("1000".to_owned())), (4_900, None)]);
    world.sim.create(&path, "pause_collection=").await?;
    world.tell().await?;

    // Rounded for good, for its grace is over; what was charged in it was charged then.
    let then = "update eco_overage_charges set finished_time = finished_time - interval '1 month 3 days'";
    sqlx::query(then).execute(&world.db.pool).await?;
    let run = world.billing.run_all().await?;
    assert_eq!(run.errors.len(), 0, "{run:?}");
    let id = draft["id"].as_str().context("an id")?;
    assert_eq!(lines(&world.sim.get(&format!("invoices/{id}")).await?)?, [(4_900, None)]);
    let items = world.sim.items().await?;
    let amounts: i64 = items.iter().filter_map(|item| item["amount"].as_i64()).sum();
    assert_eq!((amounts, world.uncollected().await?), (501, items.len()));
    assert_eq!(world.billing.run_all().await?.charged_count, 0);

    let next = DateTime::from_timestamp(end, 0).context("a time")? + Months::new(1);
    world.advance(next.timestamp()).await?;
    world.advance(next.timestamp() + 3_601).await?;
    let paid = world.newest_invoice().await?;
    assert_eq!((&paid["status"], &paid["amount_paid"]), (&json!("paid"), &json!(5_401)));
    assert_eq!(world.uncollected().await?, 0);
    world.billing.stop().await
}

/// An invoice takes 250 items, whosever they are.
#[tokio::test]
async fn what_a_full_draft_does_not_take_is_on_the_next_invoice() -> Result<()> {
    let world = World::new(json!({})).await?;
    let subscribed = world.sim.get(&format!("subscriptions/{}", world.subscription)).await?;
    let end = subscribed["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    let of_others = format!("customer={}&currency=usd&amount=1", world.customer);
    for _ in 0..250 {
        world.sim.create("invoiceitems", &of_others).await?;
    }
    record_at(&world.db, "eco_a", world.start, 104_010).await?;
    world.advance(end).await?;
    let draft = world.newest_invoice().await?;
    assert_eq!((&draft["status"], &draft["total"]), (&json!("draft"), &json!(250 + 4_900)));
    let ours = async || {
        let items = world.sim.items().await?;
        let mut ours = items.into_iter().filter(|item| item["metadata"]["eco_id"] == "eco_a");
        let one = ours.next().context("ours")?;
        assert_eq!((&one["amount"], ours.next()), (&json!(401), None));
        anyhow::Ok(one["invoice"].clone())
    };
    assert_eq!(ours().await?, Value::Null);

    let path = format!("test_helpers/test_clocks/{}/advance", world.clock);
    world.sim.create(&path, &format!("frozen_time={}", end + 3_600)).await?;
    let start = DateTime::from_timestamp(end, 0).context("a time")?;
    world.advance((start + Months::new(1)).timestamp()).await?;
    let next = world.newest_invoice().await?;
    assert_eq!((ours().await?, &next["total"]), (next["id"].clone(), &json!(401 + 4_900)));
    assert_eq!(world.billing.run_all().await?.errors.len(), 0);
    world.billing.stop().await
}

#[tokio::test]
async fn so_it_is_when_webhooks_come_late_twice_and_in_disorder() -> Result<()> {
    for seed in 1..4 {
        a_life(json!({ "seed": seed, "duplicate": 0.5, "delay": 0.5, "max_delay_seconds": 3_600 })).await?;
    }
    Ok(())
}

/// As it is where nothing is configured: Stripe charges what is left of the period by itself, beside the overage.
#[tokio::test]
async fn an_upgrade_within_a_period_is_prorated_beside_the_overage() -> Result<()> {
    for proration in [Proration::CreateProrations, Proration::AlwaysInvoice] {
        let world = World::with(json!({}), proration).await?;
        let form = "currency=usd&unit_amount=50000&recurring[interval]=month&product_data[name]=E&lookup_key=enterprise";
        world.sim.create("prices", form).await?;
        let subscribed = world.sim.get(&format!("subscriptions/{}", world.subscription)).await?;
        let end = subscribed["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
        record_at(&world.db, "eco_a", world.start, 101_000).await?;
        assert_eq!(world.billing.run_all().await?.charged_count, 1);

        world.advance((world.start.timestamp() + end) / 2).await?;
        let upgrade = ChangePlanRequest {
            eco_id: "eco_a".into(),
            plan: PbPlan::Enterprise.into(),
            ..Default::default()
        };
        world.billing.client.clone().change_plan(user(settings::ADMIN)?.request(upgrade)).await?;
        world.tell().await?;
        let made: Vec<_> = world.sim.items().await?;
        let amount = |item: &Value| item["amount"].as_i64().unwrap_or_default();
        let prorated: Vec<_> = made.iter().filter(|item| item["proration"] == true).map(amount).collect();
        // Half of 500 dollars less half of 49; the clock may go on by a few seconds.
        assert_eq!(prorated.len(), 2, "{made:?}");
        let sum: i64 = prorated.iter().sum();
        assert!((22_540..=22_550).contains(&sum), "{prorated:?}");

        world.advance(end).await?;
        let draft = world.newest_invoice().await?;
        let at_once = matches!(proration, Proration::AlwaysInvoice);
        let expected = if at_once { 50_000 } else { 50_000 + sum + 100 };
        assert_eq!(draft["total"], expected, "{draft}");
        world.advance(end + 3_600).await?;
        assert_eq!(world.uncollected().await?, 0);
        let found = world.billing.reconciled(ReconcileRequest::default()).await?;
        // What was counted here is in no raw log.
        let others = found.differences.iter().filter(|d| d.kind != "EVENTS_COUNTERS_DIFFER");
        assert_eq!(others.count(), 0, "{found:?}");
    }
    Ok(())
}
