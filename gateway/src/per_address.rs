//! What is shared out by address: to whom nothing else is known of. An address has a small part of it, so that one alone
//! keeps nobody out. Whoever has as many addresses as there are parts can keep out all who come by an address: what may be
//! kept from them is for those who need none.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::error::Error;

/// So much of something.
pub struct PerAddress {
    most: u32,
    /// Beyond which no address has any more.
    of_addresses: u32,
    of_an_address: u32,
    what: &'static str,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// What is taken, until it is dropped.
pub struct Taken {
    held: Arc<Mutex<Held>>,
    address: Option<IpAddr>,
    size: u32,
}

impl PerAddress {
    /// So much in all, so much of an address, of these.
    pub fn new(most: u32, of_an_address: u32, what: &'static str) -> Self {
        let most = most.max(1);
        Self { most, of_addresses: most, of_an_address: of_an_address.max(1), what, held: Arc::default() }
    }

    /// The last of it is for who counts without an address.
    pub fn keeping(self, reserve: u32) -> Self {
        Self { of_addresses: self.most.saturating_sub(reserve).max(1), ..self }
    }

    /// Takes so much for an address; without one it counts in all alone.
    pub fn take(&self, address: Option<IpAddr>, size: u32) -> Result<Taken, Error> {
        let too_many = |whose: &str| Error::unavailable(&format!("too many {} {whose}", self.what));
        let mut held = lock(&self.held);
        let most = if address.is_some() { self.of_addresses } else { self.most };
        if held.all.saturating_add(size) > most {
            return Err(too_many("in all"));
        }
        if let Some(address) = address {
            let its = held.by_address.get(&address).copied().unwrap_or_default().saturating_add(size);
            if its > self.of_an_address {
                return Err(too_many("of this address"));
            }
            held.by_address.insert(address, its);
        }
        held.all += size;
        Ok(Taken { held: self.held.clone(), address, size })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.all -= self.size;
        if let Some(address) = self.address
            && let Some(its) = held.by_address.get_mut(&address)
        {
            *its -= self.size;
            if *its == 0 {
                held.by_address.remove(&address);
            }
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_part_and_others_have_theirs() {
        let room = PerAddress::new(10, 4, "things");
        let address = |number| Some(IpAddr::from([192, 0, 2, number]));
        let first = room.take(address(1), 3).expect("there is room");
        assert!(room.take(address(1), 2).is_err());
        let _second = room.take(address(1), 1).expect("all that it may have");
        let _another = room.take(address(2), 4).expect("another's");
        let _nobodys = room.take(None, 2).expect("the rest");
        assert!(room.take(address(3), 1).is_err() && room.take(None, 1).is_err());
        drop(first);
        assert!(room.take(address(3), 3).is_ok());
        assert!(!lock(&room.held).by_address.contains_key(&[192, 0, 2, 3].into()), "nothing is kept of it");
    }

    #[test]
    fn the_last_of_it_is_for_who_counts_without_an_address() {
        let room = PerAddress::new(10, 4, "things").keeping(3);
        let address = |number| Some(IpAddr::from([192, 0, 2, number]));
        let held = [room.take(address(1), 4), room.take(address(2), 3)];
        assert!(held.iter().all(Result::is_ok) && room.take(address(3), 1).is_err());
        let _last = room.take(None, 3).expect("the last");
        assert!(room.take(None, 1).is_err());
        drop(held);
        assert!(room.take(address(3), 4).is_ok() && room.take(address(3), 5).is_err());
    }
}
