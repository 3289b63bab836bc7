//! An account's stream of LeaseQuota: asks for units ahead of need, one request at a time, gives back what nobody asks
//! for, and settles. When the stream breaks, what is held is used up to its time; on the next one it is settled.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::channel::mpsc;
use nexus_lease::{clock::BootTime, pace::wanted};
use nexus_proto::usage::v1::{LeaseQuotaRequest, LeaseQuotaResponse};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{
    MAX_UNITS, SECOND, Shared,
    answer::{self, Asked, Want},
    held::{Account, TakenOut},
};
use crate::{backoff::Backoff, is_made_here};

const TICK: Duration = Duration::from_millis(500);
/// Longest time until a stream is open, and until a request is answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// The server is asked again that often before what is held may not be used any more, and at least every ten seconds.
const RENEWALS: u32 = 4;
const LONGEST_QUIET: Duration = Duration::from_secs(10);
/// After units were asked back, others have their turn.
const HOLD_OFF: Duration = SECOND;
/// An account with less demand in a second than this needs no units here.
const LEAST_DEMAND: i64 = 2;
/// Ticks without such demand after which units go back, where they are limited and where nobody is refused.
const IDLE: [u32; 2] = [4, 60];
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(5) };
/// How long an account is left alone whose stream the server refuses for good.
const REST: Duration = Duration::from_secs(30);
/// Refusals for good in a row after which what is held is given up.
const LAST_REFUSAL: u32 = 8;

/// The task of an account.
pub(super) struct Task {
    shared: Arc<Shared>,
    eco_id: String,
    account: Arc<Account>,
    _place: OwnedSemaphorePermit,
    /// Leases to be settled.
    due: VecDeque<TakenOut>,
    asked: Option<Asked>,
    opened: BootTime,
    answered: BootTime,
    /// The last grant, and the demand by then.
    granted: (BootTime, i64),
    retry_at: BootTime,
    /// Demand at the last ticks, and ticks without.
    seen: [i64; 2],
    idle: u32,
    /// Nothing more is wanted.
    ending: bool,
    failures: u32,
}

impl Task {
    pub(super) fn new(
        shared: Arc<Shared>,
        eco_id: String,
        account: Arc<Account>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (granted, demand) = (account.busy_since(), account.demand());
        Self {
            shared,
            eco_id,
            account,
            _place: place,
            due: VecDeque::new(),
            asked: None,
            opened: BootTime::START,
            answered: BootTime::START,
            granted,
            retry_at: BootTime::START,
            seen: [demand; 2],
            idle: 0,
            ending: false,
            failures: 0,
        }
    }

    /// Has units held as long as the account is busy, and gives all back in the end.
    pub(super) async fn run(mut self) {
        let give_up = self.shared.give_up.clone();
        let ended = give_up.run_until_cancelled(self.serve()).await;
        let rest = ended.unwrap_or_default();
        self.take_out();
        self.lose_track();
        let lost: i64 = self.due.iter().map(|lease| lease.unused).sum();
        if lost > 0 {
            tracing::warn!(eco_id = self.eco_id, units = lost, "units of a quota could not be given back");
        }
        self.account.end_task(BootTime::now().after(rest));
        if rest.is_zero() {
            self.shared.accounts.remove_if(&self.eco_id, |_, account| Arc::ptr_eq(account, &self.account));
        }
    }

    /// Opens streams until nothing is to be done any more; how long the account is to be left alone.
    async fn serve(&mut self) -> Duration {
        loop {
            let Err(status) = self.stream().await else { return Duration::ZERO };
            self.lose_track();
            self.failures = self.failures.saturating_add(1);
            tracing::debug!(eco_id = self.eco_id, %status, "a stream of units ended");
            let refused = is_for_good(&status);
            if refused {
                self.take_out();
                if self.due.is_empty() || self.failures >= LAST_REFUSAL {
                    return REST;
                }
            }
            let pause = BACKOFF.pause(self.failures, None, &mut rand::rng());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.shared.stop.cancelled(), if !self.ending => {}
            }
            self.tick();
            if self.ending && self.due.is_empty() {
                return Duration::ZERO;
            }
        }
    }

    /// One stream, until nothing is to be done any more.
    async fn stream(&mut self) -> Result<(), Status> {
        let (mut requests, sent) = mpsc::channel(2);
        let options = self.shared.credentials.options(PATIENCE)?;
        let mut client = self.shared.client.clone();
        let opened = timeout(PATIENCE, client.lease_quota(options.request(sent))).await;
        let mut answers =
            opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))?.into_inner();
        // What an earlier stream left is settled on this one.
        self.take_out();
        (self.opened, self.answered) = (BootTime::now(), BootTime::START);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.asked.is_none()
                && let Some((request, asked)) = self.next_request()
            {
                requests.try_send(request).map_err(|_| Status::unavailable("the stream ended"))?;
                self.asked = Some(asked);
            }
            let account = self.account.clone();
            tokio::select! {
                next = answers.message() => {
                    if self.hear(next?.as_ref())? {
                        // Everything is settled: how the stream ends does not matter.
                        let _ = timeout(SECOND, answers.message()).await;
                        return Ok(());
                    }
                }
                () = account.wanted.notified() => {}
                _ = ticks.tick() => self.tick(),
                () = self.shared.stop.cancelled(), if !self.ending => self.tick(),
            }
            if self.asked.as_ref().is_some_and(|asked| BootTime::now().since(asked.at) > PATIENCE) {
                return Err(Status::deadline_exceeded("no answer in time"));
            }
        }
    }

    /// What is to be asked now, if anything.
    fn next_request(&self) -> Option<(LeaseQuotaRequest, Asked)> {
        let now = BootTime::now();
        let settles = self.due.front();
        let releases = self.ending && self.due.len() <= 1;
        let want =
            (!self.ending && self.account.is_wanting() && now >= self.retry_at).then(|| self.want(now));
        if settles.is_none() && !releases && want.is_none() && now.since(self.answered) < self.quiet() {
            return None;
        }
        let request = LeaseQuotaRequest {
            eco_id: self.eco_id.clone(),
            client_id: self.shared.client_id.clone(),
            want_count: want.as_ref().map_or(0, |want| want.units),
            used_count: settles.map_or(0, |lease| lease.used),
            lease_id: settles.map(|lease| lease.lease_id.clone()).unwrap_or_default(),
            release: releases,
            want_lease_id: want.as_ref().map(|want| want.lease_id.clone()).unwrap_or_default(),
        };
        Some((request, Asked { at: now, settles: settles.is_some(), want, releases }))
    }

    fn want(&self, now: BootTime) -> Want {
        let (since, demand) = self.granted;
        let units = wanted(self.account.demand() - demand, now.since(since), self.account.is_limited());
        Want { lease_id: Uuid::new_v4().to_string(), units: units.clamp(1, MAX_UNITS) }
    }

    /// How long nothing needs to be asked.
    fn quiet(&self) -> Duration {
        let valid = self.account.valid_until().map_or(Duration::ZERO, |valid| valid.since(self.answered));
        (valid / RENEWALS).clamp(TICK, LONGEST_QUIET)
    }

    /// Takes a message; whether the stream is to end.
    fn hear(&mut self, message: Option<&LeaseQuotaResponse>) -> Result<bool, Status> {
        let message = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
        let now = BootTime::now();
        if message.recall {
            self.take_out();
            self.retry_at = now.after(HOLD_OFF);
            return Ok(false);
        }
        let asked = self.asked.as_ref().ok_or_else(|| unbelievable("it answers nothing"))?;
        let answer = answer::read(asked, message).map_err(unbelievable)?;
        self.shared.clock.note(message.server_time.as_ref());
        let Some(asked) = self.asked.take() else { return Ok(false) };
        if asked.settles
            && let Some(settled) = self.due.pop_front()
        {
            self.shared.unreturned.fetch_sub(settled.unused, Ordering::AcqRel);
        }
        if now.since(self.opened) > PATIENCE {
            self.failures = 0;
        }
        self.answered = now;
        let mut out = self.account.renew(answer.view);
        match asked.want {
            Some(want) if answer.granted > 0 => {
                out.extend(self.account.take_in(want.lease_id, answer.granted));
                self.granted = (now, self.account.demand());
            }
            Some(_) => self.retry_at = now.after(answer.retry.max(TICK)),
            None => {}
        }
        self.settle_later(out);
        if self.ending {
            self.take_out();
        }
        Ok(asked.releases && self.due.is_empty())
    }

    /// Looks after what time brings.
    fn tick(&mut self) {
        let now = BootTime::now();
        if self.account.ends().is_some_and(|ends| now >= ends) {
            self.take_out();
        }
        let demand = self.account.demand();
        self.idle = if demand - self.seen[0] < LEAST_DEMAND { self.idle + 1 } else { 0 };
        self.seen = [self.seen[1], demand];
        let idle = self.idle >= IDLE[usize::from(!self.account.is_limited())];
        if !self.ending && (idle || self.shared.stop.is_cancelled()) {
            self.ending = true;
            self.take_out();
        }
    }

    fn take_out(&mut self) {
        let out = self.account.take_out();
        self.settle_later(out);
    }

    fn settle_later(&mut self, out: Vec<TakenOut>) {
        let unused = out.iter().map(|lease| lease.unused).sum();
        self.shared.unreturned.fetch_add(unused, Ordering::AcqRel);
        self.due.extend(out);
    }

    /// The stream is gone: whether what was asked was granted is not known.
    fn lose_track(&mut self) {
        if let Some(want) = self.asked.take().and_then(|asked| asked.want) {
            self.settle_later(vec![TakenOut { lease_id: want.lease_id, used: 0, unused: want.units }]);
        }
    }
}

fn unbelievable(why: &'static str) -> Status {
    tracing::error!(why, "an answer of LeaseQuota is none of this contract");
    Status::failed_precondition(why)
}

/// Whether the same stream would be refused again.
fn is_for_good(status: &Status) -> bool {
    let codes = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::PermissionDenied,
        Code::FailedPrecondition,
        Code::Unauthenticated,
        Code::Unimplemented,
    ];
    codes.contains(&status.code()) && !is_made_here(status)
}
