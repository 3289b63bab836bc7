//! Keeps the holder: listens to changes, sweeps what is idle, gives signs of life, and settles at the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use nexus_core::id::EcoId;
use nexus_kit::{db, turn::Turns};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    Holder, MAX_READS, Quota,
    account::{Account, Idle},
    metrics::QuotaMetrics,
    settle::Returns,
};
use crate::{
    app::{
        feed::{Change, Changes},
        known::Known,
        outage::Outage,
    },
    clock::{BootTime, LaggingClock},
    store,
};

const SWEEP: Duration = Duration::from_secs(1);
const IDLE: Idle = Idle { limited: 2, unlimited: 60 };
const NOW: Idle = Idle { limited: 0, unlimited: 0 };
/// Only what is spent goes back, and what is of a period that is over.
const NEVER: Idle = Idle { limited: u32::MAX, unlimited: u32::MAX };
/// Sweeps without a check after which an account is forgotten.
const FORGOTTEN: u32 = 600;
/// Beyond so many accounts, the idle ones are forgotten as soon as their units are back.
const MAX_ACCOUNTS: usize = 100_000;
/// Accounts that changed and are read at once: checks are not to wait for many.
const LEARN_AT_ONCE: usize = 2;
/// How often a sign of life is given; without one for 10 s the database takes a holder for gone.
const BEAT: Duration = Duration::from_secs(2);
/// Longest time a sign of life may take.
const BOUND: Duration = Duration::from_secs(5);

/// Makes this replica a holder, until `stop`: then nothing is granted any more, and the task ends when
/// everything is settled. While the database is away, what is `known` of an account decides. With the feed unheard,
/// clients may use what they hold for `stale_max`.
pub fn start(
    pool: PgPool,
    outage: Arc<Outage>,
    known: Arc<Known>,
    name: String,
    stale_max: Duration,
    stop: CancellationToken,
) -> (Quota, JoinHandle<()>) {
    let feed = outage.feed().clone();
    let changes = feed.subscribe();
    let holder = Arc::new(Holder {
        id: Uuid::new_v4(),
        name,
        pool,
        outage,
        feed,
        known,
        learning: Semaphore::new(LEARN_AT_ONCE),
        reads: Turns::new(1, MAX_READS),
        doubts: Notify::new(),
        accounts: DashMap::default(),
        clock: LaggingClock::new(),
        epoch: AtomicU64::new(0),
        returns: Returns::default(),
        clients: Arc::default(),
        stale_max,
        claims: TaskTracker::new(),
        closing: stop,
        registered: AtomicBool::new(false),
        metrics: QuotaMetrics::default(),
    });
    let task = tokio::spawn(keep(holder.clone(), changes));
    (Quota(holder), task)
}

async fn keep(holder: Arc<Holder>, changes: Changes) {
    let stop = holder.closing.clone();
    tokio::join!(
        holder.listen(changes, stop.clone()),
        holder.sweep_until(stop.clone()),
        holder.beat_until(stop.clone()),
        holder.refresh_until(stop.clone()),
        holder.settle_until(stop),
    );
    // What is being claimed arrives first.
    holder.claims.close();
    holder.claims.wait().await;
    holder.sweep(&NOW);
    holder.settle_all().await;
    holder.leave().await;
}

impl Holder {
    async fn listen(self: &Arc<Self>, mut changes: Changes, stop: CancellationToken) {
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.next() => change,
            };
            let Some(change) = change else { return };
            let was_known = matches!(&change, Change::Account(eco_id) if self.known.knows(eco_id));
            // First: what is read of an account because it changed is to be remembered.
            self.known.forget(change.clone());
            match change {
                Change::Key(key_id) => self.clients.tell_key(&key_id),
                Change::Account(eco_id) => self.note_changed(&eco_id, was_known),
                Change::Everything | Change::Plans => self.note_all_changed(),
                Change::Recall(eco_id) => self.answer_recall(&eco_id),
                Change::Returned(eco_id) => self.note_returned(&eco_id),
            }
        }
    }

    /// The account's terms are read anew, where they were known; units that are held under the old ones go back.
    fn note_changed(self: &Arc<Self>, eco_id: &EcoId, was_known: bool) {
        let changed = self.accounts.get_mut(eco_id).map(|mut slot| {
            let account = slot.account.clone();
            account.epoch.fetch_add(1, Ordering::AcqRel);
            self.give_back(eco_id, &account, slot.forget(), false);
            account.returned.notify_waiters();
            account
        });
        self.clients.tell(eco_id);
        // One that was only recorded for is known as well.
        if let Some(account) = changed.or_else(|| was_known.then(|| self.account(eco_id))) {
            self.learn(eco_id, account);
        }
    }

    /// Reads where the account stands, so that it is known also if the database goes away before the next check.
    fn learn(self: &Arc<Self>, eco_id: &EcoId, account: Arc<Account>) {
        let (holder, eco_id) = (self.clone(), eco_id.clone());
        self.claims.spawn(async move {
            let Ok(_turn) = holder.learning.acquire().await else { return };
            if holder.closing.is_cancelled() {
                return;
            }
            if let Err(error) = holder.read(&eco_id, &account, holder.epoch_of(&account)).await {
                tracing::debug!(%error, "an account that changed could not be read");
            }
        });
    }

    fn note_all_changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        for mut entry in self.accounts.iter_mut() {
            let (eco_id, slot) = entry.pair_mut();
            let (account, returns) = (slot.account.clone(), slot.forget());
            self.give_back(eco_id, &account, returns, false);
            account.returned.notify_waiters();
        }
        self.clients.tell_all();
        self.doubts.notify_one();
    }

    /// Somebody is short of units: ours go back, and whoever asked hears of it also if there are none.
    fn answer_recall(&self, eco_id: &EcoId) {
        if let Some(mut slot) = self.accounts.get_mut(eco_id) {
            let (account, returns) = (slot.account.clone(), slot.drain());
            self.give_back(eco_id, &account, returns, true);
        }
        self.clients.tell(eco_id);
    }

    async fn sweep_until(&self, stop: CancellationToken) {
        let mut tick = interval(SWEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                // Without the database nobody could have what is idle here, and here it can still be served.
                _ = tick.tick() => self.sweep(if self.feed.is_heard() { &IDLE } else { &NEVER }),
            }
        }
    }

    /// Gives back what nobody asked for, and forgets who has been away for long.
    fn sweep(&self, idle: &Idle) {
        let now = BootTime::now();
        self.clock.set(now);
        let forget_after = if self.accounts.len() > MAX_ACCOUNTS { IDLE.limited } else { FORGOTTEN };
        let mut forgettable = Vec::new();
        for mut entry in self.accounts.iter_mut() {
            let (eco_id, slot) = entry.pair_mut();
            let returns = slot.sweep(now, idle);
            if !returns.is_empty() {
                let account = slot.account.clone();
                self.give_back(eco_id, &account, returns, false);
            } else if slot.is_forgettable(forget_after) {
                forgettable.push(eco_id.clone());
            }
        }
        for eco_id in forgettable {
            self.accounts.remove_if(&eco_id, |_, slot| slot.is_forgettable(forget_after));
        }
    }

    async fn beat_until(&self, stop: CancellationToken) {
        let mut tick = interval(BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                beaten = self.beat() => if let Err(error) = beaten {
                    tracing::debug!(%error, "no sign of life could be given");
                },
            }
        }
    }

    async fn beat(&self) -> sqlx::Result<()> {
        let beaten = async {
            let mut connection = db::acquire(&self.pool).await?;
            let beaten =
                timeout(BOUND, store::quota_holders::beat(&mut connection, self.id, &self.name)).await;
            db::in_time(beaten, connection)
        };
        let beaten = beaten.await;
        // So that an outage is known of before anybody asks for something.
        self.note_outcome(&beaten);
        beaten?;
        self.registered.store(true, Ordering::Release);
        Ok(())
    }

    async fn leave(&self) {
        let left = async {
            let mut connection = db::acquire(&self.pool).await?;
            let left = timeout(BOUND, store::quota_holders::leave(&mut connection, self.id)).await;
            db::in_time(left, connection)
        };
        if let Err(error) = left.await {
            // Nothing is held: a holder that stays on the list is one of the dead in ten seconds.
            tracing::warn!(%error, "could not leave the list of holders");
        }
    }
}
