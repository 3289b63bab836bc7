//! The log as JSON, a line an event: its fields, and those of the span it happened in. It is written once per
//! call, so that it has to cost little: a span's fields are encoded once, when they are recorded.

use std::{cell::Cell, fmt::Debug, io::Write, ops::Range};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::Context,
    registry::LookupSpan,
};

/// The layer that writes it.
pub(crate) struct JsonLog<W>(pub(crate) W);

thread_local! {
    /// The memory of a thread's last line, to be used again.
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl<S, W> Layer<S> for JsonLog<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Taken, and not borrowed: a value that is formatted may itself log.
        let mut line = LINE.take();
        line.clear();
        let metadata = event.metadata();
        line.extend_from_slice(b"{\"timestamp\":\"");
        let mut time = String::with_capacity(32);
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_ok() {
            line.extend_from_slice(time.as_bytes());
        }
        line.extend_from_slice(b"\",\"level\":");
        put(&mut line, metadata.level().as_str());
        line.push(b',');
        let mut fields = Fields { text: line, last: Vec::new() };
        event.record(&mut fields);
        let mut line = fields.text;
        line.extend_from_slice(b"\"target\":");
        put(&mut line, metadata.target());
        if let Some(span) = context.event_span(event) {
            line.extend_from_slice(b",\"span\":{");
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.write(&mut line);
            }
            line.extend_from_slice(b"\"name\":");
            put(&mut line, span.name());
            line.push(b'}');
        }
        line.extend_from_slice(b"}\n");
        // Where the log cannot be written there is nowhere to say so.
        drop(self.0.make_writer_for(metadata).write_all(&line));
        LINE.set(line);
    }
}

/// A value in JSON.
fn put(line: &mut Vec<u8>, value: impl Serialize) {
    serde_json::to_writer(line, &value).expect("a text or a number is written to memory");
}

/// Fields, encoded.
#[derive(Default)]
struct Fields {
    /// `"name":value,` for each time that one was recorded.
    text: Vec<u8>,
    /// Where the last one of each name is: a field of a span can be recorded again.
    last: Vec<(&'static str, Range<usize>)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl Serialize) {
        let start = self.text.len();
        put(&mut self.text, field.name());
        self.text.push(b':');
        put(&mut self.text, value);
        self.text.push(b',');
        let place = start..self.text.len();
        match self.last.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, last)) => *last = place,
            None => self.last.push((field.name(), place)),
        }
    }

    fn write(&self, line: &mut Vec<u8>) {
        for (_, place) in &self.last {
            line.extend_from_slice(&self.text[place.clone()]);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing::field::Empty;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `work` logs.
    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLog(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().expect("nobody panicked").clone()).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_line_has_the_fields_of_the_event_and_of_its_span() {
        let lines = logged(|| {
            let outer = tracing::info_span!("outer", secret = "not of the current span");
            let _outer = outer.enter();
            let span = tracing::info_span!("rpc", kind = "server", code = Empty, caller = Empty);
            span.record("code", 7).record("caller", "a \"quoted\"\nname");
            let _span = span.enter();
            span.record("code", 8);
            let error = io::Error::other("broken");
            tracing::warn!(count = 3_u64, good = true, ratio = 0.5, %error, list = ?[1, 2], "it {}", "is so");
        });
        let [line] = lines.as_slice() else { panic!("one line: {lines:?}") };
        let mut line = line.as_object().expect("an object").clone();
        let time = line.remove("timestamp").expect("a time");
        assert!(time.as_str().is_some_and(|t| t.parse::<chrono::DateTime<chrono::Utc>>().is_ok()), "{time}");
        let span = json!({"name": "rpc", "kind": "server", "code": 8, "caller": "a \"quoted\"\nname"});
        let expected = json!({
            "level": "WARN", "message": "it is so", "count": 3, "good": true, "ratio": 0.5, "error": "broken",
            "list": "[1, 2]", "target": module_path!(), "span": span
        });
        assert_eq!(Value::Object(line), expected);
    }

    #[test]
    fn a_line_without_a_span_names_none() {
        let lines = logged(|| {
            tracing::info!("one");
            tracing::info!("two");
        });
        let seen: Vec<_> = lines.iter().map(|line| (&line["message"], line.get("span"))).collect();
        assert_eq!(seen, [(&json!("one"), None), (&json!("two"), None)]);
    }
}
