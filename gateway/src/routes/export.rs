//! `/api/usage/export`: a user's usage as rows of CSV or NDJSON, written as they come from the service. An export that
//! breaks off ends the connection without the body's end, so that nobody takes a part for the whole.

use std::{fmt::Write, str::FromStr};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use nexus_kit::{convert::timestamp, validate::Violations};
use nexus_proto::analytics::v1 as analytics;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{App, auth::User, convert, error::Error, format, places::Few, query::Params};

/// The columns, and the members of a line of NDJSON.
const HEADER: &str = "start,endpoint,method,status_class,calls,avg_response_time_ms\r\n";
/// Exports at once, and those of one account.
const AT_ONCE: u32 = 64;
const OF_AN_ACCOUNT: u32 = 2;
/// As the service has it.
const LONGEST: TimeDelta = TimeDelta::days(366);
/// A spreadsheet takes a cell that begins so for a formula, in full width too.
const FORMULA: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'];

/// Places of exports.
pub fn places() -> Few {
    Few::new(AT_ONCE, OF_AN_ACCOUNT, "exports")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Csv,
    Ndjson,
}

impl FromStr for Form {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "csv" => Ok(Form::Csv),
            "ndjson" => Ok(Form::Ndjson),
            _ => Err(()),
        }
    }
}

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Form::Csv => "text/csv; charset=utf-8; header=present",
            Form::Ndjson => "application/x-ndjson",
        }
    }

    fn file_name(self, start: DateTime<Utc>, end: DateTime<Utc>) -> String {
        let extension = match self {
            Form::Csv => "csv",
            Form::Ndjson => "ndjson",
        };
        format!("usage-{}-{}.{extension}", start.format("%Y%m%d"), end.format("%Y%m%d"))
    }

    /// What comes before the first row.
    fn head(self) -> &'static str {
        match self {
            Form::Csv => HEADER,
            Form::Ndjson => "",
        }
    }

    fn write(self, row: &Row, to: &mut String) -> Result<(), Error> {
        match self {
            Form::Csv => row.write_csv(to),
            Form::Ndjson => {
                to.push_str(&serde_json::to_string(row).map_err(|e| Error::Internal(e.to_string()))?);
                to.push('\n');
                Ok(())
            }
        }
    }
}

/// Usage of one endpoint in one hour: a line of NDJSON.
#[derive(Serialize, ToSchema)]
pub(super) struct Row {
    /// The hour's beginning.
    #[schema(format = DateTime)]
    start: String,
    /// Route template.
    endpoint: String,
    method: String,
    /// First digit of the status: 1 to 5.
    status_class: i32,
    calls: i64,
    avg_response_time_ms: f64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct ExportParams {
    /// First instant; a date is its beginning (UTC). Hours are kept for `RAW_RETENTION_DAYS` (45 by default): a start before
    /// usage whose hours are gone is refused.
    #[param(
        pattern = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9]))?$",
        example = "2026-11-01"
    )]
    start: String,
    /// End, exclusive: at most 366 days later.
    #[param(
        pattern = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9]))?$",
        example = "2026-12-01"
    )]
    end: String,
    #[param(pattern = "^(csv|ndjson)$", default = "csv")]
    format: Option<String>,
}

/// Usage as a file
///
/// Rows by hour, endpoint, method and status class. In CSV, what a spreadsheet would take for a formula has a `'`
/// in front. A range is told whole or refused: where hours with usage are not kept any more, it is 400, and `message` says from
/// when on they are; `/api/usage/history` has the days before. An account has two under way at most; one that is not taken for
/// half a minute breaks off. A body that breaks off is not complete, and its connection ends without the end of the body.
#[utoipa::path(get, path = "/api/usage/export", tag = "usage", params(ExportParams), responses(
    (status = 200, description = "The rows, by time", content(
        (String = "text/csv"),
        (Row = "application/x-ndjson"),
    )),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn download(
    State(app): State<App>,
    user: User,
    mut params: Params,
) -> Result<Response, Error> {
    let (start, end) = (params.instant("start"), params.instant("end"));
    let form = params.word::<Form>("format", "csv, ndjson").unwrap_or(Form::Csv);
    params.finish()?;
    if end <= start || end - start > LONGEST {
        let message = format!("must be after start, and at most {} days after it", LONGEST.num_days());
        return Err(Violations::one("end", message).into());
    }
    let request = analytics::ExportUsageRequest {
        eco_id: String::new(),
        start_time: Some(timestamp(start)),
        end_time: Some(timestamp(end)),
    };
    let place = app.exports.enter(user.eco_id())?;
    let rows = app.backend.export(&user, request).await?;
    let pieces = rows.map(move |rows| {
        let _place = &place;
        written(form, rows?).inspect_err(|error| tracing::warn!(%error, "an export breaks off"))
    });
    let head = stream::iter([Ok(Bytes::from_static(form.head().as_bytes()))]);
    let body = Body::from_stream(head.chain(pieces));
    let disposition = format!("attachment; filename=\"{}\"", form.file_name(start, end));
    Ok(([(CONTENT_TYPE, form.content_type().to_owned()), (CONTENT_DISPOSITION, disposition)], body)
        .into_response())
}

fn written(form: Form, rows: Vec<analytics::UsageRow>) -> Result<Bytes, Error> {
    let mut text = String::new();
    for row in rows {
        form.write(&Row::try_from(row)?, &mut text)?;
    }
    Ok(text.into())
}

impl TryFrom<analytics::UsageRow> for Row {
    type Error = Error;

    fn try_from(row: analytics::UsageRow) -> Result<Self, Error> {
        let start = convert::required_time("start_time", row.start_time.as_ref())?;
        Ok(Self {
            start: format::time(start),
            endpoint: row.endpoint,
            method: row.method,
            status_class: row.status_class,
            calls: row.calls_count,
            avg_response_time_ms: row.avg_response_time_ms,
        })
    }
}

impl Row {
    fn write_csv(&self, to: &mut String) -> Result<(), Error> {
        write!(to, "{},", self.start).map_err(|e| Error::Internal(e.to_string()))?;
        write_cell(&self.endpoint, to);
        to.push(',');
        write_cell(&self.method, to);
        write!(to, ",{},{},{}\r\n", self.status_class, self.calls, self.avg_response_time_ms)
            .map_err(|e| Error::Internal(e.to_string()))
    }
}

/// A text as RFC 4180 has it, in quotes where it must be, and never a formula: neither at its beginning, nor where a
/// program that takes semicolons or tabs for separators would begin a cell.
fn write_cell(text: &str, to: &mut String) {
    let is_quoted =
        text.contains([',', ';', '"', '\t', '\r', '\n']) || text.starts_with(' ') || text.ends_with(' ');
    if is_quoted {
        to.push('"');
    }
    let mut begins = true;
    for c in text.chars() {
        if begins && FORMULA.contains(&c) {
            to.push('\'');
        }
        if c == '"' {
            to.push('"');
        }
        to.push(c);
        begins = [';', '\t', '\r', '\n'].contains(&c);
    }
    if is_quoted {
        to.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be_and_are_no_formulas() {
        for (text, cell) in [
            ("/v1/x", "/v1/x"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\r\nlines", "\"two\r\nlines\""),
            (" x", "\" x\""),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("＝1+1", "'＝1+1"),
            ("＋1", "'＋1"),
            ("－1", "'－1"),
            ("＠SUM(A1)", "'＠SUM(A1)"),
            ("\t=1", "\"'\t'=1\""),
            ("\r=1", "\"'\r'=1\""),
            ("/v1/x;=1+1", "\"/v1/x;'=1+1\""),
            ("a;b\t@x", "\"a;b\t'@x\""),
            ("a=b-c", "a=b-c"),
            ("=HYPERLINK(\"http://x\",\"y\")", "\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\""),
        ] {
            let mut written = String::new();
            write_cell(text, &mut written);
            assert_eq!(written, cell, "{text:?}");
        }
    }

    #[test]
    fn a_row_is_a_line_of_either_form() -> Result<(), Error> {
        let row = Row {
            start: "2026-11-30T12:00:00Z".to_owned(),
            endpoint: "/v1/\"x\"".to_owned(),
            method: "GET".to_owned(),
            status_class: 2,
            calls: 7,
            avg_response_time_ms: 1.5,
        };
        let written = |form: Form| {
            let mut text = form.head().to_owned();
            form.write(&row, &mut text).map(|()| text)
        };
        let csv = "2026-11-30T12:00:00Z,\"/v1/\"\"x\"\"\",GET,2,7,1.5\r\n";
        assert_eq!(written(Form::Csv)?, format!("{HEADER}{csv}"));
        let line = r#"{"start":"2026-11-30T12:00:00Z","endpoint":"/v1/\"x\"","method":"GET","status_class":2,"calls":7,"avg_response_time_ms":1.5}"#;
        assert_eq!(written(Form::Ndjson)?, format!("{line}\n"));
        Ok(())
    }
}
