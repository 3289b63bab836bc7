//! Writes down which thresholds accounts have reached, and the messages about them, in the transaction that brings
//! their usage into the summary: each once, whoever looks how often.

use std::collections::HashSet;

use sqlx::PgConnection;

use crate::{
    domain::{
        overage::Facts,
        threshold::{self, Reached},
        webhook::event::{EventType, Message},
    },
    error::Error,
    store::{crossings, thresholds, webhook_deliveries, webhook_endpoints, webhook_messages},
};

/// A jump over several thresholds is a message for each, lowest first.
pub async fn run(db: &mut PgConnection, facts: &[Facts]) -> Result<(), Error> {
    let rules = thresholds::rules(db).await?;
    let reached: Vec<(&Facts, Reached)> = facts
        .iter()
        .flat_map(|facts| threshold::reached(facts, &rules).into_iter().map(move |reached| (facts, reached)))
        .collect();
    if reached.is_empty() {
        return Ok(());
    }
    let crossed = crossings::add(db, reached).await?;
    if crossed.is_empty() {
        return Ok(());
    }
    let eco_ids: Vec<&str> = crossed.iter().map(|(facts, _)| facts.eco_id.as_str()).collect();
    let event_type = EventType::UsageThresholdReached;
    let listening: HashSet<String> =
        webhook_endpoints::listening(db, &eco_ids, event_type.as_str()).await?.into_iter().collect();
    let messages: Vec<Message> = crossed
        .into_iter()
        .filter(|(facts, _)| listening.contains(&facts.eco_id))
        .map(|(facts, reached)| Message::threshold_reached(facts, reached))
        .collect();
    webhook_messages::insert(db, &messages).await?;
    Ok(webhook_deliveries::fan_out(db, &messages).await?)
}
