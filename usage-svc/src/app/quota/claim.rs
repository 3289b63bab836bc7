//! Claims: asks the database for units, one caller of an account at a time and for all that wait.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nexus_core::{id::EcoId, period::Period};
use nexus_kit::db;
use sqlx::{Postgres, pool::PoolConnection};
use tokio::{
    sync::{MutexGuard, oneshot},
    time::timeout,
};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    Holder,
    account::{Account, Pace, Short, Slot, Step, View, Waiting},
    held::{Held, Reservation},
    metrics::count_units,
    settle::{Due, Settlement},
};
use crate::{
    clock::BootTime,
    domain::{
        lease::{Claim, Grant, Units},
        quota::Standing,
    },
    error::Error,
    store,
};

/// Longest time a statement may take, while an account's claims wait for it, before its connection is given up.
pub(in crate::app) const BOUND: Duration = Duration::from_secs(8);

/// What a caller asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Units, all or none.
    pub(super) units: i64,
    /// What was remembered before does not count.
    pub(super) since: BootTime,
    /// A refusal is final: there was time to give units back.
    pub(super) last: bool,
    /// The units may come back.
    pub(super) reserved: bool,
}

impl Ask {
    /// For units that are used.
    pub(super) fn of(units: i64) -> Self {
        Self { units, since: BootTime::START, last: false, reserved: false }
    }

    /// Once more, whatever is remembered, and for the last time.
    pub(super) fn at_last(self) -> Self {
        Self { since: BootTime::now(), last: true, ..self }
    }
}

/// Whose a lease is to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum For {
    /// This replica's.
    Holder(Claim),
    /// A client's, of at most so many units.
    Client { client: Uuid, want: i64 },
}

impl For {
    /// What is to be done about a grant whose answer is lost.
    fn lost(self, lease_id: Uuid, period: Period) -> Due {
        match self {
            Self::Holder(_) => Due::Disown { lease_id, period },
            Self::Client { client, .. } => Due::Lent(Settlement::of(lease_id, client, 0)),
        }
    }
}

/// An account's turn: nobody else asks the database for units of it meanwhile.
struct Turn<'a> {
    pace: MutexGuard<'a, Pace>,
    /// Units that waited for a turn, those of this one among them.
    need: i64,
}

impl<'a> Turn<'a> {
    async fn take(account: &'a Account, waits: Waiting<'_>) -> Self {
        let pace = account.turn.lock().await;
        let need = account.waiting();
        drop(waits);
        Self { pace, need }
    }
}

/// Whether a lease with this id exists.
pub(super) fn is_taken_id(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

/// How often everything and how often the account had changed.
pub(super) type Epoch = (u64, u64);

impl Holder {
    /// Takes its turn, in a task of its own: a grant arrives also when the caller goes away. Then nothing of it is the
    /// caller's: who waits leaves, and what was decided goes back.
    pub(super) async fn claim(
        self: &Arc<Self>,
        eco_id: &EcoId,
        account: &Arc<Account>,
        ask: Ask,
    ) -> Result<Step, Error> {
        let (mut answer, answered) = oneshot::channel();
        let (holder, eco_id, account) = (self.clone(), eco_id.clone(), account.clone());
        let task = async move {
            let waits = account.wait(ask.units);
            let turn = tokio::select! {
                biased;
                () = answer.closed() => return,
                turn = Turn::take(&account, waits) => turn,
            };
            let until_taken = Ask { reserved: true, ..ask };
            let step = holder.take_turn(&eco_id, &account, until_taken, turn).await;
            if answer.send(step).is_err() {
                tracing::debug!("a caller went away before it was decided");
            }
        };
        self.claims.spawn(task.in_current_span());
        let step = answered.await.map_err(|_| Error::Stopping)??;
        Ok(if ask.reserved { step } else { step.keep() })
    }

    /// Claims ahead of need, unless that is being done.
    pub(super) fn refill(self: &Arc<Self>, eco_id: &EcoId, account: Arc<Account>) {
        if self.closing.is_cancelled() || account.refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (holder, eco_id) = (self.clone(), eco_id.clone());
        self.claims.spawn(async move {
            let turn = Turn::take(&account, account.wait(0)).await;
            if let Err(error) = holder.take_turn(&eco_id, &account, Ask::of(0).at_last(), turn).await {
                tracing::debug!(%error, "a claim ahead of need failed");
            }
            account.refilling.store(false, Ordering::Release);
        });
    }

    /// Decides from memory if that is possible by now, else by the database. Units 0: ahead of need.
    async fn take_turn(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        ask: Ask,
        Turn { mut pace, need }: Turn<'_>,
    ) -> Result<Step, Error> {
        if self.closing.is_cancelled() {
            return Err(Error::Stopping);
        }
        if ask.units > 0
            && let Some(step) = self.remembered(eco_id, ask)
        {
            return Ok(step);
        }
        // Found out by those whose turn was before.
        if self.outage.is_on() {
            return Err(Error::Database(sqlx::Error::PoolTimedOut));
        }
        let epoch = self.epoch_of(account);
        let mut cached = self.cached_view(eco_id);
        loop {
            let view = match cached {
                Some(view) => view,
                None => self.read(eco_id, account, epoch).await?,
            };
            let limit = view.terms.hard_limit();
            let unused = self.unspent(eco_id, view.period) + account.taken_out.load(Ordering::Acquire);
            let want = pace.wanted(unused, limit.is_some());
            let claim = Claim { least: ask.units.max(1), need, want };
            let lease_id = Uuid::now_v7();
            match self.grant(lease_id, For::Holder(claim), eco_id, &view).await? {
                Grant::Granted { units, consumed } => {
                    count_units(&self.metrics.granted, units);
                    let own = ask.units;
                    let view = View { consumed, ..view };
                    let held = self.held(lease_id, units - own);
                    let reservation = (ask.reserved && own > 0).then(|| Reservation::new(&held, own));
                    let (decision, had) = self.take_in(eco_id, account, epoch, view, (held, units), own);
                    pace.begin(had);
                    account.taken_out.store(0, Ordering::Release);
                    return Ok(Step::Decided(decision, reservation));
                }
                // What was remembered is out of date. (Read anew, it is so at a change that comes right then.)
                Grant::OtherTerms => cached = None,
                Grant::Short { .. } if cached.is_some() && ask.units > 0 => cached = None,
                Grant::Short { consumed, outstanding, recallable } => {
                    let short = Short {
                        left: limit.map_or(0, |limit| (limit - consumed).max(0)),
                        at: BootTime::now(),
                        outstanding,
                        recallable: recallable && !ask.last,
                    };
                    let view = View { consumed, ..view };
                    return Ok(self.fall_short(eco_id, account, epoch, view, short, ask));
                }
            }
        }
    }

    fn remembered(&self, eco_id: &EcoId, ask: Ask) -> Option<Step> {
        let slot = self.accounts.get(eco_id)?;
        slot.decide(ask, &self.clock, || self.feed.is_heard())
    }

    pub(super) fn epoch_of(&self, account: &Account) -> Epoch {
        (self.epoch.load(Ordering::Acquire), account.epoch.load(Ordering::Acquire))
    }

    /// What is known of the account, where a change would have been heard.
    pub(super) fn cached_view(&self, eco_id: &EcoId) -> Option<View> {
        let view = self.accounts.get(eco_id)?.view?;
        (BootTime::now() < view.ends && self.feed.is_heard()).then_some(view)
    }

    /// What the database says of the account.
    pub(super) async fn read(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        epoch: Epoch,
    ) -> Result<View, Error> {
        let (asked, before) = (BootTime::now(), self.known.before());
        let standing = self.query_standing(eco_id).await?;
        self.known.learn_standing(before, eco_id, &standing);
        let view = View::of(&standing, asked);
        self.with_slot(eco_id, account, view, |slot| {
            if self.epoch_of(account) == epoch {
                slot.view = Some(view);
            }
        });
        Ok(view)
    }

    async fn query_standing(&self, eco_id: &EcoId) -> Result<Standing, Error> {
        let read = async {
            let mut connection = db::acquire(&self.pool).await?;
            let read = timeout(BOUND, store::accounts::standing(&mut connection, eco_id)).await;
            db::in_time(read, connection)
        };
        let read = read.await;
        self.note_outcome(&read);
        let standing = read?.ok_or(Error::UnknownAccount)?;
        if standing.closed { Err(Error::ClosedAccount) } else { Ok(standing) }
    }

    /// Asks for a lease. A grant whose answer is lost is disowned.
    pub(super) async fn grant(
        &self,
        lease_id: Uuid,
        whose: For,
        eco_id: &EcoId,
        view: &View,
    ) -> Result<Grant, Error> {
        let (period, terms) = (view.period, (view.terms.epoch, view.terms.hard_limit()));
        let acquired = db::acquire(&self.pool).await;
        let granted = match acquired {
            Ok(mut connection) => {
                let sent = timeout(BOUND, async {
                    self.register(&mut connection).await?;
                    match whose {
                        For::Holder(claim) => {
                            let ids = (lease_id, self.id);
                            store::quota_leases::grant(&mut connection, ids, eco_id, period, terms, claim)
                                .await
                        }
                        For::Client { client, want } => {
                            let ids = (lease_id, client, self.id);
                            store::quota_leases::lend(&mut connection, ids, eco_id, period, terms, want).await
                        }
                    }
                });
                let granted = db::in_time(sent.await, connection);
                // With an id that is taken nothing was granted, and what it is the id of stays as it is.
                if granted.as_ref().is_err_and(|error| !is_taken_id(error)) {
                    self.returns.add(eco_id, whose.lost(lease_id, period));
                }
                granted
            }
            Err(error) => Err(error),
        };
        self.note_outcome(&granted);
        Ok(granted?)
    }

    /// Takes a lease into memory, or back at once where the account changed meanwhile. Of it, `own` units are
    /// spent. Returns the decision and the units that were there.
    fn take_in(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        epoch: Epoch,
        view: View,
        (held, units): (Arc<Held>, i64),
        own: i64,
    ) -> (super::Decision, i64) {
        self.with_slot(eco_id, account, view, |slot| {
            let decision = slot.grant(view, held, units, own);
            if self.epoch_of(account) != epoch {
                self.give_back(eco_id, account, slot.forget(), false);
            }
            (decision, slot.unspent() + own)
        })
    }

    fn held(&self, lease_id: Uuid, units: i64) -> Arc<Held> {
        Arc::new(Held { lease_id, units: Units::new(units), given_up: self.returns.more.clone() })
    }

    fn fall_short(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        epoch: Epoch,
        view: View,
        mut short: Short,
        ask: Ask,
    ) -> Step {
        self.with_slot(eco_id, account, view, |slot| {
            if ask.units == 0 {
                // Nobody is refused, and until the next grant nothing is claimed ahead.
                return slot.stop_refills(view);
            }
            short.outstanding |= slot.is_outstanding();
            if slot.unspent_or_returning() > 0 || account.lent.load(Ordering::Acquire) > 0 {
                // Our own leases hold some, each too few, or our clients do.
                short.outstanding = true;
                short.recallable = !ask.last;
            }
            let step = slot.refuse(ask.units, view, short);
            if self.epoch_of(account) != epoch {
                self.give_back(eco_id, account, slot.forget(), false);
            }
            step
        })
    }

    /// Works on the account's slot, in which nothing of another period is held.
    pub(super) fn with_slot<T>(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        view: View,
        work: impl FnOnce(&mut Slot) -> T,
    ) -> T {
        let mut slot = self.accounts.entry(eco_id.clone()).or_insert_with(|| Slot::of(account.clone()));
        if !slot.is_of(view.period) {
            let returns = slot.drain();
            self.give_back(eco_id, account, returns, false);
        }
        work(&mut slot)
    }

    async fn register(&self, connection: &mut PoolConnection<Postgres>) -> sqlx::Result<()> {
        if !self.registered.load(Ordering::Acquire) {
            store::quota_holders::beat(connection, self.id, &self.name).await?;
            self.registered.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Asks whoever holds units of the account to give them back: us and our clients at once, others by the feed.
    pub(super) async fn recall(&self, eco_id: &EcoId, account: &Arc<Account>) {
        self.clients.tell(eco_id);
        if let Some(mut slot) = self.accounts.get_mut(eco_id) {
            let returns = slot.drain();
            self.give_back(eco_id, account, returns, true);
        }
        let now = BootTime::now();
        let before = account.recalled.swap(now.nanos(), Ordering::AcqRel);
        if now.since(BootTime::at_nanos(before)) < super::RECALL_AGAIN {
            return;
        }
        self.metrics.recalls.inc();
        let payload = format!("recall:{eco_id}");
        let notify = async {
            let mut connection = db::acquire(&self.pool).await?;
            let sent =
                timeout(BOUND, store::changes::notify(&mut *connection, store::changes::CHANNEL, &payload));
            db::in_time(sent.await, connection)
        };
        if let Err(error) = notify.await {
            tracing::warn!(%error, "units could not be called back");
        }
    }
}
