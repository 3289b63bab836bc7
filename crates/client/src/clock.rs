//! The server's clock, as its answers tell it: what the time is for events and resets, whatever the clock of this machine
//! says.

use std::{sync::Arc, time::SystemTime};

use chrono::{DateTime, Utc};
use nexus_lease::clock::{BootTime, RemoteClock};
use prost_types::Timestamp;

use crate::headers;

/// usage-svc's clock, which is the database's. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct ServerClock(Arc<RemoteClock>);

impl ServerClock {
    /// Notes `server_time` of an answer that just came, if that has one.
    pub fn note(&self, server_time: Option<&Timestamp>) {
        self.note_time(headers::time(server_time));
    }

    pub(crate) fn note_time(&self, server_time: Option<DateTime<Utc>>) {
        if let Some(time) = server_time {
            self.0.note(time.into(), BootTime::now());
        }
    }

    /// What it shows; before the first answer, what the clock of this machine does.
    pub fn now(&self) -> DateTime<Utc> {
        self.known().unwrap_or_else(SystemTime::now).into()
    }

    fn known(&self) -> Option<SystemTime> {
        self.0.at(BootTime::now())
    }

    /// This one if it was heard of, else the other one.
    pub(crate) fn or<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self.known().is_some() { self } else { other }
    }
}
