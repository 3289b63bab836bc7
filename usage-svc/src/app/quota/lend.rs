//! Lends units to a client: each grant is a lease in the database, of which nothing is in memory here but that it
//! is out. Who stops without a word keeps its leases; that is a loss that is reported, and never a second spending.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nexus_core::{id::EcoId, period::Period};
use nexus_kit::validate::Violations;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    COME_BACK, Holder, Quota, RECALL_WAIT,
    account::{Account, View},
    claim::{Epoch, For, is_taken_id},
    clients::Place,
    metrics::count_units,
    settle::{Due, Settlement},
};
use crate::{
    clock::BootTime,
    domain::{lease::Grant, quota::Terms},
    error::Error,
};

/// Leases that a client holds at once.
const MAX_LEASES: usize = 16;
/// Leases that a stream settles and was not given: those that earlier streams of the client left. Each may leave a row,
/// if only for an hour.
const MAX_OTHERS: usize = 4 * MAX_LEASES;
/// When units that are used up are asked for again at the latest.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long a settlement is waited for. Later it is done all the same.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// A client of this replica, for as long as its stream lasts.
#[derive(Debug)]
pub struct Client {
    /// As it calls itself, on this stream and others. Nobody else knows: so nobody else settles its leases.
    id: Uuid,
    holder: Arc<Holder>,
    eco_id: EcoId,
    account: Arc<Account>,
    place: Place,
    leases: HashMap<Uuid, Lent>,
    /// Leases that it settled and was not given.
    others: usize,
    /// It was told to give back what it holds.
    recalled: bool,
    view: View,
}

/// What a client may know of its account.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// What holds for the account.
    pub terms: Terms,
    /// The period.
    pub period: Period,
    /// The rest of it, at least.
    pub left: Duration,
    /// Units consumed in it, those that this replica holds and has not spent aside.
    pub consumed: i64,
    /// How long units may be used before the client has to ask again.
    pub valid: Duration,
}

/// The answer to a client that wants units.
#[derive(Debug, Clone, Copy)]
pub enum Lending {
    /// So many.
    Granted(i64),
    /// None now; when to ask again.
    Nothing(Duration),
}

/// A lease that is lent and not settled. Dropped, it is left to its client.
#[derive(Debug)]
pub(super) struct Lent {
    holder: Arc<Holder>,
    account: Arc<Account>,
    eco_id: EcoId,
    lease_id: Uuid,
    pub(super) period: Period,
    left: bool,
}

impl Quota {
    /// Takes in a client of the account, who came with this API key.
    pub async fn client(&self, eco_id: &EcoId, id: Uuid, key_id: Option<String>) -> Result<Client, Error> {
        let place = self.0.clients.enter(eco_id, key_id).ok_or(Error::TooManyClients)?;
        let account = self.0.account(eco_id);
        // From here on it is told of changes.
        let view = match self.0.cached_view(eco_id) {
            Some(view) => view,
            None => self.0.read(eco_id, &account, self.0.epoch_of(&account)).await?,
        };
        let (holder, eco_id) = (self.0.clone(), eco_id.clone());
        let leases = HashMap::new();
        Ok(Client { id, holder, eco_id, account, place, leases, others: 0, recalled: false, view })
    }
}

impl Client {
    /// The account.
    pub fn eco_id(&self) -> &EcoId {
        &self.eco_id
    }

    /// Whether it has leases that are not settled.
    pub fn holds(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Returns once it is to give back what it holds; whether because its API key may have changed. It may be dropped
    /// while it waits: nothing is lost.
    pub async fn told(&mut self) -> bool {
        self.place.line().told().await;
        self.recalled = true;
        self.place.line().take_key_changed()
    }

    /// What is known of the account.
    pub fn position(&mut self) -> Position {
        let unspent = self.holder.accounts.get(&self.eco_id).map_or(0, |slot| {
            self.view = slot.view.unwrap_or(self.view);
            slot.unspent()
        });
        let View { terms, period, ends, consumed, .. } = self.view;
        let left = ends.since(BootTime::now());
        let consumed = (consumed - unspent).max(0);
        Position { terms, period, left, consumed, valid: self.holder.valid() }
    }

    /// Grants up to so many units under this lease. One that holds nothing waits for units of others; one that is `gone` by
    /// its turn gets nothing.
    pub async fn lend<G: Future<Output = ()>>(
        &mut self,
        lease_id: Uuid,
        want: i64,
        gone: impl Fn() -> G,
    ) -> Result<Lending, Error> {
        let until = Instant::now() + RECALL_WAIT;
        let waits = self.leases.is_empty();
        let mut last = !waits;
        loop {
            if self.leases.len() >= MAX_LEASES || self.holder.valid().is_zero() || self.holder.outage.is_on()
            {
                return Ok(Lending::Nothing(COME_BACK));
            }
            let account = self.account.clone();
            let returned = account.returned.notified();
            if !self.holds() {
                // What it was told of before concerns nothing that it is granted from here on.
                self.recalled = false;
                self.place.line().forget_told();
            }
            // In a turn the database is asked, and what it grants arrives also where nobody waits for it any more.
            let turn = tokio::select! {
                biased;
                () = gone() => return Ok(Lending::Nothing(COME_BACK)),
                turn = account.turn.lock() => turn,
            };
            let lent = self.holder.lend(self.id, &self.eco_id, &account, lease_id, want).await;
            drop(turn);
            let lent = match lent {
                Err(error) if error.is_unanswered() => return Ok(Lending::Nothing(COME_BACK)),
                Err(Error::Database(error)) if is_taken_id(&error) => {
                    return Err(Violations::one("want_lease_id", "was used before").into());
                }
                lent => lent?,
            };
            match lent {
                Outcome::Granted(lent, units) => {
                    self.leases.insert(lease_id, lent);
                    return Ok(Lending::Granted(units));
                }
                Outcome::Short { recallable: true, .. } if !last => {
                    self.holder.recall(&self.eco_id, &account).await;
                    last = timeout_at(until, returned).await.is_err();
                }
                Outcome::Short { retry, .. } => return Ok(Lending::Nothing(retry)),
                Outcome::Changed => return Ok(Lending::Nothing(Duration::ZERO)),
            }
        }
    }

    /// Takes back a lease that the client was never told of.
    pub fn withdraw(&mut self, lease_id: Uuid) {
        let mut unused = Settlement::of(lease_id, self.id, 0);
        unused.lease = self.leases.remove(&lease_id);
        self.holder.returns.add(&self.eco_id, Due::Lent(unused));
    }

    /// Settles a lease of this client, lent on this stream or on another. Returns when that is committed; while
    /// the database is away, once it is sure to be as long as this replica lives.
    pub async fn settle(&mut self, lease_id: Uuid, used: i64) -> Result<(), Error> {
        let lease = self.leases.remove(&lease_id);
        if lease.is_none() {
            self.others += 1;
            if self.others > MAX_OTHERS {
                let message =
                    format!("is another one that this stream was not given, after {MAX_OTHERS} of them");
                return Err(Violations::one("lease_id", message).into());
            }
        }
        let (done, settled) = oneshot::channel();
        let mut settlement = Settlement::of(lease_id, self.id, used);
        settlement.answer = self.recalled;
        settlement.lease = lease;
        settlement.done = Some(done);
        self.holder.returns.add(&self.eco_id, Due::Lent(settlement));
        match timeout(SETTLED_WITHIN, settled).await {
            Ok(Ok(false)) => {
                Err(Violations::one("lease_id", "must be a lease that LeaseQuota gave this client").into())
            }
            _ => Ok(()),
        }
    }
}

/// What asking the database comes to.
enum Outcome {
    Granted(Lent, i64),
    Short {
        retry: Duration,
        recallable: bool,
    },
    /// The account changed meanwhile: it is to be asked for under another id.
    Changed,
}

impl Holder {
    /// How long clients may use what they hold without another answer.
    fn valid(&self) -> Duration {
        self.stale_max.saturating_sub(self.feed.unheard_for())
    }

    /// In the account's turn.
    async fn lend(
        self: &Arc<Self>,
        client: Uuid,
        eco_id: &EcoId,
        account: &Arc<Account>,
        lease_id: Uuid,
        want: i64,
    ) -> Result<Outcome, Error> {
        if self.closing.is_cancelled() {
            return Err(Error::Stopping);
        }
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
            let want = self.share_of(eco_id, &view, want);
            match self.grant(lease_id, For::Client { client, want }, eco_id, &view).await? {
                Grant::Granted { units, consumed } => {
                    count_units(&self.metrics.granted, units);
                    let lent = Lent::new(self, account, eco_id, lease_id, view.period);
                    self.note_consumed(eco_id, account, epoch, View { consumed, ..view });
                    if self.epoch_of(account) == epoch {
                        return Ok(Outcome::Granted(lent, units));
                    }
                    let mut unused = Settlement::of(lease_id, client, 0);
                    unused.lease = Some(lent);
                    self.returns.add(eco_id, Due::Lent(unused));
                    return Ok(Outcome::Changed);
                }
                Grant::OtherTerms => cached = None,
                Grant::Short { .. } if cached.is_some() => cached = None,
                Grant::Short { consumed, outstanding, recallable } => {
                    let view = View { consumed, ..view };
                    self.note_consumed(eco_id, account, epoch, view);
                    // What this replica holds itself, or another of its clients.
                    let here = account.lent.load(Ordering::Acquire) > 0
                        || self.accounts.get(eco_id).is_some_and(|slot| slot.unspent_or_returning() > 0);
                    let reset = view.resets.since(BootTime::now());
                    let retry = if outstanding || here { COME_BACK } else { reset.min(ASK_AGAIN) };
                    return Ok(Outcome::Short { retry, recallable: recallable || here });
                }
            }
        }
    }

    /// Of what is left no client of this replica gets more than its part, as no replica does.
    fn share_of(&self, eco_id: &EcoId, view: &View, want: i64) -> i64 {
        let Some(limit) = view.terms.hard_limit() else { return want };
        let clients = i64::try_from(self.clients.count(eco_id).max(1)).unwrap_or(i64::MAX);
        let left = (limit - view.consumed).max(0);
        want.min(left / clients.saturating_mul(2)).max(1)
    }

    fn note_consumed(&self, eco_id: &EcoId, account: &Arc<Account>, epoch: Epoch, view: View) {
        self.with_slot(eco_id, account, view, |slot| {
            if self.epoch_of(account) == epoch {
                slot.view = Some(view);
            }
        });
    }
}

impl Lent {
    fn new(
        holder: &Arc<Holder>,
        account: &Arc<Account>,
        eco_id: &EcoId,
        lease_id: Uuid,
        period: Period,
    ) -> Self {
        account.lent.fetch_add(1, Ordering::AcqRel);
        let (holder, account, eco_id) = (holder.clone(), account.clone(), eco_id.clone());
        Self { holder, account, eco_id, lease_id, period, left: false }
    }

    pub(super) fn lease_id(&self) -> Uuid {
        self.lease_id
    }

    /// Nothing is to be done about it any more.
    pub(super) fn forget(mut self) {
        self.left = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.left {
            self.account.lent.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let (holder, account, eco_id) = (self.holder.clone(), self.account.clone(), self.eco_id.clone());
        let lent = Self { holder, account, eco_id, lease_id: self.lease_id, period: self.period, left: true };
        self.holder.returns.add(&self.eco_id, Due::Leave(lent));
    }
}
