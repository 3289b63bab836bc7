//! Calls to billing-svc, which is struck meanwhile: killed where it is held, and started again.

use std::{pin::pin, time::Duration};

use anyhow::{Context, Result};
use futures::future::join_all;
use nexus_proto::billing::v1::{ProcessOverageRequest, ProcessOverageResponse};
use rand::Rng;
use tonic::Status;
use uuid::Uuid;

use super::{
    strikes::{Aim, Due, Place, Side, Verdict},
    trial::Trial,
};
use crate::report::Tally;

/// Calls for one run before something is wrong.
pub(super) const MAX_CALLS: u32 = 2_000;
/// Before the next call, where another run is at work: a lease is free when the database has seen the kill.
pub(super) const LEASE_PAUSE: Duration = Duration::from_millis(5);

/// What came back of the calls for runs.
#[derive(Default)]
pub(super) struct Answers {
    /// One of them came to its end.
    pub(super) ended: Option<ProcessOverageResponse>,
    pub(super) failed: Vec<Status>,
}

impl Trial {
    pub(super) async fn call(
        &mut self,
        requests: Vec<(usize, ProcessOverageRequest)>,
        tally: &mut Tally,
    ) -> Result<Answers> {
        let calls: Vec<_> = requests
            .into_iter()
            .map(|(replica, request)| {
                let mut client = self.replicas[replica].client();
                async move { client.process(request).await }
            })
            .collect();
        let mut answers = Answers::default();
        for answer in self.attend(join_all(calls), tally).await? {
            match answer {
                Ok(answer) if answer.running || answer.already_running => {}
                Ok(answer) => answers.ended = Some(answer),
                Err(status) => answers.failed.push(status),
            }
        }
        Ok(answers)
    }

    /// Waits for calls, and strikes whoever is to be struck meanwhile.
    pub(super) async fn attend<T>(&mut self, calls: impl Future<Output = T>, tally: &mut Tally) -> Result<T> {
        let mut calls = pin!(calls);
        loop {
            tokio::select! {
                biased;
                due = self.dues.recv() => {
                    self.strike(due.context("lines tell as long as there are any")?, tally).await?;
                }
                done = &mut calls => return Ok(done),
            }
        }
    }

    /// A call may fail where something was struck.
    pub(super) fn may_fail(&mut self, status: &Status) {
        if !self.struck {
            self.failures.push(format!("a call failed though nothing was struck: {status}"));
        }
    }

    /// Aims the next strike of the round, if there is one left.
    pub(super) fn aim(&mut self) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let (aim, among) = match self.rng.random_range(0..100) {
            0..45 => (Aim::New, 130),
            45..53 => (Aim::Commit, 8),
            53..68 => (Aim::Stripe, 14),
            68..80 => (Aim::Invoices, 9),
            80..92 => (Aim::Events, 9),
            _ => (Aim::Any, 180),
        };
        self.strikes.aim(aim, self.rng.random_range(0..among));
    }

    /// Kills who is held, or breaks its connection alone.
    pub(super) async fn strike(&mut self, due: Due, tally: &mut Tally) -> Result<()> {
        let Due { replica, point, verdict } = due;
        self.struck = true;
        let arrives = point.side == Side::Before
            && matches!(&point.place, Place::Stripe(request) if !request.starts_with("GET "));
        let kills = self.rng.random_bool(0.85);
        let becomes = if arrives && self.rng.random_bool(0.6) { Verdict::Late } else { Verdict::Lost };
        if kills {
            self.replicas[replica].kill().await?;
            tally.add(format!("killed {}", point.kind()), 1);
        } else {
            tally.add("connection broken", 1);
        }
        self.aim();
        // Where nobody waits any more, its connection is gone.
        let _unheard = verdict.send(becomes);
        if kills {
            self.replicas[replica].again().await?;
        }
        Ok(())
    }

    pub(super) fn request_id(&mut self) -> String {
        Uuid::from_u128(self.rng.random()).to_string()
    }
}
