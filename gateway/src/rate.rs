//! How fast one caller may send requests: an account whose user or key is verified, or else an address. Beyond that it is
//! 429 with `Retry-After`. A plan's quota is another thing: that is of calls in a billing period, and refuses otherwise.

use std::{
    hash::Hash,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::Extensions;
use moka::sync::Cache;
use nexus_core::id::EcoId;

use crate::{address::Client, error::Error};

/// Callers that are remembered at once, of each kind. Beyond them those are forgotten that come seldom.
const REMEMBERED: u64 = 50_000;
/// What may come at once: as much as otherwise in this time.
const BURST: Duration = Duration::from_secs(2);
/// By then a caller who has rested has all of it again, and nothing is lost with what was remembered of it.
const FORGOTTEN_AFTER: Duration = BURST.saturating_mul(2);

/// The rates of all callers.
pub struct Rates {
    accounts: Option<Each<EcoId>>,
    addresses: Option<Each<IpAddr>>,
}

impl Rates {
    /// So many a second of each account, and of each address; 0: as many as they like.
    pub fn new(account_rate: u32, address_rate: u32) -> Self {
        Self { accounts: Each::of(account_rate), addresses: Each::of(address_rate) }
    }

    /// One more request of an account.
    pub fn account(&self, eco_id: &EcoId) -> Result<(), Error> {
        self.accounts.as_ref().map_or(Ok(()), |accounts| accounts.take(eco_id))
    }

    /// One more request of somebody who has shown nothing that holds, by where it came from.
    pub fn stranger(&self, extensions: &Extensions) -> Result<(), Error> {
        match (&self.addresses, extensions.get::<Client>()) {
            (Some(addresses), Some(Client(address))) => addresses.take(address),
            _ => Ok(()),
        }
    }

    /// What the last one has shown does hold.
    pub fn no_stranger(&self, extensions: &Extensions) {
        if let (Some(addresses), Some(Client(address))) = (&self.addresses, extensions.get::<Client>()) {
            addresses.give_back(address);
        }
    }
}

/// One rate, for each caller apart.
struct Each<K> {
    /// How long a caller rests for one request.
    rest: Duration,
    /// When each will have rested for all that it has sent.
    callers: Cache<K, Arc<Mutex<Instant>>>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Each<K> {
    fn of(rate: u32) -> Option<Self> {
        let rest = Duration::from_secs(1) / NonZeroU32::new(rate)?.get();
        let callers = Cache::builder().max_capacity(REMEMBERED).time_to_idle(FORGOTTEN_AFTER).build();
        Some(Self { rest, callers })
    }

    fn take(&self, caller: &K) -> Result<(), Error> {
        let now = Instant::now();
        let rested = match self.callers.get(caller) {
            Some(rested) => rested,
            None => self.callers.get_with_by_ref(caller, || Arc::new(Mutex::new(now))),
        };
        let mut rested = rested.lock().unwrap_or_else(PoisonError::into_inner);
        let then = (*rested).max(now) + self.rest;
        let retry = then.saturating_duration_since(now + BURST);
        if !retry.is_zero() {
            return Err(Error::TooFast { retry });
        }
        *rested = then;
        Ok(())
    }

    fn give_back(&self, caller: &K) {
        if let Some(rested) = self.callers.get(caller) {
            *rested.lock().unwrap_or_else(PoisonError::into_inner) -= self.rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_account_has_its_own_rate_and_twice_of_it_at_once() -> anyhow::Result<()> {
        let rates = Rates::new(1, 0);
        let (a, b) = (EcoId::parse("eco_a")?, EcoId::parse("eco_b")?);
        assert!(rates.account(&a).is_ok() && rates.account(&a).is_ok());
        let Err(Error::TooFast { retry }) = rates.account(&a) else { anyhow::bail!("a third at once") };
        assert!(retry > Duration::ZERO && retry <= Duration::from_secs(1), "{retry:?}");
        assert!(rates.account(&b).is_ok());
        Ok(())
    }

    #[test]
    fn who_turns_out_to_be_no_stranger_does_not_count() -> anyhow::Result<()> {
        let rates = Rates::new(0, 1);
        let mut extensions = Extensions::new();
        extensions.insert(Client(IpAddr::from([192, 0, 2, 1])));
        for _ in 0..10 {
            rates.stranger(&extensions)?;
            rates.no_stranger(&extensions);
        }
        rates.stranger(&extensions)?;
        rates.stranger(&extensions)?;
        assert!(rates.stranger(&extensions).is_err());
        Ok(())
    }

    #[test]
    fn without_a_rate_nobody_is_held_up() -> anyhow::Result<()> {
        let rates = Rates::new(0, 0);
        let a = EcoId::parse("eco_a")?;
        let mut extensions = Extensions::new();
        extensions.insert(Client(IpAddr::from([192, 0, 2, 1])));
        for _ in 0..1_000 {
            rates.account(&a)?;
            rates.stranger(&extensions)?;
        }
        Ok(())
    }

    #[test]
    fn callers_beyond_those_remembered_take_no_more_room() -> anyhow::Result<()> {
        let each = Each::<u64>::of(1).ok_or_else(|| anyhow::anyhow!("a rate"))?;
        for caller in 0..REMEMBERED + 20_000 {
            each.take(&caller)?;
        }
        each.callers.run_pending_tasks();
        assert!(each.callers.entry_count() <= REMEMBERED, "{}", each.callers.entry_count());
        Ok(())
    }
}
