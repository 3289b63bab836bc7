//! Who is calling, and what that lets a caller do.

use std::{str::FromStr, sync::Arc};

use futures::future::BoxFuture;
use nexus_core::id::{ApiKeyText, EcoId};
use tonic::{Request, Status};

use crate::{status, validate::Violations};

/// What a service token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Record usage.
    UsageWrite,
    /// Check and lease quota, verify API keys.
    UsageCheck,
    /// Manage accounts and API keys.
    AccountsWrite,
    /// Run billing.
    BillingRun,
    /// Everything.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 5] =
        [Scope::UsageWrite, Scope::UsageCheck, Scope::AccountsWrite, Scope::BillingRun, Scope::Admin];

    /// The word in a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::UsageWrite => "usage.write",
            Scope::UsageCheck => "usage.check",
            Scope::AccountsWrite => "accounts.write",
            Scope::BillingRun => "billing.run",
            Scope::Admin => "admin",
        }
    }

    /// Whether an API key with these scopes has this one; none at all: everything a key may.
    pub fn is_in(self, key_scopes: &[String]) -> bool {
        key_scopes.is_empty() || key_scopes.iter().any(|scope| scope == self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            format!("unknown scope `{text}`, expected one of usage.write, usage.check, accounts.write, billing.run, admin")
        })
    }
}

/// Who is calling.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A person, by JWT.
    User {
        /// Own account.
        eco_id: EcoId,
        /// Email, if the token says it.
        email: Option<String>,
        /// Whether the account is listed as an admin's.
        admin: bool,
    },
    /// A program of ours, by service token.
    Service {
        /// Its name.
        name: String,
        /// What it may do.
        scopes: Vec<Scope>,
    },
    /// A customer's program, by API key. Read only: where a server takes keys, its layer verifies them
    /// ([`KeyVerifier`]).
    ApiKey(ApiKeyText),
}

/// An API key that opens its account.
#[derive(Debug, Clone)]
pub struct VerifiedKey {
    /// Its public id.
    pub key_id: String,
    /// Account it belongs to.
    pub eco_id: EcoId,
    /// What it may do; empty: everything a key may.
    pub scopes: Vec<String>,
    /// Metered apart.
    pub test_mode: bool,
}

/// Verifies API keys before a call's message is read: what somebody made up must not have the server build what
/// comes with it.
pub type KeyVerifier =
    Arc<dyn Fn(ApiKeyText) -> BoxFuture<'static, Result<VerifiedKey, Status>> + Send + Sync>;

impl VerifiedKey {
    /// The key a call was made with, where it was made with one.
    pub fn of<T>(request: &Request<T>) -> Option<&Self> {
        request.extensions().get()
    }

    /// The account a call is about: the key's own, named or not.
    pub fn account(&self, requested: &str) -> Result<EcoId, Status> {
        if requested.is_empty() || requested == self.eco_id.as_str() {
            Ok(self.eco_id.clone())
        } else {
            Err(status::permission_denied("an API key is for its own account only"))
        }
    }

    /// Demands that the key may do this.
    pub fn require_scope(&self, scope: Scope) -> Result<(), Status> {
        if scope.is_in(&self.scopes) {
            return Ok(());
        }
        Err(status::permission_denied(format!("the API key lacks the scope {}", scope.as_str())))
    }
}

impl Caller {
    /// The caller that the layer found; the layer refuses RPCs without one.
    pub fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        request
            .extensions()
            .get::<Caller>()
            .cloned()
            .ok_or_else(|| status::unauthenticated("credentials are missing"))
    }

    /// Who it is, for the audit log.
    pub fn subject(&self) -> String {
        match self {
            Caller::User { eco_id, .. } => format!("user:{eco_id}"),
            Caller::Service { name, .. } => format!("service:{name}"),
            Caller::ApiKey(text) => format!("api_key:{}", text.key_id()),
        }
    }

    /// Whether the caller sees every account: an admin, or a service with the scope `admin`.
    pub fn is_admin(&self) -> bool {
        match self {
            Caller::User { admin, .. } => *admin,
            Caller::Service { scopes, .. } => scopes.contains(&Scope::Admin),
            Caller::ApiKey(_) => false,
        }
    }

    /// Whether the caller is a service with this scope (or `admin`).
    pub fn has_scope(&self, scope: Scope) -> bool {
        matches!(self, Caller::Service { scopes, .. } if scopes.contains(&scope) || scopes.contains(&Scope::Admin))
    }

    /// Demands a scope of a service.
    pub fn require_scope(&self, scope: Scope) -> Result<(), Status> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(status::permission_denied(format!(
            "this call needs a service token with the scope {}",
            scope.as_str()
        )))
    }

    /// Demands an admin, or a service with one of the scopes.
    pub fn require_admin_or(&self, scopes: &[Scope]) -> Result<(), Status> {
        if self.is_admin() || scopes.iter().any(|s| self.has_scope(*s)) {
            return Ok(());
        }
        Err(status::permission_denied("this call is for admins"))
    }

    /// The account a call is about: a user's own, whatever admins and services with one of the scopes ask
    /// for. `requested` is empty where the request names none.
    pub fn account(&self, requested: &str, scopes: &[Scope]) -> Result<EcoId, Status> {
        let mut violations = Violations::new();
        let eco_id = self.account_among(requested, scopes, &mut violations)?;
        eco_id.ok_or_else(|| status::invalid(&violations))
    }

    /// The same for a request with more fields: a malformed id is one violation among others.
    pub fn account_among(
        &self,
        requested: &str,
        scopes: &[Scope],
        violations: &mut Violations,
    ) -> Result<Option<EcoId>, Status> {
        let any_account = self.is_admin() || scopes.iter().any(|s| self.has_scope(*s));
        match self {
            Caller::User { eco_id, .. } if requested.is_empty() || requested == eco_id.as_str() => {
                Ok(Some(eco_id.clone()))
            }
            _ if any_account => Ok(violations.eco_id("eco_id", requested)),
            _ => Err(status::permission_denied("this call is for the own account only")),
        }
    }
}
