//! Events that go out together.

use nexus_proto::usage::v1::UsageEvent;

/// Events and the numbers they have in the order of tracking.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    /// Rising; as many as events, and at least one.
    pub(super) numbers: Vec<u64>,
    pub(super) events: Vec<UsageEvent>,
    /// They are in the disk buffer too.
    pub(super) on_disk: bool,
}

impl Batch {
    /// The number of its first event: no other batch has it.
    pub(super) fn first(&self) -> u64 {
        self.numbers[0]
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// Both halves; the event alone, where it is one.
    pub(super) fn halves(mut self) -> (Self, Option<Self>) {
        if self.len() < 2 {
            return (self, None);
        }
        let middle = self.len() / 2;
        let (numbers, events) = (self.numbers.split_off(middle), self.events.split_off(middle));
        let second = Self { numbers, events, on_disk: self.on_disk };
        (self, Some(second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_keep_every_event_with_its_number() {
        let events: Vec<_> =
            (0..5).map(|n| UsageEvent { event_id: n.to_string(), ..Default::default() }).collect();
        let whole = Batch { numbers: vec![3, 4, 6, 7, 9], events, on_disk: true };
        let (first, second) = whole.clone().halves();
        let second = second.expect("five events have two halves");
        assert_eq!([first.numbers, second.numbers].concat(), whole.numbers);
        assert_eq!([first.events, second.events].concat(), whole.events);
        assert!(first.on_disk && second.on_disk);
        let one = Batch { numbers: vec![1], events: vec![UsageEvent::default()], on_disk: false };
        assert_eq!(one.clone().halves(), (one, None));
    }
}
