//! Sets what an account's overage may cost in a period. Usage-svc hears of it by the trigger on the account, and no
//! grant is made by the cap of before once this is committed.

use nexus_core::money::Currency;
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use crate::{
    domain::{account::Account, spend_cap::SpendCapChange},
    error::Error,
    store::{accounts, spend_cap_requests, unknown_word},
};

/// A repeat of a request returns the first answer.
pub async fn run(pool: &PgPool, change: &SpendCapChange, actor: &str) -> Result<Account, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    accounts::lock(&mut transaction, &change.eco_id).await?;
    let found = accounts::get(&mut transaction, change.eco_id.as_str()).await?;
    let account = found.ok_or_else(|| Error::AccountNotFound(change.eco_id.clone()))?;
    if let Some(request_id) = change.request_id
        && let Some(answered) = spend_cap_requests::get(&mut transaction, &change.eco_id, request_id).await?
    {
        if answered.cap != change.cap {
            return Err(Violations::one("request_id", "was used for another spend cap").into());
        }
        // It may have been set again.
        return Ok(Account { spend_cap: answered.cap, ..account });
    }
    if account.closed_time.is_some() {
        return Err(Error::AccountClosed(change.eco_id.clone()));
    }
    check(change, account.currency_code.parse().map_err(unknown_word)?)?;
    accounts::set_spend_cap(&mut transaction, &change.eco_id, change.cap).await?;
    spend_cap_requests::insert(&mut transaction, change).await?;
    transaction.commit().await?;
    Ok(Account { spend_cap: change.cap, ..account })
}

fn check(change: &SpendCapChange, account: Currency) -> Result<(), Violations> {
    let mut v = Violations::new();
    v.require(change.is_in(account), "currency_code", format!("must be the account's currency, {account}"));
    let chargeable = change.is_chargeable_in(account);
    v.require(
        chargeable,
        "spend_cap_micros",
        format!(
            "must be an amount that can be charged in {account}, without a fraction of its smallest unit"
        ),
    );
    v.finish()
}
