//! Hands units to a client, which admits calls from them in its own process, and settles them.

use std::time::Duration;

use nexus_core::id::{ApiKeyText, EcoId};
use uuid::Uuid;

use super::{
    quota::{Client, Lending, Position, Quota},
    verify_api_key::Keys,
};
use crate::error::Error;

/// What a client wishes, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// A lease that it settles, and the units that it used of it.
    pub settle: Option<(Uuid, i64)>,
    /// The id of a lease that it wants, and units at most.
    pub want: Option<(Uuid, i64)>,
    /// It wants nothing more.
    pub release: bool,
}

/// The answer to a wish.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// A lease, and its units.
    pub granted: Option<(Uuid, i64)>,
    /// When to ask again, where nothing was granted.
    pub retry: Duration,
    /// Where the account stands.
    pub position: Position,
}

/// A client with a stream.
pub struct Session {
    client: Client,
    keys: Keys,
    /// The API key that it came with.
    key: Option<ApiKeyText>,
}

impl Session {
    /// Of a client of the account, as it calls itself.
    pub async fn open(
        quota: &Quota,
        keys: Keys,
        key: Option<ApiKeyText>,
        (eco_id, client_id): (&EcoId, Uuid),
    ) -> Result<Self, Error> {
        let key_id = key.as_ref().map(|key| key.key_id().to_owned());
        let session = Self { client: quota.client(eco_id, client_id, key_id).await?, keys, key };
        // From here on it is told of changes; of one that came before it was not.
        session.verify().await?;
        Ok(session)
    }

    /// The account.
    pub fn eco_id(&self) -> &EcoId {
        self.client.eco_id()
    }

    /// Whether it has leases that are not settled.
    pub fn holds(&self) -> bool {
        self.client.holds()
    }

    /// Returns once everything that it holds is to be asked back, with whether its API key may have changed. It may
    /// be dropped while it waits: nothing is lost.
    pub async fn told(&mut self) -> bool {
        self.client.told().await
    }

    /// Whether its API key still opens the account.
    pub async fn verify_again(&self) -> Result<(), Error> {
        if let Some(key) = &self.key {
            // The keys hear of a change as well, if perhaps not yet.
            self.keys.forget(key.key_id());
        }
        self.verify().await
    }

    /// Verifies the key, from memory as a rule.
    pub async fn verify(&self) -> Result<(), Error> {
        if let Some(key) = &self.key {
            self.keys.verify(key).await?;
        }
        Ok(())
    }

    /// Settles what the client settles.
    pub async fn settle(&mut self, wish: &Wish) -> Result<(), Error> {
        match wish.settle {
            Some((lease_id, used)) => self.client.settle(lease_id, used).await,
            None => Ok(()),
        }
    }

    /// Grants what it wants, as far as it is left, unless it is `gone` by its turn.
    pub async fn grant<G: Future<Output = ()>>(
        &mut self,
        wish: &Wish,
        gone: impl Fn() -> G,
    ) -> Result<Answer, Error> {
        let Some((lease_id, units)) = wish.want else { return Ok(self.nothing(Duration::ZERO)) };
        self.verify().await?;
        Ok(match self.client.lend(lease_id, units, gone).await? {
            Lending::Granted(units) => {
                let position = self.client.position();
                Answer { granted: Some((lease_id, units)), retry: Duration::ZERO, position }
            }
            Lending::Nothing(retry) => self.nothing(retry),
        })
    }

    /// Takes back what was granted by an answer that was not sent.
    pub fn withdraw(&mut self, granted: Option<(Uuid, i64)>) {
        if let Some((lease_id, _)) = granted {
            self.client.withdraw(lease_id);
        }
    }

    /// The answer to one that gets nothing.
    pub fn nothing(&mut self, retry: Duration) -> Answer {
        Answer { granted: None, retry, position: self.client.position() }
    }
}
