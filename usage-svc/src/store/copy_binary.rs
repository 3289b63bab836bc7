//! Rows in the format of `COPY … (format binary)`, as PostgreSQL's documentation of COPY has it. Pure.

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

/// What a stream of rows begins with: a signature, no flags, no header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Days and microseconds from 1970 to 2000, from where PostgreSQL counts.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// Encodes rows; what is encoded can be taken away piece by piece.
#[derive(Debug)]
pub struct Encoder {
    columns: i16,
    bytes: Vec<u8>,
}

impl Encoder {
    /// Begins a stream of rows of so many columns.
    pub fn new(columns: i16) -> Self {
        Self { columns, bytes: HEADER.to_vec() }
    }

    /// What is encoded and not taken.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes it; its memory is used again.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Begins a row: a field for each column is to follow.
    pub fn row(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&self.columns.to_be_bytes());
        self
    }

    /// Ends the stream.
    pub fn end(&mut self) {
        self.bytes.extend_from_slice(&(-1i16).to_be_bytes());
    }

    fn field(&mut self, value: &[u8]) -> &mut Self {
        let length = i32::try_from(value.len()).expect("a field is far shorter than 2 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    /// A null of any type.
    pub fn null(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&(-1i32).to_be_bytes());
        self
    }

    /// A `text`, or null.
    pub fn text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(text) => self.field(text.as_bytes()),
            None => self.null(),
        }
    }

    /// A `uuid`, or null.
    pub fn uuid(&mut self, value: Option<Uuid>) -> &mut Self {
        match value {
            Some(id) => self.field(id.as_bytes()),
            None => self.null(),
        }
    }

    /// A `date`.
    pub fn date(&mut self, day: NaiveDate) -> &mut Self {
        let since_1970 = day.signed_duration_since(NaiveDate::default()).num_days();
        let days = i32::try_from(since_1970).expect("chrono's days fit") - EPOCH_DAYS;
        self.int4(days)
    }

    /// A `timestamptz`.
    pub fn timestamptz(&mut self, at: DateTime<Utc>) -> &mut Self {
        self.int8(at.timestamp_micros() - EPOCH_MICROS)
    }

    /// An `int2`.
    pub fn int2(&mut self, value: i16) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    /// An `int4`.
    pub fn int4(&mut self, value: i32) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    /// An `int8`.
    pub fn int8(&mut self, value: i64) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    /// A `bool`.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.field(&[u8::from(value)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_the_documentation_says() {
        let mut encoder = Encoder::new(2);
        assert_eq!(encoder.bytes().len(), 19);
        encoder.clear();
        encoder.row().text(Some("ab")).bool(true);
        encoder.row().text(None).int2(-2);
        encoder.end();
        let expected = [
            [0, 2].as_slice(),
            &[0, 0, 0, 2, b'a', b'b'],
            &[0, 0, 0, 1, 1],
            &[0, 2],
            &[255; 4],
            &[0, 0, 0, 2, 255, 254],
            &[255, 255],
        ];
        assert_eq!(encoder.bytes(), expected.concat());
    }

    #[test]
    fn times_count_from_the_year_2000() {
        let mut encoder = Encoder::new(0);
        encoder.clear();
        let day = NaiveDate::from_ymd_opt(2000, 1, 2).expect("a day");
        encoder.date(day).timestamptz(day.and_hms_opt(0, 0, 1).expect("a time").and_utc());
        let micros = 86_401_000_000_i64.to_be_bytes();
        assert_eq!(encoder.bytes(), [[0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 8].as_slice(), &micros].concat());
    }
}
