//! Admits a request that a proxy asks about: by all of its descriptors or by none.

use std::collections::BTreeMap;

use nexus_core::id::{ApiKeyText, EcoId};

use super::{
    quota::{Decision, Quota, Verdict},
    verify_api_key::Keys,
};
use crate::error::Error;

/// Units that a call may take.
pub const MAX_UNITS: i64 = 1_000_000;

/// What a descriptor names.
#[derive(Debug)]
pub enum Subject {
    /// Nobody that is limited.
    Nobody,
    /// An account.
    Account(EcoId),
    /// The account of an API key; where one is named beside it, it has to be that one.
    Key {
        /// The key.
        text: ApiKeyText,
        /// The account beside it.
        eco_id: Option<EcoId>,
    },
    /// Something that can be no account's.
    Unknown,
}

/// A descriptor.
#[derive(Debug)]
pub struct Descriptor {
    /// Whose units it asks for.
    pub subject: Subject,
    /// How many.
    pub units: i64,
}

/// What a descriptor comes to.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Nobody's limit applies.
    Unlimited,
    /// Nobody's units: an unknown or closed account, or a bad key.
    Unknown,
    /// More units than any call takes.
    TooMany,
    /// Decided for this account.
    Decided(EcoId, Decision),
}

impl Answer {
    /// Whether the request may pass, as far as this descriptor goes.
    pub fn passes(&self) -> bool {
        match self {
            Answer::Unlimited => true,
            Answer::Unknown | Answer::TooMany => false,
            Answer::Decided(_, decision) => !matches!(decision.verdict, Verdict::Refused(_)),
        }
    }
}

/// The account of a descriptor, or its answer where there is nothing to admit.
enum Resolved {
    Account(EcoId),
    Answered(Answer),
}

/// An answer for each descriptor, in their order. An account that several of them name is asked once, for the
/// largest number of units: they are about one call. Where one does not pass, nothing is consumed.
pub async fn run(quota: &Quota, keys: &Keys, descriptors: Vec<Descriptor>) -> Result<Vec<Answer>, Error> {
    let mut resolved = Vec::with_capacity(descriptors.len());
    let mut units: BTreeMap<EcoId, i64> = BTreeMap::new();
    for descriptor in descriptors {
        let subject = match resolve(keys, descriptor.subject).await? {
            Resolved::Account(_) if descriptor.units > MAX_UNITS => Resolved::Answered(Answer::TooMany),
            subject => subject,
        };
        if let Resolved::Account(eco_id) = &subject {
            let most = units.entry(eco_id.clone()).or_default();
            *most = descriptor.units.max(*most);
        }
        resolved.push(subject);
    }
    let others_pass = resolved.iter().all(|r| !matches!(r, Resolved::Answered(answer) if !answer.passes()));
    let answers = admit(quota, units, others_pass).await?;
    Ok(resolved
        .into_iter()
        .map(|subject| match subject {
            Resolved::Answered(answer) => answer,
            Resolved::Account(eco_id) => answers[&eco_id].clone(),
        })
        .collect())
}

async fn resolve(keys: &Keys, subject: Subject) -> Result<Resolved, Error> {
    let (text, named) = match subject {
        Subject::Nobody => return Ok(Resolved::Answered(Answer::Unlimited)),
        Subject::Unknown => return Ok(Resolved::Answered(Answer::Unknown)),
        Subject::Account(eco_id) => return Ok(Resolved::Account(eco_id)),
        Subject::Key { text, eco_id } => (text, eco_id),
    };
    let key = match keys.verify(&text).await {
        Err(Error::InvalidApiKey) => return Ok(Resolved::Answered(Answer::Unknown)),
        key => key?,
    };
    Ok(if named.is_some_and(|named| named != key.eco_id) {
        Resolved::Answered(Answer::Unknown)
    } else if key.test_mode {
        // Metered apart, and never limited.
        Resolved::Answered(Answer::Unlimited)
    } else {
        Resolved::Account(key.eco_id)
    })
}

/// Admits the units of all accounts. What was admitted goes back where another does not pass, or fails, or the caller
/// goes away before all are decided.
async fn admit(
    quota: &Quota,
    units: BTreeMap<EcoId, i64>,
    others_pass: bool,
) -> Result<BTreeMap<EcoId, Answer>, Error> {
    let mut answers = BTreeMap::new();
    let mut reserved = Vec::new();
    let mut failure = None;
    for (eco_id, units) in units {
        match quota.reserve(&eco_id, units).await {
            Ok((decision, reservation)) => {
                reserved.extend(reservation.map(|reservation| (eco_id.clone(), reservation)));
                answers.insert(eco_id.clone(), Answer::Decided(eco_id, decision));
            }
            Err(Error::UnknownAccount | Error::ClosedAccount) => {
                answers.insert(eco_id, Answer::Unknown);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    if failure.is_some() || !others_pass || !answers.values().all(Answer::passes) {
        for (eco_id, reservation) in reserved {
            drop(reservation);
            if let Some(Answer::Decided(_, decision)) = answers.get_mut(&eco_id) {
                decision.consumed -= decision.units;
            }
        }
    } else {
        reserved.into_iter().for_each(|(_, reservation)| reservation.keep());
    }
    failure.map_or(Ok(answers), Err)
}
