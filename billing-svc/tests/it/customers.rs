//! Customers at Stripe of accounts that come without one: whatever is cut off, each that may have to pay gets one.

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    Error,
    app::{change_plan, create_account},
    domain::{account::NewAccount, plan_change::PlanChange},
};
use nexus_core::{id::EcoId, money::Currency, plan::Plan};
use nexus_proto::{billing::v1::CreateAccountRequest, common::v1 as common};
use nexus_testkit::db::TestDb;

use crate::{
    memory::Fault,
    sales_world::World,
    support::{Billing, Sim, manager, meter, until},
};

fn new(eco_id: &str, plan: Plan) -> Result<NewAccount> {
    Ok(NewAccount {
        eco_id: EcoId::parse(eco_id)?,
        email: Some("new@example.com".to_owned()),
        plan,
        stripe_customer_id: None,
        stripe_subscription_id: None,
        anchor_time: None,
        currency: Currency::USD,
        request_id: None,
    })
}

impl World {
    /// The customers that Stripe has of an account, and the one that the account has.
    async fn customers(&self, eco_id: &str) -> Result<(Vec<String>, Option<String>)> {
        let of = {
            let state = self.memory.state();
            let of = state.customers.iter().filter(|(_, found)| found.eco_id.as_deref() == Some(eco_id));
            of.map(|(id, _)| id.clone()).collect()
        };
        let statement = "select stripe_customer_id from eco_identities where eco_id = $1";
        let has = sqlx::query_scalar(statement).bind(eco_id).fetch_one(&self.db.pool).await?;
        Ok((of, has))
    }

    async fn give(&self, plan: Plan) -> Result<()> {
        let eco_id = self.eco_id.clone();
        let change = PlanChange { eco_id, plan, apply_now: false, request_id: None, by_user: false };
        change_plan::run(&self.sales, &change, "test").await?;
        Ok(())
    }
}

#[tokio::test]
async fn an_account_that_may_have_to_pay_gets_a_customer_whatever_goes_wrong() -> Result<()> {
    for fault in [Fault::None, Fault::Lost, Fault::AnswerLost, Fault::StoredError] {
        let world = World::new().await?;
        world.memory.fail_next(fault);
        let created = create_account::run(&world.sales, &new("eco_new", Plan::Pro)?, "test").await?;
        assert_eq!(created.stripe_customer_id, None, "Stripe is not waited for");
        world.work_off().await?;
        let (of, has) = world.customers("eco_new").await?;
        assert_eq!((of.len(), of.first()), (1, has.as_ref()), "{fault:?}");
        let outcome: String =
            sqlx::query_scalar("select outcome from eco_stripe_customers").fetch_one(&world.db.pool).await?;
        assert_eq!(outcome, "made");
    }
    // A free one pays nothing: its first checkout makes one.
    let world = World::new().await?;
    create_account::run(&world.sales, &new("eco_new", Plan::Free)?, "test").await?;
    world.work_off().await?;
    assert_eq!(world.customers("eco_new").await?, (Vec::new(), None));
    Ok(())
}

#[tokio::test]
async fn what_stripe_refuses_is_made_without_the_email() -> Result<()> {
    let world = World::new().await?;
    world.memory.refuse_next();
    create_account::run(&world.sales, &new("eco_new", Plan::Pro)?, "test").await?;
    world.work_off().await?;
    let (of, has) = world.customers("eco_new").await?;
    assert_eq!((of.len(), of.first()), (1, has.as_ref()));
    let email = "select email from eco_identities where eco_id = 'eco_new'";
    let email: Option<String> = sqlx::query_scalar(email).fetch_one(&world.db.pool).await?;
    assert_eq!(email.as_deref(), Some("new@example.com"), "the account keeps it");
    Ok(())
}

#[tokio::test]
async fn what_stripe_refuses_all_the_same_is_not_asked_for_again() -> Result<()> {
    let world = World::new().await?;
    world.memory.refuse_next();
    world.memory.refuse_next();
    create_account::run(&world.sales, &new("eco_new", Plan::Pro)?, "test").await?;
    world.work_off().await?;
    assert_eq!(world.customers("eco_new").await?, (Vec::new(), None));
    let kept: (String, String) =
        sqlx::query_as("select outcome, failure from eco_stripe_customers").fetch_one(&world.db.pool).await?;
    assert_eq!(kept, ("refused".to_owned(), "the card was declined".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_plan_that_is_given_brings_a_customer_once() -> Result<()> {
    let world = World::new().await?;
    world.give(Plan::Pro).await?;
    // A checkout before it is made is that customer's, too.
    let opened = world.checkout(Plan::Enterprise).await?;
    let (of, has) = world.customers("eco_a").await?;
    assert_eq!((of.len(), of.first()), (1, has.as_ref()));
    let subscription = world.memory.go_through(&opened.session_id).context("a subscription")?;
    let customer = world.memory.state().subscriptions.get(&subscription).map(|found| found.customer.clone());
    assert_eq!(customer, has);
    for plan in [Plan::Free, Plan::Pro] {
        // Without a subscription there: its event was not heard.
        world.give(plan).await?;
    }
    world.work_off().await?;
    assert_eq!(world.customers("eco_a").await?.0.len(), 1);
    Ok(())
}

#[tokio::test]
async fn one_that_came_to_have_another_customer_gets_none() -> Result<()> {
    let world = World::new().await?;
    world.give(Plan::Pro).await?;
    sqlx::query("update eco_identities set stripe_customer_id = 'cus_other'").execute(&world.db.pool).await?;
    world.work_off().await?;
    assert_eq!(world.customers("eco_a").await?, (Vec::new(), Some("cus_other".to_owned())));
    let outcome: String =
        sqlx::query_scalar("select outcome from eco_stripe_customers").fetch_one(&world.db.pool).await?;
    assert_eq!(outcome, "unneeded");
    Ok(())
}

#[tokio::test]
async fn a_customer_that_names_another_account_is_refused() -> Result<()> {
    let world = World::new().await?;
    world.give(Plan::Pro).await?;
    world.work_off().await?;
    let (_, has) = world.customers("eco_a").await?;
    let thief = NewAccount { stripe_customer_id: has, ..new("eco_thief", Plan::Pro)? };
    let refused = create_account::run(&world.sales, &thief, "test").await;
    ensure!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    Ok(())
}

/// At a stand-in Stripe: what an account owes is charged once its customer is there.
#[tokio::test]
async fn its_overage_is_charged_once_the_customer_is_there() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let create = CreateAccountRequest {
        eco_id: "eco_a".to_owned(),
        email: "a@example.com".to_owned(),
        plan: common::Plan::Pro.into(),
        ..CreateAccountRequest::default()
    };
    billing.client.clone().create_account(manager()?.request(create)).await?;
    until(&db, "select stripe_customer_id is not null from eco_identities").await?;
    meter(&db, "eco_a", 105_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [500]);
    billing.stop().await
}
