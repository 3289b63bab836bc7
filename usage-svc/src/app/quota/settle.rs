//! Gives back what was not spent, until the database has it. Units are taken from memory first; what is due
//! here nobody can spend any more. A settlement may be repeated: each lease is settled once.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use nexus_core::{id::EcoId, period::Period};
use nexus_kit::db;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Holder, account::Account, held::Drained, lend::Lent, metrics::count_units};
use crate::{domain::lease::Return, store};

/// Leases settled in one round.
const AT_ONCE: usize = 500;
/// Of these, leases that clients of one account settle: each is a statement, and others are not to wait for many.
const CLIENTS_AT_ONCE: usize = 4;
/// Accounts that are settled at once where they are not settled together.
const ACCOUNTS_AT_ONCE: usize = 4;
/// Pause after a settlement that failed.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest time a settlement may take before its connection is given up.
const BOUND: Duration = Duration::from_secs(8);

/// What the database has to be told.
#[derive(Debug)]
pub(super) enum Due {
    /// A lease is settled, once nothing of it is reserved any more.
    Settle {
        lease: Drained,
        account: Arc<Account>,
        /// Somebody waits for it.
        answer: bool,
    },
    /// A grant's answer was lost.
    Disown { lease_id: Uuid, period: Period },
    /// A client settles a lease.
    Lent(Settlement),
    /// A client is gone, and its lease with it.
    Leave(Lent),
}

/// A lease of a client that is settled.
#[derive(Debug)]
pub(super) struct Settlement {
    lease_id: Uuid,
    /// Whose it has to be.
    client: Uuid,
    used: i64,
    /// Somebody waits for it.
    pub(super) answer: bool,
    /// The lease, where it was lent here.
    pub(super) lease: Option<Lent>,
    /// What the database said: the units that came back, or that it is not the client's.
    returned: Option<i64>,
    /// Told whether it was the client's.
    pub(super) done: Option<oneshot::Sender<bool>>,
}

impl Settlement {
    pub(super) fn of(lease_id: Uuid, client: Uuid, used: i64) -> Self {
        Self { lease_id, client, used, answer: false, lease: None, returned: None, done: None }
    }
}

/// All that is due.
#[derive(Debug, Default)]
pub(super) struct Returns {
    due: Mutex<Vec<(EcoId, Due)>>,
    /// More is due, or may be settled now.
    pub(super) more: Arc<Notify>,
}

impl Returns {
    pub(super) fn add(&self, eco_id: &EcoId, due: Due) {
        self.put(vec![(eco_id.clone(), due)]);
    }

    fn put(&self, due: Vec<(EcoId, Due)>) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).extend(due);
        self.more.notify_one();
    }

    /// Takes out some of what can be settled now.
    fn take(&self) -> Vec<(EcoId, Due)> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lent = HashMap::<EcoId, usize>::new();
        let mut has_turn = |eco_id: &EcoId, due: &Due| {
            !matches!(due, Due::Lent(_)) || {
                let count = lent.entry(eco_id.clone()).or_default();
                *count += 1;
                *count <= CLIENTS_AT_ONCE
            }
        };
        due.extract_if(.., |(eco_id, due)| due.is_final() && has_turn(eco_id, due)).take(AT_ONCE).collect()
    }
}

impl Due {
    fn is_final(&mut self) -> bool {
        match self {
            Self::Settle { lease, account, .. } => {
                let before = lease.unspent;
                let is_final = lease.is_final();
                account.returning.fetch_add(lease.unspent - before, Ordering::AcqRel);
                is_final
            }
            Self::Disown { .. } | Self::Lent(_) | Self::Leave(_) => true,
        }
    }
}

impl Holder {
    /// Has leases settled that were taken from memory; `answer`: somebody waits for it.
    pub(super) fn give_back(
        &self,
        eco_id: &EcoId,
        account: &Arc<Account>,
        returns: Vec<Drained>,
        answer: bool,
    ) {
        if returns.is_empty() {
            return;
        }
        let due = returns.into_iter().map(|lease| {
            account.taken_out.fetch_add(lease.unspent, Ordering::AcqRel);
            account.returning.fetch_add(lease.unspent, Ordering::AcqRel);
            account.unsettled.fetch_add(usize::from(lease.may_return), Ordering::AcqRel);
            (eco_id.clone(), Due::Settle { lease, account: account.clone(), answer })
        });
        self.returns.put(due.collect());
    }

    /// Settles what becomes due, until `stop`.
    pub(super) async fn settle_until(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.returns.more.notified() => self.settle_all().await,
            }
        }
    }

    /// Returns once nothing is due but what is reserved.
    pub(super) async fn settle_all(&self) {
        loop {
            let mut due = self.returns.take();
            if due.is_empty() {
                return;
            }
            let done = self.settle(&mut due).await;
            self.note_outcome(&done);
            match done {
                Ok(()) => self.note_settled(due),
                Err(error) if db::is_busy(&error) => self.settle_each(due).await,
                Err(error) => self.settle_again(due, &error).await,
            }
        }
    }

    /// Each account's alone, so that an account whose rows others hold holds up no other.
    async fn settle_each(&self, due: Vec<(EcoId, Due)>) {
        let mut accounts = BTreeMap::<EcoId, Vec<_>>::new();
        for (eco_id, due) in due {
            accounts.entry(eco_id.clone()).or_default().push((eco_id, due));
        }
        let settled = stream::iter(accounts.into_values()).map(|mut due| async move {
            let done = self.settle(&mut due).await;
            (done, due)
        });
        let mut settled = pin!(settled.buffer_unordered(ACCOUNTS_AT_ONCE));
        let mut busy = (Vec::new(), None);
        while let Some((done, due)) = settled.next().await {
            match done {
                Ok(()) => self.note_settled(due),
                Err(error) => {
                    busy.0.extend(due);
                    busy.1 = Some(error);
                }
            }
        }
        if let (due, Some(error)) = busy {
            self.settle_again(due, &error).await;
        }
    }

    async fn settle_again(&self, due: Vec<(EcoId, Due)>, error: &sqlx::Error) {
        tracing::warn!(%error, leases = due.len(), "leases could not be settled, and are tried again");
        self.returns.put(due);
        tokio::time::sleep(AGAIN).await;
    }

    async fn settle(&self, due: &mut [(EcoId, Due)]) -> sqlx::Result<()> {
        let mut connection = db::acquire(&self.pool).await?;
        let settled = timeout(BOUND, async {
            for answers in [true, false] {
                let returns: Vec<Return> = due
                    .iter()
                    .filter_map(|(_, due)| match due {
                        Due::Settle { lease, answer, .. } if *answer == answers => {
                            Some(Return { lease_id: lease.lease_id(), unspent: lease.unspent })
                        }
                        _ => None,
                    })
                    .collect();
                if !returns.is_empty() {
                    store::quota_leases::settle(&mut connection, &returns, answers).await?;
                }
            }
            let mut left = Vec::new();
            for (eco_id, due) in due {
                match due {
                    Due::Settle { .. } => {}
                    Due::Disown { lease_id, period } => {
                        store::quota_leases::disown(&mut connection, *lease_id, eco_id, *period).await?;
                    }
                    Due::Lent(Settlement { lease_id, client, used, answer, returned, .. }) => {
                        let ids = (*lease_id, *client);
                        let settled =
                            store::quota_leases::settle_lent(&mut connection, ids, eco_id, *used, *answer);
                        *returned = settled.await?;
                    }
                    Due::Leave(lent) => left.push(lent.lease_id()),
                }
            }
            if !left.is_empty() {
                store::quota_leases::leave_to_client(&mut connection, &left).await?;
            }
            Ok(())
        });
        db::in_time(settled.await, connection)
    }

    /// Lets those who wait for units here try again: they need not wait for the feed.
    fn note_settled(&self, due: Vec<(EcoId, Due)>) {
        for (eco_id, due) in due {
            match due {
                Due::Settle { lease, account, answer } => {
                    count_units(&self.metrics.returned, lease.unspent);
                    account.returning.fetch_sub(lease.unspent, Ordering::AcqRel);
                    account.unsettled.fetch_sub(usize::from(lease.may_return), Ordering::AcqRel);
                    if answer || lease.unspent > 0 {
                        self.note_returned(&eco_id);
                    }
                }
                Due::Disown { .. } => {}
                Due::Lent(settlement) => self.note_lent_settled(&eco_id, settlement),
                Due::Leave(lent) => lent.forget(),
            }
        }
    }

    fn note_lent_settled(&self, eco_id: &EcoId, settlement: Settlement) {
        let Settlement { answer, lease, returned, done, .. } = settlement;
        let units = returned.unwrap_or(0);
        count_units(&self.metrics.returned, units);
        if let Some(lease) = lease {
            if let Some(mut slot) = self.accounts.get_mut(eco_id).filter(|slot| slot.is_of(lease.period)) {
                slot.take_back(units);
            }
            lease.forget();
        }
        if answer || units > 0 {
            self.note_returned(eco_id);
        }
        if let Some(done) = done {
            // The client may have gone.
            let _ = done.send(returned.is_some());
        }
    }

    /// Units of the account may have come back.
    pub(super) fn note_returned(&self, eco_id: &EcoId) {
        let account = self.accounts.get_mut(eco_id).map(|mut slot| {
            slot.short = None;
            slot.account.clone()
        });
        if let Some(account) = account {
            account.returned.notify_waiters();
        }
    }
}
