//! Tells operators what they must hear of: looks for it in the tables, writes each occurrence down once, and posts it
//! to a Slack-compatible webhook, held by a lease as customers' webhooks are.

use std::{fmt, time::Duration};

use chrono::TimeDelta;
use nexus_kit::db;
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        notice::{DETAILS_TOLD, Notice},
        webhook::{delivery::Failure, schedule},
    },
    error::Error,
    outgoing::Client,
    store::{
        notices::{self, Claimed},
        run_accounts,
    },
};

const EVERY: Duration = Duration::from_secs(1);
/// What happened before is no news any more.
const NEWS: TimeDelta = TimeDelta::days(7);
/// A run writes a heartbeat every two seconds.
const SILENCE: TimeDelta = TimeDelta::minutes(5);
const LEASE_MARGIN: Duration = Duration::from_secs(30);

/// Tells operators.
#[derive(Clone)]
pub struct Operators {
    /// Connections that act as the service's role.
    pub pool: PgPool,
    /// How requests are sent.
    pub client: Client,
    /// Longest time a request may take.
    pub timeout: Duration,
    /// Where to: whoever knows it may post.
    pub webhook: SecretString,
    /// How long there may be no finished run over all accounts.
    pub overdue_after: Duration,
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators").field("overdue_after", &self.overdue_after).finish_non_exhaustive()
    }
}

impl Operators {
    /// Looks and tells until `shutdown`.
    pub async fn work(self, shutdown: CancellationToken) {
        let mut failed = false;
        while !shutdown.is_cancelled() {
            match self.look_and_tell(&shutdown).await {
                Ok(()) => failed = false,
                Err(error) if failed => tracing::debug!(%error, "operators could still not be told"),
                Err(error) => {
                    tracing::warn!(%error, "operators could not be told");
                    failed = true;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn look_and_tell(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        look(&self.pool, self.overdue_after).await?;
        while !shutdown.is_cancelled() {
            let claimed = {
                let mut connection = db::acquire(&self.pool).await?;
                notices::claim(&mut connection, self.timeout + LEASE_MARGIN).await?
            };
            let Some(claimed) = claimed else { return Ok(()) };
            let body = json!({ "text": claimed.message }).to_string();
            let result = self.client.post(self.webhook.expose_secret(), &[], body).await;
            self.note(&claimed, result).await?;
        }
        Ok(())
    }

    async fn note(&self, claimed: &Claimed, result: Result<u16, Failure>) -> Result<(), Error> {
        let mut connection = db::acquire(&self.pool).await?;
        let Err(failure) = result else { return Ok(notices::sent(&mut connection, claimed).await?) };
        let status = failure.status();
        let asked = failure.retry_after();
        let jitter = rand::rng().random_range(0..=2 * schedule::JITTER_PER_MILLE);
        let pause = schedule::pause(claimed.tries, jitter, asked);
        let notice_id = claimed.notice_id;
        if pause.is_some() {
            tracing::warn!(error = %failure, status, notice_id, "operators could not be told, and will be");
        } else {
            tracing::error!(error = %failure, status, notice_id, message = claimed.message, "operators were not told");
        }
        Ok(notices::fail(&mut connection, claimed, &failure.to_string(), pause).await?)
    }
}

/// Writes down what operators are to be told. Each occurrence has a name, so that all replicas may look.
async fn look(pool: &PgPool, overdue_after: Duration) -> Result<(), Error> {
    let mut transaction = db::begin(pool).await?;
    let mut failed = notices::failed_runs(&mut transaction, NEWS, SILENCE).await?;
    for run in &mut failed {
        run.errors = run_accounts::errors(&mut transaction, run.run_id, "", DETAILS_TOLD as i64).await?;
    }
    let overdue = notices::overdue(&mut transaction, overdue_after).await?;
    let drift = notices::drift_left(&mut transaction, NEWS).await?;
    let runs = failed.iter().map(Notice::run_failed).chain(overdue.map(Notice::run_overdue));
    let found = runs.chain(drift.iter().map(Notice::drift_found));
    for notice in found {
        if notices::insert(&mut transaction, &notice).await? {
            tracing::error!(
                kind = notice.kind.as_str(),
                subject = notice.subject,
                "operators are to be told"
            );
        }
    }
    Ok(transaction.commit().await?)
}
