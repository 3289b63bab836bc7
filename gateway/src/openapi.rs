//! The document at `/openapi.json`: what each route says of itself, and what holds for all of them: who may call, and
//! every error with its shape in both forms.

use serde_json::{Map, Value, json};
use utoipa::{OpenApi, ToSchema, openapi::OpenApi as Document};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// What the routes are added to.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nexus metering",
        description = "Usage, overage, subscriptions and API keys of an account, and the business for its admins.\n\nTimes are RFC 3339 in UTC. Errors are `{\"error\": …}`, or problems of RFC 9457 where `Accept` names `application/problem+json`. Fields may be added.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/")),
    tags(
        (name = "usage", description = "A user's own usage"),
        (name = "keys", description = "A user's API keys"),
        (name = "subscriptions", description = "A user's subscription"),
        (name = "admin", description = "The business, for admins"),
        (name = "tracked", description = "Called with an API key, and metered"),
        (name = "scheduler", description = "Called by a scheduler"),
        (name = "stripe", description = "Called by Stripe"),
        (name = "service", description = "About this server"),
    ),
    components(schemas(Failure, BadRequest, LimitExceeded, Problem)),
)]
pub struct Frame;

/// Why a request was not answered as its sender wished.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Error` becomes")]
struct Failure {
    /// In a few words, always the same for the same reason.
    error: String,
    /// For people.
    message: Option<String>,
}

/// Input that is malformed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Error` becomes")]
struct BadRequest {
    error: String,
    /// The first field at fault.
    field: String,
    /// What it must be.
    message: String,
    /// All fields at fault.
    violations: Vec<FieldViolation>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Error` becomes")]
struct FieldViolation {
    field: String,
    message: String,
}

/// The plan's calls, or those that the spend cap allows, are used up.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Error` becomes")]
struct LimitExceeded {
    /// `API limit exceeded`
    error: String,
    message: String,
    #[schema(pattern = "^(plan_limit_reached|spend_cap_reached)$")]
    reason: String,
    current_usage: i64,
    limit: i64,
    #[schema(format = DateTime)]
    period_end: String,
    upgrade_url: String,
}

/// What an error has beside its members in the form of RFC 9457.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `problem` makes")]
struct Problem {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
}

/// An error that routes may answer with.
struct Refusal {
    status: u16,
    description: &'static str,
    /// Names of the shapes that its body may have.
    shapes: &'static [&'static str],
}

const fn plain(status: u16, description: &'static str) -> Refusal {
    Refusal { status, description, shapes: &["Failure"] }
}

const MALFORMED: Refusal =
    Refusal { status: 400, description: "Input is malformed; `field` names it", shapes: &["BadRequest"] };
const UNAUTHORIZED: Refusal = plain(401, "The credentials are missing or bad");
const FORBIDDEN: Refusal = plain(403, "The user is no admin");
const TOO_LARGE: Refusal = plain(413, "The body is too large");
const TOO_FAST: Refusal = plain(429, "The caller sends too many requests");
const OVER_LIMIT: Refusal = Refusal {
    status: 429,
    description: "The account has used what it may (`API limit exceeded`), or the caller sends too many requests",
    shapes: &["LimitExceeded", "Failure"],
};
/// Of every route.
const ANYWHERE: [Refusal; 4] = [
    plain(414, "Path and query are too long"),
    plain(431, "The headers are too large"),
    plain(500, "A fault of this server, or a setting that is missing"),
    plain(503, "A part of the system is away, or overloaded"),
];

/// The document as it is served.
pub fn document(routes: Document) -> Result<Value, serde_json::Error> {
    let mut document = serde_json::to_value(routes)?;
    document["components"]["securitySchemes"] = security_schemes();
    for (path, item) in members(&mut document["paths"]) {
        for (method, operation) in members(item) {
            operation["operationId"] = id(method, path).into();
            complete(operation);
        }
    }
    Ok(document)
}

/// An id that is nobody else's, and stays: `get_usage_current`.
fn id(method: &str, path: &str) -> String {
    let path = path.trim_start_matches("/api").trim_matches(['/', '}']);
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("{method}_{}", path.replace('{', "").chars().map(word).collect::<String>())
}

/// Who may call, as the routes name it.
fn security_schemes() -> Value {
    let bearer =
        |description: &str| json!({ "type": "http", "scheme": "bearer", "description": description });
    let mut user = bearer("A user's token, with the claims `ecoId`, `email`, `iss` and `exp`");
    user["bearerFormat"] = "JWT".into();
    json!({
        "user": user,
        "scheduler": bearer("The `CRON_SECRET`"),
        "api_key": {
            "type": "apiKey", "in": "header", "name": "Authorization",
            "description": "`ApiKey <key_id>.<secret>`",
        },
    })
}

/// A whole number is as large as it likes: what is beyond a bound counts as the bound.
fn unbound(parameter: &mut Value) {
    if let Some(schema) = parameter["schema"].as_object_mut().filter(|schema| schema["type"] == "integer") {
        schema.remove("format");
    }
}

/// Adds what the routes of its kind have in common.
fn complete(operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    parameters.into_iter().flatten().for_each(unbound);
    let tag = operation["tags"][0].as_str().unwrap_or_default().to_owned();
    let (scheme, refusals): (Option<&str>, &[Refusal]) = match tag.as_str() {
        "usage" | "keys" | "subscriptions" => (Some("user"), &[UNAUTHORIZED, TOO_FAST]),
        "admin" => (Some("user"), &[UNAUTHORIZED, FORBIDDEN, TOO_FAST]),
        "tracked" => (Some("api_key"), &[UNAUTHORIZED, OVER_LIMIT]),
        "scheduler" => (Some("scheduler"), &[UNAUTHORIZED, TOO_FAST]),
        _ => (None, &[TOO_FAST]),
    };
    operation["security"] = scheme.map_or(json!([]), |scheme| json!([{ scheme: [] }]));
    let takes_body = operation.get("requestBody").is_some();
    let takes_input = takes_body || operation.get("parameters").is_some();
    let own = refusals.iter().chain(&ANYWHERE);
    let of_input = [(takes_input, &MALFORMED), (takes_body, &TOO_LARGE)];
    let of_input = of_input.into_iter().filter(|(takes, _)| *takes).map(|(_, refusal)| refusal);
    let answers_json = operation["responses"]["200"]["content"].get(JSON).is_some();
    let is_read = answers_json && !takes_body && scheme == Some("user");
    let answers = &mut operation["responses"];
    if is_read {
        answers["304"] = json!({ "description": "The client has it, as `If-None-Match` says" });
    }
    for refusal in own.chain(of_input) {
        let answer = &mut answers[refusal.status.to_string()];
        // What the route says of it is more to the point.
        if answer.get("description").is_none() {
            answer["description"] = refusal.description.into();
        }
        add_forms(answer, refusal.shapes);
    }
    if let Some(answers) = answers.as_object_mut() {
        for (status, answer) in answers {
            if status.starts_with(['4', '5']) && answer.get("content").is_none() {
                add_forms(answer, &["Failure"]);
            }
            add_headers(status, answer);
            if tag == "tracked" && ["200", "429"].contains(&status.as_str()) {
                add_quota_headers(answer);
            }
            if is_read && ["200", "304"].contains(&status.as_str()) {
                answer["headers"]["etag"] = text("Names the body");
            }
        }
    }
}

/// The two forms of an error's body, beside what the route says of it.
fn add_forms(answer: &mut Value, shapes: &[&str]) {
    let named = |name: &&str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let shape = match shapes {
        [shape] => named(shape),
        shapes => json!({ "anyOf": shapes.iter().map(named).collect::<Vec<_>>() }),
    };
    answer["content"][PROBLEM] = json!({ "schema": { "allOf": [named(&"Problem"), &shape] } });
    answer["content"][JSON] = json!({ "schema": shape });
}

fn text(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

fn add_headers(status: &str, answer: &mut Value) {
    let headers = &mut answer["headers"];
    headers["x-request-id"] = text("Id of the request, in the logs too");
    if let "429" | "503" = status {
        headers["retry-after"] = json!({
            "description": "Seconds after which it may be tried again",
            "schema": { "type": "integer", "minimum": 1 },
        });
    }
    if status == "401" {
        headers["www-authenticate"] = text("The scheme that the route takes");
    }
}

/// Where the account stands with its plan. A refusal for the rate has none.
fn add_quota_headers(answer: &mut Value) {
    let whole = |description: &str| json!({ "description": description, "schema": { "type": "integer", "minimum": -1 } });
    let headers = &mut answer["headers"];
    headers["x-ratelimit-limit"] = whole("Calls of the period; -1: unlimited");
    headers["x-ratelimit-remaining"] = whole("Calls left of them; -1: unlimited");
    headers["x-ratelimit-reset"] = json!({
        "description": "End of the period",
        "schema": { "type": "string", "format": "date-time" },
    });
    headers["ratelimit-policy"] =
        text("The plan's quota as the IETF's draft has it: `\"free-monthly\";q=1000;w=2592000`");
    headers["ratelimit"] =
        text("What is left of it: `\"free-monthly\";r=12;t=86400`; not where it is unlimited");
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().map(Map::iter_mut).into_iter().flatten()
}
