//! Places of requests in flight, each from its arrival until its answer is taken or given up. Each account has so many at
//! most, whoever shows nothing good has a part of all, and each address a part of these: whatever strangers do, or one
//! account, others find a place.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use nexus_core::id::EcoId;
use nexus_kit::{
    metrics::{InFlight, Metrics},
    share::{Share, Shares},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Of one account's users, and a quarter of all at most: each may wait for a lock of the account's.
const OF_USERS: u32 = 256;
/// Of all places strangers have one in so many, and an address of these one in so many.
const STRANGERS: u32 = 4;
const ADDRESS: u32 = 8;

/// Whom a request is from, as far as what it shows says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// A user of this account.
    User(EcoId),
    /// A program of ours.
    Service,
    /// Whoever has an API key, or has made it up.
    Key,
    /// Somebody at this address, if there is one.
    Stranger(Option<IpAddr>),
}

/// All places.
pub struct Places {
    most: u32,
    metrics: Metrics,
    users: Shares,
    keys: Shares,
    strangers: Arc<Strangers>,
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
    Service,
    Account { _share: Share },
    Stranger { _share: Option<Stranger> },
}

impl Places {
    /// So many.
    pub fn new(most: u32, metrics: Metrics) -> Self {
        let strangers = (most / STRANGERS).max(1);
        Self {
            most,
            metrics,
            users: Shares::of_at_most(most, OF_USERS),
            keys: Shares::of(most),
            strangers: Arc::new(Strangers {
                most: strangers,
                of_an_address: (strangers / ADDRESS).max(1),
                held: Mutex::default(),
            }),
        }
    }

    /// A place for a request.
    pub fn enter(&self, sender: &Sender) -> Result<Place, Error> {
        let holder = match sender {
            Sender::User(eco_id) => of_account(&self.users, eco_id)?,
            Sender::Service => Holder::Service,
            Sender::Key => Holder::Nobody,
            Sender::Stranger(address) => {
                let share = address.map(|address| self.strangers.enter(address)).transpose()?;
                Holder::Stranger { _share: share }
            }
        };
        let one_of_all = self.metrics.enter(self.most);
        let one_of_all = one_of_all.ok_or_else(|| Error::unavailable("too many requests in flight"))?;
        let holder = Mutex::new(holder);
        Ok(Place(Arc::new(Taken { _one_of_all: one_of_all, holder, keys: self.keys.clone() })))
    }
}

fn of_account(shares: &Shares, eco_id: &EcoId) -> Result<Holder, Error> {
    let share = shares.enter(eco_id);
    let share = share.ok_or_else(|| Error::unavailable("too many requests of this account in flight"))?;
    Ok(Holder::Account { _share: share })
}

impl Place {
    /// The request was made with a key of this account.
    pub fn with_key_of(&self, eco_id: &EcoId) -> Result<(), Error> {
        let holder = of_account(&self.0.keys, eco_id)?;
        *self.0.holder.lock().unwrap_or_else(PoisonError::into_inner) = holder;
        Ok(())
    }

    /// The body of the answer, which has the place for as long as there is something of it. Whose key was no good has none
    /// for what it is told.
    pub fn until_taken(self, body: Body) -> Body {
        let is_nobodys =
            matches!(*self.0.holder.lock().unwrap_or_else(PoisonError::into_inner), Holder::Nobody);
        if is_nobodys { body } else { Body::new(Placed { body, _place: self }) }
    }
}

struct Placed {
    body: Body,
    _place: Place,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What strangers have, by address.
struct Strangers {
    most: u32,
    of_an_address: u32,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// What counts as an address's until it is dropped.
struct Stranger {
    of: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Stranger, Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.all >= self.most {
            return Err(Error::unavailable("too many requests of strangers in flight"));
        }
        let of_address = held.by_address.entry(address).or_default();
        if *of_address >= self.of_an_address {
            return Err(Error::unavailable("too many requests of this address in flight"));
        }
        *of_address += 1;
        held.all += 1;
        Ok(Stranger { of: self.clone(), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all -= 1;
        if let Some(of_address) = held.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                held.by_address.remove(&self.address);
            }
        }
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
        let known = [user("eco_a"), Sender::Key, Sender::Service].map(|sender| places.enter(&sender).is_ok());
        assert_eq!(known, [true; 3]);
        held.pop();
        assert!(places.enter(&from(8)).is_ok());
        held.clear();
        assert!(places.strangers.held.lock().expect("nobody panicked").by_address.is_empty());
    }

    #[test]
    fn an_account_has_a_quarter_by_its_users_and_one_by_its_keys() {
        let places = Places::new(8, Metrics::new());
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let _users = [places.enter(&user("eco_a")), places.enter(&user("eco_a"))];
        assert!(places.enter(&user("eco_a")).is_err());
        let keys: Vec<_> = (0..3).flat_map(|_| places.enter(&Sender::Key)).collect();
        let good = keys.iter().map(|place| place.with_key_of(&eco_id).is_ok());
        assert_eq!(good.collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn the_body_of_an_answer_has_the_place_and_whose_key_was_no_good_has_none() {
        let metrics = Metrics::new();
        let places = Places::new(8, metrics.clone());
        let in_flight = || metrics.render().contains("nexus_requests_in_flight 1");
        for sender in [user("eco_a"), from(1)] {
            let body = places.enter(&sender).map(|place| place.until_taken(Body::from("x")));
            assert!(body.is_ok() && in_flight(), "{sender:?}");
        }
        let _body = places.enter(&Sender::Key).map(|place| place.until_taken(Body::from("x")));
        assert!(!in_flight());
    }
}
