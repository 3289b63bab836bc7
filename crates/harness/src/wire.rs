//! As much of PostgreSQL's protocol as faults need: where one message of the server ends, and which says that
//! a transaction is under way or committed. See its documentation, "Message Formats".

use bytes::{Buf, Bytes, BytesMut};

use crate::script::Point;

/// A kind, and a length that counts itself and not the kind.
pub(crate) const HEADER: usize = 5;

/// Takes the first whole message.
pub(crate) fn next(received: &mut BytesMut) -> Option<Bytes> {
    let mut length = received.get(1..HEADER)?;
    let whole = 1 + length.get_u32() as usize;
    (received.len() >= whole).then(|| received.split_to(whole).freeze())
}

/// Whether a client that just sent this asks to commit, as sqlx does: by a simple query, which nothing follows.
pub(crate) fn asks_to_commit(sent: &[u8]) -> bool {
    sent.ends_with(b"Q\0\0\0\x0bCOMMIT\0")
}

/// The point that a message of the server marks.
pub(crate) fn point(message: &[u8]) -> Option<Point> {
    match (message.first()?, message.get(HEADER..)?) {
        (b'C', b"COMMIT\0") => Some(Point::Committed),
        // CopyInResponse: the rows of a COPY are awaited.
        (b'Z', b"T") | (b'G', _) => Some(Point::InTransaction),
        (b'Z', b"I") => Some(Point::Outside),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_apart_however_they_arrive() {
        let copy = b"G\0\0\0\x07\x01\0\0";
        let sent = [b"C\0\0\0\x0bCOMMIT\0".as_slice(), b"Z\0\0\0\x05T", copy, b"Z\0\0\0\x05I"].concat();
        let mut received = BytesMut::new();
        let mut points = Vec::new();
        for byte in sent {
            received.extend_from_slice(&[byte]);
            while let Some(message) = next(&mut received) {
                points.push(point(&message));
            }
        }
        let within = Some(Point::InTransaction);
        assert_eq!(points, [Some(Point::Committed), within, within, Some(Point::Outside)]);
        assert!(received.is_empty());
        assert!(asks_to_commit(b"...Q\0\0\0\x0bCOMMIT\0") && !asks_to_commit(b"Q\0\0\0\x0dROLLBACK\0"));
    }
}
