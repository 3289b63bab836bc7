//! Logs, traces, and W3C trace context in and out.

use std::{io::IsTerminal, time::Duration};

use opentelemetry::{
    KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TracerProvider as _,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, layer::SubscriberExt, registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    config::{LogFormat, TelemetryArgs},
    log::JsonLog,
};

/// What of the spans goes to the collector.
const TRACED: &str = "info,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off";

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// NEXUS_LOG is no filter.
    #[error("NEXUS_LOG (--log): {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// NEXUS_LOG has a word that is no level.
    #[error("NEXUS_LOG (--log): `{0}` is no level: off, error, warn, info, debug or trace")]
    Level(String),
    /// OTEL_EXPORTER_OTLP_ENDPOINT is no collector.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT (--otlp-endpoint): {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// A subscriber is set already.
    #[error("telemetry was initialised twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends what is left of the traces when it is shut down.
#[must_use]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends the rest of the spans; call it last. Blocks for as long as the exporter takes.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Starts logs and, when a collector is configured, traces. Must run within a tokio runtime.
pub fn init(args: &TelemetryArgs, service: &'static str) -> Result<Telemetry, TelemetryError> {
    let filter = filter(&args.log)?;
    let provider = args.otlp_endpoint.as_deref().map(|endpoint| exporter(endpoint, service)).transpose()?;
    let registry = tracing_subscriber::registry();
    match &provider {
        // The filter is over everything, so that what it leaves out is not even asked about a second time: the
        // transport alone has dozens of such places on the way of a call.
        None => registry.with(filter).with(logs(args)).try_init()?,
        // Spans go to the collector at INFO whatever the log shows.
        Some(provider) => {
            let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("nexus"));
            let traces = traces.with_filter(EnvFilter::new(TRACED));
            registry.with(logs(args).with_filter(filter)).with(traces).try_init()?;
        }
    }
    Ok(Telemetry(provider))
}

fn logs<S>(args: &TelemetryArgs) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match args.log_format {
        LogFormat::Json => JsonLog(std::io::stderr).boxed(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).boxed()
        }
    }
}

/// The filter of the log. A word alone is a level: `EnvFilter` would take any other for the name of a module, and
/// log nothing else. What a pool says of connections that it cannot make, readiness says with the remedy.
fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    let mut words = text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[']));
    if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(TelemetryError::Level(word.to_owned()));
    }
    Ok(EnvFilter::try_new(format!("sqlx_core::pool=off,{text}"))?)
}

fn exporter(endpoint: &str, service: &'static str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", "nexus"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// A duration for a log line: milliseconds, to the microsecond.
pub fn milliseconds(took: Duration) -> f64 {
    (took.as_micros() as f64) / 1e3
}

/// Makes the caller's span, if its headers name one, the parent of ours.
pub fn continue_trace(span: &Span, headers: &http::HeaderMap) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    // Fails only where no trace layer is installed: then there is nothing to continue.
    drop(span.set_parent(context));
}

/// Puts the current span into the headers of an outgoing call.
pub fn propagate_trace(headers: &mut http::HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
}

/// The same for an outgoing RPC.
pub fn propagate_trace_to_rpc(metadata: &mut tonic::metadata::MetadataMap) {
    let mut headers = std::mem::take(metadata).into_headers();
    propagate_trace(&mut headers);
    *metadata = tonic::metadata::MetadataMap::from_headers(headers);
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut http::HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(key), http::HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level() {
        for good in ["info", "WARN", "info,sqlx=warn", "off,nexus_usage=debug", "warn,nexus[{eco_id}]=debug"]
        {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["warning", "loud", "info,quiet", "sqlx=chatty"] {
            assert!(filter(bad).is_err_and(|e| e.to_string().starts_with("NEXUS_LOG (--log): ")), "{bad}");
        }
    }
}
