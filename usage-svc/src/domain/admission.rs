//! Which units of a flush were admitted before: an event names the lease its call was admitted under, and
//! the lease covers what is left of its grant. A lease that is unknown, another account's, used up, or of
//! a period already settled covers nothing, so that an admission can be neither forged nor used twice.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use nexus_core::period::{Period, SETTLEMENT_GRACE};
use uuid::Uuid;

use super::{
    event::{Event, Identity},
    judge::{Facts, Placement},
};

/// A lease, as far as recording asks.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Account it was granted to.
    pub eco_id: String,
    /// Period it was granted in.
    pub period: Period,
    /// Granted units that no event is booked against.
    pub unbooked: i64,
}

/// A row about to be written.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The event.
    pub event: &'a Event,
    /// Route template it is rolled up under.
    pub route: Cow<'a, str>,
    /// Where it counts.
    pub placement: Placement,
    /// Units of it that its lease covers.
    pub admitted_units: i64,
}

/// Covers the rows, in their order, by their leases. A row that is covered, if in part, counts in its
/// lease's period, in the segment that is open there. Rows known to be `stored` already take nothing.
pub fn cover(
    rows: &mut [Row<'_>],
    leases: &mut HashMap<Uuid, Lease>,
    stored: &HashSet<Identity>,
    facts: &Facts,
) {
    for row in rows.iter_mut().filter(|row| !row.placement.test_mode) {
        let Some(lease) = row.event.payload.admission.and_then(|id| leases.get_mut(&id)) else { continue };
        let holds =
            lease.eco_id == row.event.eco_id.as_str() && facts.now < lease.period.end + SETTLEMENT_GRACE;
        let units = row.event.payload.units_count.min(lease.unbooked);
        if !holds || units == 0 || stored.contains(&row.event.identity()) {
            continue;
        }
        lease.unbooked -= units;
        row.admitted_units = units;
        row.placement.period_start = lease.period.start;
        if let Some(account) = facts.accounts.get(&row.event.eco_id) {
            row.placement.segment = account.open_segment(lease.period.start);
        }
        row.placement.late = false;
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Months};
    use nexus_core::id::EcoId;

    use super::*;
    use crate::domain::{
        event::Payload,
        judge::{Account, judge},
    };

    /// A call that was admitted just before its period ended, and that says it happened just after.
    #[test]
    fn an_admitted_call_counts_in_the_open_segment_of_its_leases_period() {
        let start = DateTime::UNIX_EPOCH;
        let end = start + Months::new(1);
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let lease_id = Uuid::from_u128(1);
        let payload = Payload {
            event_time: end,
            endpoint: "/".to_owned(),
            method: "GET".to_owned(),
            status_code: 200,
            response_time_ms: 1,
            units_count: 2,
            api_key_id: None,
            admission: Some(lease_id),
        };
        let event = Event { event_id: Uuid::from_u128(2), eco_id: eco_id.clone(), payload, accepted: None };
        // The plan has changed twice in the lease's period, and once in the next.
        let account = Account {
            anchor: start,
            closed: None,
            former: Vec::new(),
            closed_segments: vec![start, end, start],
        };
        let facts = Facts { now: end, accounts: HashMap::from([(eco_id, account)]), ..Facts::default() };
        let lease = Lease { eco_id: "eco_a".to_owned(), period: Period { start, end }, unbooked: 5 };
        let placement = judge(&event, &facts).expect("it is taken");
        assert_eq!((placement.period_start, placement.segment), (end, 1));
        let mut rows = [Row { event: &event, route: Cow::Borrowed("/"), placement, admitted_units: 0 }];
        cover(&mut rows, &mut HashMap::from([(lease_id, lease)]), &HashSet::new(), &facts);
        let Row { placement, admitted_units, .. } = &rows[0];
        assert_eq!((placement.period_start, placement.segment, *admitted_units), (start, 2, 2));
    }
}
