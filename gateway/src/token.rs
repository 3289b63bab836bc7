//! The tokens under which the gateway itself calls the services.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use nexus_kit::auth::{self, Scope};
use secrecy::SecretString;

use crate::error::Error;

const NAME: &str = "gateway";
const SCOPES: [Scope; 3] = [Scope::UsageWrite, Scope::UsageCheck, Scope::BillingRun];
/// The services see its end by their own clocks: a gateway whose clock is an hour behind is still let in.
const LIFETIME: TimeDelta = TimeDelta::minutes(90);
/// A token this close to its end is not sent any more: it must outlast the longest call, and the difference of clocks.
const RENEWED_BEFORE: TimeDelta = TimeDelta::minutes(65);

/// Makes short-lived service tokens and keeps the latest.
pub struct ServiceTokens {
    secret: SecretString,
    latest: Mutex<Option<(String, DateTime<Utc>)>>,
}

impl ServiceTokens {
    /// Tokens signed with the services' secret.
    pub fn new(secret: SecretString) -> Self {
        Self { secret, latest: Mutex::new(None) }
    }

    /// A token that outlasts a call.
    pub fn get(&self, now: DateTime<Utc>) -> Result<String, Error> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((token, expires)) if *expires - now > RENEWED_BEFORE => Ok(token.clone()),
            _ => {
                let expires = now + LIFETIME;
                let token = auth::service_token(&self.secret, NAME, &SCOPES, expires)
                    .map_err(|e| Error::Internal(format!("signing a service token: {e}")))?;
                *latest = Some((token.clone(), expires));
                Ok(token)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nexus_kit::auth::Authenticator;

    use super::*;

    #[test]
    fn a_token_is_kept_until_it_nears_its_end() -> Result<(), Error> {
        let tokens = ServiceTokens::new("service-tokens-in-tests-0123456789abcdef".into());
        let start = DateTime::UNIX_EPOCH;
        let first = tokens.get(start)?;
        assert_eq!(tokens.get(start + TimeDelta::minutes(24))?, first);
        let second = tokens.get(start + TimeDelta::minutes(25))?;
        assert_ne!(second, first);
        assert_eq!(tokens.get(start + TimeDelta::minutes(49))?, second);
        Ok(())
    }

    #[test]
    fn services_let_in_a_gateway_whose_clock_is_an_hour_behind() -> anyhow::Result<()> {
        let args = nexus_testkit::settings::auth_args();
        let tokens = ServiceTokens::new(args.service_token_secret.clone());
        let its_now = Utc::now() - TimeDelta::hours(1);
        // Kept for so long by then.
        tokens.get(its_now - TimeDelta::minutes(24))?;
        let token = tokens.get(its_now)?;
        let caller = Authenticator::new(&args)?.authenticate(Some(&format!("Bearer {token}")))?;
        assert!(caller.has_scope(Scope::UsageCheck));
        Ok(())
    }
}
