//! The engine over the port in memory: random histories of usage, runs, faults and kills.

use std::{collections::HashSet, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nexus_billing::{
    app::process_overage::{Answer, ChargeContext, Engine, Request, Together, charge_account},
    domain::{charge::Target, period::PeriodKey},
    payments::pace::Pace,
};
use nexus_core::plan::Plan;
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    memory::{Fault, Memory},
    support::{anchor, lease_is_free, record},
};

const ACCOUNTS: [&str; 3] = ["eco_a", "eco_b", "eco_c"];

struct World {
    db: TestDb,
    memory: Arc<Memory>,
}

impl World {
    async fn new() -> Result<Self> {
        let db = TestDb::new().await?;
        let memory = Arc::new(Memory::new());
        for eco_id in ACCOUNTS {
            seed::account(&db.pool, eco_id, Plan::Pro, anchor()).await?;
            seed::stripe_ids(&db.pool, eco_id, &format!("cus_{eco_id}"), None).await?;
            memory.add_customer(&format!("cus_{eco_id}"));
            record(&db, eco_id, 100_000).await?;
        }
        Ok(Self { db, memory })
    }

    fn engine(&self) -> Result<Engine> {
        let pool = db::pool(&self.db.args(), Role::Billing)?;
        let rate = NonZeroU32::new(100_000).context("not zero")?;
        Ok(Engine::new(pool, self.memory.clone(), Pace::new(rate), 2, CancellationToken::new()))
    }

    async fn run(&self, engine: &Engine) -> Result<Answer> {
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        Ok(engine.process(Request::default(), Uuid::new_v4(), until).await?)
    }

    /// A run that is killed once the port has been asked for something that it never answers.
    async fn killed_run(&self, engine: Engine) -> Result<()> {
        let guard = engine.kill_guard();
        let before = self.memory.unanswered();
        let run = async {
            let answer = self.run(&engine).await;
            ensure!(answer.is_err(), "the run ended: {answer:?}");
            Ok(())
        };
        let kill = async {
            self.memory.until_unanswered(before + 1).await;
            drop(guard);
            Ok(())
        };
        futures::future::try_join(run, kill).await?;
        engine.finished().await;
        lease_is_free(&self.db).await
    }

    /// Makes what is in doubt too old to be sent again.
    async fn age_doubts(&self) -> Result<()> {
        let age = "update eco_overage_charges set created_time = now() - interval '23 hours' where status = 'pending'";
        sqlx::query(age).execute(&self.db.pool).await?;
        Ok(())
    }

    /// Σ of the items per account is what it owes, to the cent, and no charge has two.
    async fn check(&self, units: &[i64; 3]) -> Result<()> {
        let items = self.memory.items();
        let charges: HashSet<_> = items.iter().map(|(_, item)| item.metadata["charge_id"].clone()).collect();
        assert_eq!(charges.len(), items.len(), "a charge has two items");
        for (eco_id, units) in ACCOUNTS.iter().zip(units) {
            let cents: i64 = items
                .iter()
                .filter(|(_, item)| item.metadata["eco_id"] == *eco_id)
                .map(|(_, item)| item.amount_minor)
                .sum();
            // $0.001 a call: ten a cent.
            assert_eq!(cents, units / 10, "{eco_id} used {units} units beyond");
        }
        Ok(())
    }
}

async fn history(seed: u64) -> Result<()> {
    let world = World::new().await?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut units = [0_i64; 3];
    let mut engine = world.engine()?;
    for _ in 0..12 {
        for (eco_id, units) in ACCOUNTS.iter().zip(&mut units) {
            let more = rng.random_range(0..40);
            if more > 0 {
                record(&world.db, eco_id, more).await?;
                *units += more;
            }
        }
        match rng.random_range(0..7) {
            0 => world.memory.fail_next(Fault::Lost),
            1 => world.memory.fail_next(Fault::AnswerLost),
            2 => world.memory.fail_next(Fault::StoredError),
            3 => world.memory.fail_next(Fault::StoredErrorAfterEffect),
            4 => {
                // So that there is something to charge for certain.
                record(&world.db, ACCOUNTS[0], 10).await?;
                units[0] += 10;
                world.memory.fail_next(Fault::NoAnswer);
                world.killed_run(engine).await?;
                if rng.random() {
                    world.age_doubts().await?;
                }
                engine = world.engine()?;
                continue;
            }
            _ => {}
        }
        world.run(&engine).await?;
        world.check(&units).await?;
    }
    world.run(&engine).await?;
    world.check(&units).await
}

#[tokio::test]
async fn a_charge_that_was_never_sent_is_not_said_to_be_in_doubt() -> Result<()> {
    let world = World::new().await?;
    let Answer::Run(run, _) = world.run(&world.engine()?).await? else { bail!("another run") };
    record(&world.db, "eco_a", 10).await?;
    let start = sqlx::query_scalar("select period_start from eco_usage_records where eco_id = 'eco_a'");
    let periods = [PeriodKey { eco_id: "eco_a".to_owned(), start: start.fetch_one(&world.db.pool).await? }];
    let rate = NonZeroU32::new(100_000).context("not zero")?;
    let mut context = ChargeContext {
        pool: db::pool(&world.db.args(), Role::Billing)?,
        payments: world.memory.clone(),
        pace: Arc::new(Pace::new(rate)),
        run_id: Some(run.run_id),
        target: Target::Upcoming,
        halt: CancellationToken::new(),
        shutdown: CancellationToken::new(),
        together: Arc::new(Together::default()),
    };
    // The lease is lost between writing down and sending.
    context.halt.cancel();
    let error = charge_account(&context, &periods).await.error.context("nothing was charged")?;
    assert_eq!(error.reason, "NOT_SENT");
    // The next run knows of no one but the charge, which may have been sent.
    let error = charge_account(&context, &periods).await.error.context("nothing was charged")?;
    assert_eq!(error.reason, "IN_DOUBT");
    ensure!(world.memory.items().is_empty());
    context.halt = CancellationToken::new();
    ensure!(charge_account(&context, &periods).await.charged);
    world.check(&[10, 0, 0]).await
}

#[tokio::test]
async fn whatever_happens_the_sum_is_right_and_no_charge_is_made_twice_1() -> Result<()> {
    history(1).await
}

#[tokio::test]
async fn whatever_happens_the_sum_is_right_and_no_charge_is_made_twice_2() -> Result<()> {
    history(2).await
}

#[tokio::test]
async fn whatever_happens_the_sum_is_right_and_no_charge_is_made_twice_3() -> Result<()> {
    history(3).await
}
