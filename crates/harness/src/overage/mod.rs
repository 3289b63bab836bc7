//! Many accounts in one run, some of them poisoned at Stripe, billing-svc killed in the middle: each of the others
//! is charged once, each of these is parked with its reason, and memory does not grow with them.
//!
//! Stripe's clock runs ahead as many times as fast as requests may come, so that Stripe sees its 25 a second and
//! nobody has to wait for that.

mod check;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nexus_proto::billing::v1::{ProcessOverageRequest, ProcessOverageResponse, WatchOverageRunRequest};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use sqlx::Connection;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::{
    billing::Billing,
    report::{Outcome, Tally},
    stage::Seed,
    stripe::{self, Poison, Stripe},
};

/// Accounts that a run works on at once.
const CONCURRENCY: u32 = 32;
/// What Stripe allows.
const STRIPE_RATE: u32 = 25;
/// How much more memory billing-svc may have at the end of a run than after its first tenth.
const MAX_GROWTH_MB: u64 = 32;
/// A run of which nothing is heard for so long has come to a stop.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) first: u64,
    /// Accounts that owe
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=500_000), value_name = "N")]
    accounts: u32,
    /// Of these, poisoned: declined, deleted at Stripe, or of another currency there, in turn
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    poisoned: u32,
    /// How many times as fast as it is Stripe's clock runs
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    speed: u32,
    /// How often billing-svc is killed
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=20), value_name = "N")]
    kills: u32,
}

impl Args {
    /// What runs a seed again.
    pub(crate) fn of_seed(&self, seed: u64) -> String {
        let Self { accounts, poisoned, speed, kills, .. } = self;
        format!(
            "overage --first {seed} --accounts {accounts} --poisoned {poisoned} --speed {speed} --kills {kills}"
        )
    }
}

/// An account that owes.
struct Account {
    eco_id: String,
    customer: String,
    cents: i64,
    poison: Option<Poison>,
}

/// Runs one seed to its end.
pub(crate) async fn run(seed: &Seed, args: &Args) -> Result<Outcome> {
    ensure!(args.poisoned <= args.accounts, "there cannot be more poisoned accounts than there are");
    let mut tally = Tally::default();
    Ok(match trial(seed, args, &mut tally).await {
        Ok((done, failures)) => Outcome::done(tally, done, failures),
        Err(error) => Outcome::failed(tally, format!("{error:#}")),
    })
}

async fn trial(seed: &Seed, args: &Args, tally: &mut Tally) -> Result<(String, Vec<String>)> {
    let stripe = Stripe::start().await?;
    let accounts = accounts(seed, args, &stripe).await?;
    let _clock = stripe.hurry(args.speed);
    let began = Instant::now();
    let mut run = Run::start(seed, args, &stripe).await?;
    let answer = run.run_to_its_end(tally).await?;
    let took = began.elapsed().as_secs_f64();
    let mut failures = check::answer(&answer, &accounts);
    failures.extend(check::errors(&mut run.billing.client, &answer.run_id, &accounts).await?);
    failures.extend(check::database(seed, &accounts).await?);
    failures.extend(check::stripe(&stripe, &accounts).await?);
    failures.extend(run.memory());
    let (requests, seconds) = stripe.requests().await?;
    let rate = requests as f64 / seconds as f64;
    // Each second of Stripe's clock begins and ends a little late or early.
    if rate > f64::from(STRIPE_RATE) * 1.02 {
        failures.push(format!("Stripe saw {rate:.1} requests a second"));
    }
    // And all is done.
    let again = run.billing.client.process(ProcessOverageRequest::default()).await?;
    if (again.processed_count, again.charged_count) != (0, 0) {
        failures.push(format!("a second run found something to do: {again:?}"));
    }
    let done = format!(
        "{} charged and {} parked in {took:.0} s, {rate:.1} requests a second of Stripe's clock; billing-svc had {} MB \
         after a tenth, {} MB at most",
        answer.charged_count, answer.failed_count, run.early_mb, run.most_mb
    );
    Ok((done, failures))
}

/// Makes the accounts, and their customers at Stripe.
async fn accounts(seed: &Seed, args: &Args, stripe: &Stripe) -> Result<Vec<Account>> {
    let mut rng = StdRng::seed_from_u64(seed.number);
    let poisons = [Poison::Declined, Poison::Deleted, Poison::Currency];
    let mut poison: Vec<Option<Poison>> =
        poisons.into_iter().cycle().map(Some).take(args.poisoned as usize).collect();
    poison.resize(args.accounts as usize, None);
    poison.shuffle(&mut rng);
    let customers = stripe.customers(args.accounts).await?;
    let accounts: Vec<Account> = customers
        .into_iter()
        .zip(poison)
        .enumerate()
        .map(|(n, (customer, poison))| Account {
            eco_id: format!("eco_{n:06}"),
            customer,
            cents: 1 + n as i64 % 500,
            poison,
        })
        .collect();
    for account in &accounts {
        if let Some(poison) = account.poison {
            stripe.poison(&account.customer, poison).await?;
        }
    }
    let eco_ids: Vec<&str> = accounts.iter().map(|account| account.eco_id.as_str()).collect();
    seed.accounts(&eco_ids, "pro").await?;
    let customers: Vec<&str> = accounts.iter().map(|account| account.customer.as_str()).collect();
    // $0.001 a call: ten a cent.
    let units: Vec<i64> = accounts.iter().map(|account| 100_000 + 10 * account.cents).collect();
    let mut connection = seed.connect().await?;
    sqlx::query(
        "update eco_identities i set stripe_customer_id = c.customer
         from unnest($1::text[], $2::text[]) as c (eco_id, customer) where i.eco_id = c.eco_id",
    )
    .bind(&eco_ids)
    .bind(&customers)
    .execute(&mut connection)
    .await?;
    sqlx::query(
        "select increment_api_calls(array_agg(u.eco_id), array_agg(nexus_period_start(s.anchor_time, now())),
                    array_agg(0), 1::smallint, array_agg(u.units), array_agg(u.units), array_agg(0::bigint),
                    array_agg(now()))
         from unnest($1::text[], $2::bigint[]) as u (eco_id, units)
         join eco_subscriptions s on s.eco_id = u.eco_id",
    )
    .bind(&eco_ids)
    .bind(&units)
    .execute(&mut connection)
    .await?;
    sqlx::query("analyze").execute(&mut connection).await?;
    connection.close().await?;
    Ok(accounts)
}

async fn start(seed: &Seed, stripe: &Stripe, speed: u32) -> Result<Billing> {
    let settings = vec![
        ("DATABASE_URL", seed.url().to_owned()),
        ("STRIPE_SECRET_KEY", stripe::KEY.to_owned()),
        ("STRIPE_API_BASE", stripe.url().to_owned()),
        ("STRIPE_RATE_PER_SECOND", (STRIPE_RATE * speed).to_string()),
        ("OVERAGE_CONCURRENCY", CONCURRENCY.to_string()),
    ];
    Billing::start(&seed.folder.join("billing.log"), settings).await
}

/// A run of ProcessOverage, over the lives of the processes that work on it.
struct Run<'a> {
    seed: &'a Seed,
    args: &'a Args,
    stripe: &'a Stripe,
    billing: Billing,
    request: ProcessOverageRequest,
    run_id: Option<String>,
    early_mb: u64,
    most_mb: u64,
}

impl<'a> Run<'a> {
    async fn start(seed: &'a Seed, args: &'a Args, stripe: &'a Stripe) -> Result<Self> {
        let billing = start(seed, stripe, args.speed).await?;
        let request = ProcessOverageRequest {
            request_id: Uuid::new_v4().to_string(),
            return_at_once: true,
            ..Default::default()
        };
        Ok(Self { seed, args, stripe, billing, request, run_id: None, early_mb: 0, most_mb: 0 })
    }

    /// Calls for it, follows it, and kills who works on it, until it has ended.
    async fn run_to_its_end(&mut self, tally: &mut Tally) -> Result<ProcessOverageResponse> {
        let mut kills = 0;
        loop {
            let answer = self.billing.client.process(self.request.clone()).await?;
            ensure!(!answer.already_running, "another run is at work");
            let run_id = self.run_id.get_or_insert_with(|| answer.run_id.clone());
            ensure!(*run_id == answer.run_id, "the repeat of a request began another run");
            if !answer.running {
                return Ok(answer);
            }
            let kill_at = (kills < self.args.kills).then(|| {
                u64::from(self.args.accounts) * u64::from(kills + 1) / u64::from(self.args.kills + 1)
            });
            if !self.follow(&answer.run_id, kill_at).await? {
                self.billing.kill().await?;
                kills += 1;
                tally.add("billing-svc killed", 1);
                self.billing = start(self.seed, self.stripe, self.args.speed).await?;
            }
        }
    }

    /// Follows it to its end, or to the number of accounts at which it is to be killed: false.
    async fn follow(&mut self, run_id: &str, kill_at: Option<u64>) -> Result<bool> {
        let mut looks =
            self.billing.client.watch(WatchOverageRunRequest { run_id: run_id.to_owned() }).await?;
        loop {
            let look = timeout(PATIENCE, looks.message()).await.context("the run came to a stop")??;
            let Some(look) = look else { bail!("the stream ended before the run") };
            let done = u64::from(look.processed_count.unsigned_abs());
            let megabytes = self.billing.resident_mb()?;
            self.most_mb = self.most_mb.max(megabytes);
            if done <= u64::from(self.args.accounts / 10) {
                self.early_mb = self.early_mb.max(megabytes);
            }
            if !look.running {
                return Ok(true);
            }
            if kill_at.is_some_and(|at| done >= at) {
                return Ok(false);
            }
        }
    }

    fn memory(&self) -> Option<String> {
        let growth = self.most_mb.saturating_sub(self.early_mb);
        (growth > MAX_GROWTH_MB).then(|| {
            format!(
                "billing-svc had {} MB after a tenth of the accounts, and {} MB later",
                self.early_mb, self.most_mb
            )
        })
    }
}
