//! One reconciliation, from its beginning to its end.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use nexus_kit::db;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{database, stripe, subscriptions};
use crate::{
    app::stripe_events,
    domain::reconciliation::{Difference, Findings, Status},
    error::Error,
    payments::{Payments, books::Books, pace::Pace},
    store::{
        identity,
        lease::{self, Lease},
        reconciliations::{self, Begun},
        stripe_books, withheld,
    },
};

/// What is seen of a reconciliation while it is at work.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// What it found so far.
    pub(super) findings: Findings,
    /// Accounts of which ledger and Stripe do not agree, or may not.
    pub(super) differing: BTreeSet<String>,
    /// When and how it ended; `None`: it goes on.
    pub(super) ended: Option<(Instant, Status)>,
}

/// What a reconciliation needs.
pub(super) struct Context {
    pub(super) pool: PgPool,
    pub(super) payments: Arc<dyn Payments>,
    pub(super) books: Arc<dyn Books>,
    /// What brings our tables to how subscriptions stand.
    pub(super) events: stripe_events::Context,
    pub(super) pace: Arc<Pace>,
    pub(super) shutdown: CancellationToken,
    pub(super) begun: Begun,
    /// On whose behalf what can be repaired is.
    pub(super) actor: String,
    pub(super) live: watch::Sender<Live>,
}

impl Context {
    pub(super) fn add(&self, difference: Difference) {
        tracing::warn!(
            kind = difference.kind.as_str(),
            eco_id = difference.eco_id,
            charge_id = difference.charge_id,
            item_id = difference.item_id,
            amount_micros = difference.amount.0,
            repaired = difference.repaired,
            "{}",
            difference.message
        );
        self.live.send_modify(|live| {
            let kind = difference.kind;
            let is_open = kind.is_of_ledger_and_stripe() || kind.may_lack_customer();
            if !difference.repaired && is_open {
                live.differing.insert(difference.eco_id.clone());
            }
            live.findings.add(difference);
        });
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Findings)) {
        self.live.send_modify(|live| add(&mut live.findings));
    }

    pub(super) fn go_on(&self) -> Result<(), Error> {
        if self.shutdown.is_cancelled() { Err(Error::Stopping) } else { Ok(()) }
    }
}

/// Works to the end, keeps it, and gives the lease back.
pub(super) async fn work(context: &Context, mut lease: PgConnection) -> Status {
    let result = compare(context, &mut lease).await;
    let findings = context.live.borrow().findings.clone();
    let status = match &result {
        Ok(()) => Status::Finished,
        Err(error) => {
            tracing::error!(%error, "a reconciliation failed");
            Status::Failed
        }
    };
    if let Err(error) = keep_end(context, lease, &findings, status).await {
        tracing::error!(%error, "the end of a reconciliation could not be kept");
        return Status::Failed;
    }
    tracing::info!(
        ?status,
        accounts = findings.accounts,
        periods = findings.periods,
        items = findings.items,
        differences = findings.total,
        repaired = findings.repaired,
        "a reconciliation ended"
    );
    status
}

async fn compare(context: &Context, lease: &mut PgConnection) -> Result<(), Error> {
    let known = identity::remembered(lease).await?;
    let current = identity::current(lease).await?;
    let looked_at = database::compare(context).await?;
    let restored = known != current;
    let last_written = if restored { Some(stripe_books::last_written(lease).await?) } else { None };
    if restored {
        // Nothing is charged meanwhile. An item belongs to whoever has its customer, and a lost event may have given one.
        subscriptions::compare(context, lease, looked_at).await?;
    }
    let mut strays = stripe::compare(context, lease, looked_at, last_written).await?;
    if !restored {
        // What ends is charged at once: what was charged for it has to be known before.
        subscriptions::compare(context, lease, looked_at).await?;
        strays.belong_since(lease).await?;
    }
    if context.begun.scope.is_whole() {
        let differing = context.live.borrow().differing.iter().cloned().collect::<Vec<_>>();
        withheld::replace(lease, &strays.withheld, &differing).await?;
    }
    if restored && context.begun.scope.is_whole() && context.live.borrow().findings.ledger_is_whole() {
        tracing::warn!(
            system_identifier = current.system_identifier,
            timeline_id = current.timeline_id,
            database_oid = current.database_oid,
            "the ledger is whole on another server than before; it is charged again from now on"
        );
        // The lease is on the server that was looked at: on another one this connection is broken.
        identity::remember(lease, current).await?;
    }
    Ok(())
}

/// Keeps the end and gives the lease back, in this order.
async fn keep_end(
    context: &Context,
    mut lease: PgConnection,
    findings: &Findings,
    status: Status,
) -> Result<(), Error> {
    let id = context.begun.reconciliation_id;
    let kept = async {
        let mut transaction = lease.begin().await?;
        stripe_books::clear(&mut transaction).await?;
        reconciliations::finish(&mut transaction, id, findings, status).await?;
        transaction.commit().await
    };
    if let Err(error) = kept.await {
        tracing::warn!(%error, "a reconciliation has lost its lease");
        let mut connection = db::acquire(&context.pool).await?;
        reconciliations::finish(&mut connection, id, findings, Status::Failed).await?;
        return Err(error.into());
    }
    Ok(lease::give_back(lease, Lease::Reconciliation).await?)
}
