//! The codec of all our services: protobuf, with a bound on how many values one message may hold.
//!
//! An empty message in a list is two bytes on the wire, next to none compressed, and a struct of some hundred
//! bytes in memory. So the values are counted before anything is built of them. What a value holds is not looked
//! into: services whose messages have lists within lists bound the length of a message the more.

use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Values a message may hold itself: twice the events of the largest batch.
const MAX_VALUES: usize = 20_000;

/// Protobuf, bounded.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(self.0.decoder())
    }
}

/// Counts, then decodes.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The transport gathers a message before it is decoded: the first piece is all of it.
        if holds_more_than(buffer.chunk(), MAX_VALUES) {
            return Err(Status::out_of_range(format!("a message holds {MAX_VALUES} values at most")));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message holds more values than that. What is malformed is for the decoder to refuse.
fn holds_more_than(mut message: &[u8], most: usize) -> bool {
    let mut values = 0;
    while message.has_remaining() {
        let Ok((tag, wire_type)) = decode_key(&mut message) else { return false };
        values += 1;
        if values > most {
            return true;
        }
        if wire_type == WireType::EndGroup
            || skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err()
        {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::v1::{BatchRecordUsageRequest, UsageEvent};

    #[test]
    fn values_are_counted_whatever_they_hold() {
        let event = UsageEvent { endpoint: "/x".to_owned(), units_count: 7, ..UsageEvent::default() };
        let batch = BatchRecordUsageRequest { events: vec![event, UsageEvent::default()] }.encode_to_vec();
        assert!(!holds_more_than(&batch, 2) && holds_more_than(&batch, 1));
        assert!(holds_more_than(&[0x0a, 0].repeat(20_001), MAX_VALUES));
        assert!(!holds_more_than(&[0x0a, 0].repeat(20_000), MAX_VALUES));
        for malformed in [&[0x0a, 200][..], &[0xff; 11], &[0x0c], &[]] {
            assert!(!holds_more_than(malformed, 1), "{malformed:?}");
        }
    }
}
