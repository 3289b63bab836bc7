//! Units of accounts that this process holds, so that it decides about calls itself. Safe by construction: a unit is
//! used or given back by one exchange, what is used is recorded against its lease, and what is not known to have
//! been given back stays consumed at the server.
//!
//! | module | what it does |
//! |---|---|
//! | `held` | what is held of an account, and a check decided from it |
//! | `answer` | reads the server's answers, and believes only what it may |
//! | `task` | an account's stream: asks for units ahead of need, and settles |

mod answer;
mod held;
mod task;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use nexus_lease::clock::BootTime;
use nexus_proto::usage::v1::usage_service_client::UsageServiceClient;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use uuid::Uuid;

use super::Admitted;
use crate::{clock::ServerClock, credentials::Credentials};
use held::Account;
use task::Task;

/// Units that usage-svc takes in one check or grant.
const MAX_UNITS: i64 = 1_000_000;
/// A server takes 1,024 streams over one channel, and checks go the same way.
const MAX_STREAMS: usize = 512;
/// Accounts of which is known how often they are checked.
const MAX_ACCOUNTS: usize = 10_000;
/// Accounts that were not checked for so long are forgotten where there are too many.
const FORGOTTEN: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// What became of the units that a guard held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseReport {
    /// Units, at most, that were neither used nor given back: they are lost to their accounts for the period.
    pub forfeited_units: i64,
}

/// The units of all accounts. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Leases(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: UsageServiceClient<Channel>,
    /// As this guard calls itself: with it, it settles on a new stream what an earlier one left.
    client_id: String,
    credentials: Credentials,
    clock: ServerClock,
    accounts: DashMap<String, Arc<Account>>,
    /// When accounts were last forgotten.
    forgot: Mutex<BootTime>,
    /// For accounts with a stream.
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Nothing is held any more.
    stop: CancellationToken,
    /// What is not given back by now is lost.
    give_up: CancellationToken,
    /// Units that were taken out of memory and are not given back yet.
    unreturned: AtomicI64,
}

impl Leases {
    /// Of at most so many accounts at a time.
    pub(super) fn new(
        client: UsageServiceClient<Channel>,
        credentials: Credentials,
        clock: ServerClock,
        max_accounts: usize,
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            client_id: Uuid::new_v4().to_string(),
            credentials,
            clock,
            accounts: DashMap::new(),
            forgot: Mutex::new(BootTime::START),
            places: Arc::new(Semaphore::new(max_accounts.min(MAX_STREAMS))),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            unreturned: AtomicI64::new(0),
        }))
    }

    /// Admits units from those that are held; `None`: the server has to be asked. An account that is checked often
    /// has some held from then on.
    pub(super) fn admit(&self, eco_id: &str, units: i64) -> Option<Admitted> {
        if self.0.stop.is_cancelled() || !(1..=MAX_UNITS).contains(&units) {
            return None;
        }
        let now = BootTime::now();
        let busy = match self.0.accounts.get(eco_id) {
            Some(account) => match account.admit(units, now) {
                Some(admitted) => return Some(admitted),
                None => account.is_busy(now).then(|| account.clone()),
            },
            None => self.meet(eco_id, units, now),
        };
        if let Some(account) = busy {
            self.start(eco_id, account);
        }
        None
    }

    /// Notes that an account is checked; nothing is held yet.
    fn meet(&self, eco_id: &str, units: i64, now: BootTime) -> Option<Arc<Account>> {
        let accounts = &self.0.accounts;
        if accounts.len() >= MAX_ACCOUNTS {
            let mut forgot = self.0.forgot.lock().unwrap_or_else(PoisonError::into_inner);
            if now.since(*forgot) >= SECOND {
                *forgot = now;
                accounts
                    .retain(|_, account| account.has_task() || now.since(account.last_seen()) < FORGOTTEN);
            }
            if accounts.len() >= MAX_ACCOUNTS {
                return None;
            }
        }
        let account =
            accounts.entry(eco_id.to_owned()).or_insert_with(|| Arc::new(Account::new(now))).clone();
        let _nothing = account.admit(units, now);
        account.is_busy(now).then_some(account)
    }

    /// Has units of a busy account held, if it finds a place.
    fn start(&self, eco_id: &str, account: Arc<Account>) {
        let Ok(place) = self.0.places.clone().try_acquire_owned() else { return };
        if account.take_task() {
            let task = Task::new(self.0.clone(), eco_id.to_owned(), account, place);
            self.0.tasks.spawn(task.run());
        }
    }

    /// Gives everything back, until the deadline.
    pub(super) async fn shutdown(&self, deadline: Duration) -> LeaseReport {
        self.0.stop.cancel();
        self.0.tasks.close();
        if timeout(deadline, self.0.tasks.wait()).await.is_err() {
            self.0.give_up.cancel();
            self.0.tasks.wait().await;
        }
        LeaseReport { forfeited_units: self.0.unreturned.load(Ordering::Acquire) }
    }
}
