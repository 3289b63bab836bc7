use chrono::DateTime;
use nexus_core::id::EcoId;
use proptest::{collection::vec, option, prelude::*};
use uuid::Uuid;

use super::{Outcome, event};
use crate::{
    domain::event::{Event, Payload},
    spool::frame,
};

const JOURNAL: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

fn any_event() -> impl Strategy<Value = Event> {
    let micros = -62_000_000_000_000_000_i64..250_000_000_000_000_000;
    let ids = (
        any::<u128>(),
        "eco_[A-Za-z0-9_.:-]{1,60}",
        option::of("eco_api_[A-Za-z0-9]{22}"),
        option::of(any::<u128>()),
    );
    let rest = (100_i16..600, 0_i32..=86_400_000, 1_i64..=1_000_000, "[A-Z]{1,16}", "[^\\x00-\\x1f]{1,200}");
    (ids, micros.clone(), option::of(micros), rest).prop_map(
        |((id, account, key, admission), at, accepted, (status, latency, units, method, endpoint))| Event {
            event_id: Uuid::from_u128(id),
            eco_id: EcoId::parse(&account).expect("an id"),
            accepted: accepted.and_then(DateTime::from_timestamp_micros),
            payload: Payload {
                event_time: DateTime::from_timestamp_micros(at).expect("a time"),
                endpoint,
                method,
                status_code: status,
                response_time_ms: latency,
                units_count: units,
                api_key_id: key,
                admission: admission.map(Uuid::from_u128),
            },
        },
    )
}

fn read(bytes: &[u8]) -> Vec<(u64, Option<Event>)> {
    frame::all(bytes, JOURNAL).map(|found| (found.number, frame::event(found.content))).collect()
}

proptest! {
    #[test]
    fn an_event_comes_back_as_it_was_whatever_lies_around_it(event in any_event(), number: u64, before in vec(any::<u8>(), 0..40), after in vec(any::<u8>(), 0..40)) {
        let mut bytes = before;
        frame::put(&mut bytes, JOURNAL, number, &event);
        bytes.extend(after);
        prop_assert_eq!(read(&bytes), [(number, Some(event))]);
    }

    #[test]
    fn bytes_that_nobody_wrote_give_nothing(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert_eq!(read(&bytes), []);
    }
}

#[test]
fn a_frame_of_which_one_bit_changed_is_gone_and_the_next_one_is_found() {
    let (first, second) = (event(1, 5), event(2, 5));
    let mut bytes = Vec::new();
    frame::put(&mut bytes, JOURNAL, 1, &first);
    let length = bytes.len();
    frame::put(&mut bytes, JOURNAL, 2, &second);
    for bit in 0..length * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&changed), [(2, Some(second.clone()))], "bit {bit}");
    }
}

#[test]
fn frames_of_another_journal_and_cut_ones_are_none() -> Outcome {
    let mut bytes = Vec::new();
    frame::put(&mut bytes, JOURNAL, 1, &event(1, 5));
    assert_eq!(frame::all(&bytes, Uuid::from_u128(7)).next(), None);
    for length in 0..bytes.len() {
        assert_eq!(read(&bytes[..length]), [], "{length} bytes");
    }
    Ok(())
}

/// A caller who knows the format, but not the id of the journal, puts a frame where texts are.
#[test]
fn a_frame_within_an_event_is_not_taken_for_one() {
    let mut forged = Vec::new();
    frame::put(&mut forged, Uuid::nil(), 9, &event(9, 5));
    let mut bytes = Vec::new();
    frame::put(&mut bytes, JOURNAL, 1, &event(1, 5));
    bytes[0] ^= 1; // so that it is looked into
    bytes.extend(forged);
    assert_eq!(read(&bytes), []);
}
