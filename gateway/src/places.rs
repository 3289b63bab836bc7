//! Places of requests in flight, each from its arrival until its answer is made or, where that is long, taken or given up.
//! Each account has so many at most, whoever shows nothing good has a part of all, and each address a small part of
//! these: whatever strangers do, or one account, others find a place.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http_body::Body;
use nexus_core::id::EcoId;
use nexus_kit::{
    metrics::{InFlight, Metrics},
    share::{Share, Shares},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::Error,
    per_address::{self, PerAddress},
};

/// Of one account's users, and a quarter of all at most: each may wait for a lock of the account's.
const OF_USERS: u32 = 256;
/// Of all places strangers have one in so many, and who says to be Stripe, apart from them.
const STRANGERS: u32 = 4;
const WEBHOOKS: u32 = 8;
/// Of these an address has one in so many, and so many at most.
const ADDRESS: u32 = 8;
const OF_AN_ADDRESS: u32 = 64;
/// Up to so many bytes, an answer is nothing to speak of: it has no place while it is taken, and little time for that.
const SMALL: u64 = 1024;

/// Whom a request is from, as far as what it shows says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// A user of this account.
    User(EcoId),
    /// A program of ours, the scheduler among them, or whoever asks for our health, which is cheap.
    Service,
    /// Whoever has an API key of this account, which was good a moment ago.
    Key(EcoId),
    /// Whoever sends what may be a webhook, at this address.
    Webhook(Option<IpAddr>),
    /// Somebody at this address, if there is one; whoever has an API key that may be made up, too.
    Stranger(Option<IpAddr>),
}

/// All places.
pub struct Places {
    most: u32,
    metrics: Metrics,
    users: Shares,
    keys: Shares,
    strangers: PerAddress,
    webhooks: PerAddress,
}

/// One of them, given back with the last of its clones.
#[derive(Clone)]
pub struct Place(Arc<Taken>);

struct Taken {
    _one_of_all: InFlight,
    holder: Mutex<Holder>,
    keys: Shares,
}

/// Whom a place counts for; held for what it gives back.
enum Holder {
    Nobody,
    Account { _share: Share },
    Address { _share: per_address::Taken },
}

impl Places {
    /// So many.
    pub fn new(most: u32, metrics: Metrics) -> Self {
        let part = |of: u32, what| PerAddress::new(most / of, (most / of / ADDRESS).min(OF_AN_ADDRESS), what);
        Self {
            most,
            metrics,
            users: Shares::of_at_most(most, OF_USERS),
            keys: Shares::of(most),
            strangers: part(STRANGERS, "requests of strangers in flight"),
            webhooks: part(WEBHOOKS, "webhooks in flight"),
        }
    }

    /// A place for a request.
    pub fn enter(&self, sender: &Sender) -> Result<Place, Error> {
        let holder = match sender {
            Sender::User(eco_id) => of_account(&self.users, eco_id)?,
            Sender::Service => Holder::Nobody,
            Sender::Key(eco_id) => of_account(&self.keys, eco_id)?,
            Sender::Webhook(address) => Holder::Address { _share: self.webhooks.take(*address, 1)? },
            Sender::Stranger(address) => Holder::Address { _share: self.strangers.take(*address, 1)? },
        };
        let one_of_all = self.metrics.enter(self.most);
        let one_of_all = one_of_all.ok_or_else(|| Error::unavailable("too many requests in flight"))?;
        let holder = Mutex::new(holder);
        Ok(Place(Arc::new(Taken { _one_of_all: one_of_all, holder, keys: self.keys.clone() })))
    }
}

/// Whether the body of an answer is so small that it has no place.
pub fn is_small(body: &impl Body) -> bool {
    body.size_hint().exact().is_some_and(|length| length <= SMALL)
}

fn of_account(shares: &Shares, eco_id: &EcoId) -> Result<Holder, Error> {
    let share = shares.enter(eco_id);
    let share = share.ok_or_else(|| Error::unavailable("too many requests of this account in flight"))?;
    Ok(Holder::Account { _share: share })
}

impl Place {
    /// The request was made with a key of this account.
    pub fn with_key_of(&self, eco_id: &EcoId) -> Result<(), Error> {
        let mut holder = self.0.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*holder, Holder::Account { .. }) {
            *holder = of_account(&self.0.keys, eco_id)?;
        }
        Ok(())
    }
}

/// Places of answers that may last: few of each account, and so many in all.
pub struct Few {
    of_accounts: Shares,
    all: Arc<Semaphore>,
    what: &'static str,
}

/// One of the few.
pub struct OneOfFew {
    _share: Share,
    _one_of_all: OwnedSemaphorePermit,
}

impl Few {
    /// So many of these.
    pub fn new(most: u32, of_an_account: u32, what: &'static str) -> Self {
        let all = Arc::new(Semaphore::new(most as usize));
        Self { of_accounts: Shares::of_at_most(most, of_an_account), all, what }
    }

    /// One more of an account.
    pub fn enter(&self, eco_id: &EcoId) -> Result<OneOfFew, Error> {
        let too_many = |whose: &str| Error::unavailable(&format!("too many {} {whose}", self.what));
        let share = self.of_accounts.enter(eco_id).ok_or_else(|| too_many("of this account"))?;
        let one_of_all = self.all.clone().try_acquire_owned().map_err(|_full| too_many("in all"))?;
        Ok(OneOfFew { _share: share, _one_of_all: one_of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: u8) -> Sender {
        Sender::Stranger(Some(IpAddr::from([192, 0, 2, address])))
    }

    fn user(eco_id: &str) -> Sender {
        Sender::User(EcoId::parse(eco_id).expect("an id"))
    }

    #[test]
    fn an_address_has_a_part_of_what_strangers_have_and_others_have_theirs() {
        let places = Places::new(64, Metrics::new());
        let mut held = Vec::new();
        for address in 0..8 {
            held.push((places.enter(&from(address)), places.enter(&from(address))));
            assert!(places.enter(&from(address)).is_err(), "{address}");
        }
        assert!(held.iter().all(|(one, another)| one.is_ok() && another.is_ok()));
        assert!(places.enter(&from(8)).is_err(), "strangers have what they may");
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let webhook = Sender::Webhook(Some([192, 0, 2, 8].into()));
        for known in [user("eco_a"), Sender::Key(eco_id), Sender::Service, webhook] {
            assert!(places.enter(&known).is_ok(), "{known:?}");
        }
        held.pop();
        assert!(places.enter(&from(8)).is_ok());
    }

    #[test]
    fn an_address_has_few_of_many() {
        let places = Places::new(10_000, Metrics::new());
        let held: Vec<_> = (0..100).flat_map(|_| places.enter(&from(1))).collect();
        assert_eq!(held.len(), 64);
    }

    #[test]
    fn an_account_has_a_quarter_by_its_users_and_one_by_its_keys() {
        let places = Places::new(16, Metrics::new());
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let users: Vec<_> = (0..5).flat_map(|_| places.enter(&user("eco_a"))).collect();
        assert_eq!(users.len(), 4);
        let known: Vec<_> = (0..3).flat_map(|_| places.enter(&Sender::Key(eco_id.clone()))).collect();
        assert!(known.iter().all(|place| place.with_key_of(&eco_id).is_ok()), "they have one each already");
        let found: Vec<_> = (0..2).flat_map(|address| places.enter(&from(address))).collect();
        let good = found.iter().map(|place| place.with_key_of(&eco_id).is_ok());
        assert_eq!(good.collect::<Vec<_>>(), [true, false]);
        assert!(places.enter(&from(0)).is_ok(), "it is the account's place now, no more the address's");
    }
}
