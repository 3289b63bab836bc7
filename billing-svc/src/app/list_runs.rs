//! The runs of ProcessOverage, newest first, and the accounts that failed in one.

use std::collections::HashMap;

use nexus_kit::{db, page};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::run::{AccountError, Run, Totals},
    error::Error,
    store::{run_accounts, run_totals, runs},
};

/// A page of runs, and the place after it where there is more.
pub async fn run(pool: &PgPool, after: Option<Uuid>, size: i64) -> Result<(Vec<Run>, Option<Uuid>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut page = runs::list(&mut connection, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| last.run_id);
    Ok((page, next))
}

/// What these runs charged in each currency.
pub async fn totals(pool: &PgPool, run_ids: &[Uuid]) -> Result<HashMap<Uuid, Totals>, Error> {
    let mut connection = db::acquire(pool).await?;
    Ok(run_totals::of(&mut connection, run_ids).await?)
}

/// A run.
pub async fn get(pool: &PgPool, run_id: Uuid) -> Result<Run, Error> {
    let mut connection = db::acquire(pool).await?;
    runs::get(&mut connection, run_id).await?.ok_or(Error::RunNotFound(run_id))
}

/// A page of the accounts that failed in a run, and the place after it where there is more.
pub async fn errors(
    pool: &PgPool,
    run_id: Uuid,
    after: Option<&str>,
    size: i64,
) -> Result<(Vec<AccountError>, Option<String>), Error> {
    let mut connection = db::acquire(pool).await?;
    if runs::get(&mut connection, run_id).await?.is_none() {
        return Err(Error::RunNotFound(run_id));
    }
    let mut page = run_accounts::errors(&mut connection, run_id, after.unwrap_or_default(), size + 1).await?;
    let next = page::cut(&mut page, size, |last| last.eco_id.clone());
    Ok((page, next))
}
