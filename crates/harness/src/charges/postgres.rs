//! As much of PostgreSQL's protocol as is needed to know what a client waits for: where its requests end, which
//! statement each carries out, and whether that is within a transaction. See its documentation, "Message Formats".

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{Buf, Bytes, BytesMut};

use super::strikes::Place;
use crate::wire;

/// A connection as it is seen from the middle.
#[derive(Default)]
pub(super) struct Conversation {
    has_begun: bool,
    in_transaction: bool,
    sent: BytesMut,
    /// The statement that what was sent so far carries out.
    text: Option<Arc<str>>,
    statements: HashMap<Bytes, Arc<str>>,
    /// What is not answered yet, in order.
    waiting: VecDeque<Option<Place>>,
}

/// What a client has sent until it waits for an answer.
pub(super) struct Request {
    pub(super) bytes: Bytes,
    /// What it carries out; `None`: it prepares a statement, or is no request at all.
    pub(super) place: Option<Place>,
}

impl Conversation {
    /// What the client has sent; cut where it waits for an answer.
    pub(super) fn sent(&mut self, received: &mut BytesMut) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            let message = if self.has_begun { wire::next(received) } else { first(received) };
            let Some(message) = message else { return requests };
            self.sent.extend_from_slice(&message);
            let kind = if self.has_begun { message[0] } else { 0 };
            self.has_begun = true;
            match kind {
                b'P' => self.prepare(&message[wire::HEADER..]),
                b'B' => self.text = self.bound(&message[wire::HEADER..]),
                b'Q' => self.text = Some(collapsed(until_zero(&message[wire::HEADER..]))),
                _ => {}
            }
            // The start of the session, a simple query, Sync.
            if matches!(kind, 0 | b'Q' | b'S') {
                let place = self.text.take().map(|text| self.place(text));
                self.waiting.push_back(place.clone());
                requests.push(Request { bytes: self.sent.split().freeze(), place });
            } else if kind == b'X' {
                requests.push(Request { bytes: self.sent.split().freeze(), place: None });
            }
        }
    }

    /// What a message of the server answers, if that is the end of an answer.
    pub(super) fn answered(&mut self, message: &[u8]) -> Option<Place> {
        let [b'Z', .., status] = message else { return None };
        self.in_transaction = *status != b'I';
        self.waiting.pop_front().flatten()
    }

    fn place(&self, text: Arc<str>) -> Place {
        let begins = text.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("begin"));
        if &*text == "COMMIT" {
            Place::Commit
        } else if self.in_transaction || begins {
            Place::InTransaction(text)
        } else {
            Place::Own(text)
        }
    }

    fn prepare(&mut self, body: &[u8]) {
        let name = until_zero(body);
        let text = until_zero(&body[name.len() + 1..]);
        self.statements.insert(Bytes::copy_from_slice(name), collapsed(text));
    }

    fn bound(&self, body: &[u8]) -> Option<Arc<str>> {
        let portal = until_zero(body);
        self.statements.get(until_zero(&body[portal.len() + 1..])).cloned()
    }
}

/// The first message has no kind.
fn first(received: &mut BytesMut) -> Option<Bytes> {
    let length = received.get(..4)?.get_u32() as usize;
    (received.len() >= length).then(|| received.split_to(length).freeze())
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn collapsed(text: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn what_a_client_waits_for_is_known_by_its_statement_and_its_transaction() {
        let mut conversation = Conversation::default();
        let mut places = Vec::new();
        let mut exchange = |conversation: &mut Conversation, sent: &[u8], status: u8| {
            let mut received = BytesMut::new();
            let mut requests = Vec::new();
            for byte in sent {
                received.extend_from_slice(&[*byte]);
                requests.extend(conversation.sent(&mut received));
            }
            let ready = message(b'Z', &[status]);
            for request in &requests {
                assert_eq!(conversation.answered(&ready), request.place);
            }
            places.extend(requests.into_iter().map(|request| request.place));
        };
        exchange(&mut conversation, &[0, 0, 0, 8, 0, 3, 0, 0], b'I');
        let prepare = [message(b'P', b"s1\0select\n  1\0\0\0"), message(b'S', b"")].concat();
        exchange(&mut conversation, &prepare, b'I');
        let bind = [message(b'B', b"\0s1\0\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat();
        exchange(&mut conversation, &bind, b'I');
        exchange(&mut conversation, &message(b'Q', b"BEGIN\0"), b'T');
        exchange(&mut conversation, &bind, b'T');
        exchange(&mut conversation, &message(b'Q', b"COMMIT\0"), b'I');
        let text = |text: &str| Arc::<str>::from(text);
        let expected = [
            None,
            None,
            Some(Place::Own(text("select 1"))),
            Some(Place::InTransaction(text("BEGIN"))),
            Some(Place::InTransaction(text("select 1"))),
            Some(Place::Commit),
        ];
        assert_eq!(places, expected);
    }
}
