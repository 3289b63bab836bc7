//! Nobody reaches another's data by any route: every route of the document, with the ids of another account wherever it
//! takes one, asked by each kind of caller.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_testkit::settings::{service_token, user_token};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    suite::{Suite, event},
};

pub(crate) const VICTIM: &str = "eco_victim";
pub(crate) const OTHER: &str = "eco_other";

/// What another account has that can be named.
pub(crate) struct Victim {
    pub(crate) key_id: String,
    pub(crate) charge_id: String,
    /// Of the database, what is the victim's; it stays.
    state: Vec<(String, String)>,
}

impl Victim {
    /// An account with usage, a key, a charge; and one that is curious.
    pub(crate) async fn new(suite: &Suite) -> Result<Self> {
        // Nothing is to be told in the background.
        sqlx::query("update eco_usage_thresholds set percents = '{}'").execute(&suite.db.pool).await?;
        for eco_id in [VICTIM, OTHER] {
            suite.account(eco_id, Plan::Pro).await?;
            suite.stripe_customer(eco_id).await?;
        }
        suite.record(vec![event(VICTIM, "/v1/secret-of-victim", 200, 112_500)]).await?;
        assert_eq!(suite.run_overage().await?.body["results"]["charged"], 1);
        let key = suite.post_as(VICTIM, "/api/keys/generate", &json!({"name": "victim's"})).await?;
        let charges = suite.get_as(VICTIM, "/api/usage/charges").await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("an id");
        Ok(Self {
            key_id: text(&key.body["key_id"])?,
            charge_id: text(&charges.body["charges"][0]["charge_id"])?,
            state: Vec::new(),
        })
    }

    /// Remembers what is the victim's.
    pub(crate) async fn settled(mut self, suite: &Suite) -> Result<Self> {
        self.state = state(suite).await?;
        Ok(self)
    }

    /// Nothing of the victim's is another than it was.
    pub(crate) async fn is_unchanged(&self, suite: &Suite) -> Result<()> {
        assert_eq!(state(suite).await?, self.state);
        Ok(())
    }

    /// Whether a text tells of the victim.
    pub(crate) fn is_told_by(&self, text: &str) -> bool {
        [VICTIM, "victim", &self.key_id, &self.charge_id].iter().any(|mark| text.contains(mark))
    }
}

/// Tables that follow others in the background, when they may, and queues of what is to follow.
const FOLLOWING: [&str; 5] = [
    "eco_account_changes",
    "eco_account_figures",
    "eco_usage_changes",
    "eco_usage_crossings",
    "eco_usage_records",
];

/// Digests of the victim's rows, by table.
async fn state(suite: &Suite) -> Result<Vec<(String, String)>> {
    let tables = "select distinct c.relname::text from pg_attribute a join pg_class c on c.oid = a.attrelid
                  where a.attname = 'eco_id' and c.relkind in ('r', 'p') and not c.relispartition
                    and c.relnamespace = 'public'::regnamespace and c.relname != all($1) order by 1";
    let tables: Vec<String> = sqlx::query_scalar(tables).bind(FOLLOWING).fetch_all(&suite.db.pool).await?;
    assert!(tables.len() > 10, "{tables:?}");
    let mut state = Vec::new();
    for table in tables {
        let query = format!(
            "select coalesce(md5(string_agg(row::text, '|' order by row::text)), '') from \"{table}\" row
             where eco_id = $1"
        );
        let digest = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(VICTIM).fetch_one(&suite.db.pool);
        state.push((table, digest.await?));
    }
    Ok(state)
}

/// How a user is answered who is not the victim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    /// With what is the user's own, whatever the request says.
    Own,
    /// As if there were no such thing: 404.
    Missing,
    /// 403.
    Forbidden,
    /// 401: a user's token is no credential here.
    NoCredential,
    /// Nobody needs to be known; nothing is told of anybody.
    Open,
}

struct Route {
    method: Method,
    /// As the document has it.
    template: &'static str,
    /// What the ids of the template stand for.
    ids: Value,
    body: Option<Value>,
    other: Other,
}

fn routes(victim: &Victim) -> Vec<Route> {
    let route =
        |method: Method, template, other| Route { method, template, ids: json!({}), body: None, other };
    let get = |template, other| route(Method::GET, template, other);
    let post =
        |template, body: Value, other| Route { body: Some(body), ..route(Method::POST, template, other) };
    let with = |ids: Value, route: Route| Route { ids, ..route };
    let (account, charge) = (json!({"id": VICTIM}), json!({"charge_id": victim.charge_id}));
    let key = json!({"key_id": victim.key_id, "eco_id": VICTIM});
    vec![
        get("/api/usage/current", Other::Own),
        get("/api/usage/history", Other::Own),
        get("/api/usage/endpoints", Other::Own),
        get("/api/usage/overage", Other::Own),
        get("/api/usage/spend-cap", Other::Own),
        Route {
            body: Some(json!({"spend_cap_usd": 1, "eco_id": VICTIM})),
            ..route(Method::PUT, "/api/usage/spend-cap", Other::Own)
        },
        get("/api/usage/forecast", Other::Own),
        get("/api/usage/export", Other::Own),
        get("/api/usage/charges", Other::Own),
        with(charge.clone(), get("/api/usage/charges/{charge_id}", Other::Missing)),
        get("/api/subscriptions/current", Other::Own),
        post("/api/subscriptions/checkout", json!({"plan": "pro", "eco_id": VICTIM}), Other::Own),
        post("/api/subscriptions/cancel", json!({"eco_id": VICTIM}), Other::Own),
        post("/api/subscriptions/reactivate", json!({"eco_id": VICTIM}), Other::Own),
        get("/api/keys/list", Other::Own),
        post("/api/keys/generate", json!({"name": "mine", "eco_id": VICTIM}), Other::Own),
        post("/api/keys/revoke", key.clone(), Other::Missing),
        post("/api/keys/rotate", key, Other::Missing),
        get("/api/admin/analytics/overview", Other::Forbidden),
        get("/api/admin/analytics/history", Other::Forbidden),
        get("/api/admin/analytics/users", Other::Forbidden),
        get("/api/admin/revenue", Other::Forbidden),
        with(account.clone(), get("/api/admin/accounts/{id}", Other::Forbidden)),
        with(account, get("/api/admin/accounts/{id}/charges", Other::Forbidden)),
        with(charge, get("/api/admin/charges/{charge_id}", Other::Forbidden)),
        get("/api/secure/ping", Other::NoCredential),
        post("/api/cron/process-overage", json!({}), Other::NoCredential),
        post("/webhooks/stripe", json!({}), Other::Open),
        get("/healthz", Other::Open),
        get("/readyz", Other::Open),
        get("/openapi.json", Other::Open),
    ]
}

impl Route {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.template)
    }

    /// Asks, with the victim's name wherever somebody may look for one.
    async fn ask(&self, suite: &Suite, authorization: Option<&str>) -> Result<Answer> {
        let mut path = self.template.to_owned();
        for (name, id) in self.ids.as_object().into_iter().flatten() {
            path = path.replace(&format!("{{{name}}}"), id.as_str().unwrap_or_default());
        }
        assert!(!path.contains('{'), "{path}: an id that the table does not fill in");
        let query = format!(
            "eco_id={VICTIM}&ecoId={VICTIM}&account={VICTIM}&user={VICTIM}&start=2026-01-01&end=2026-02-01"
        );
        let request = suite.request(self.method.as_str(), &format!("{path}?{query}"))?;
        let mut request = request.header("x-eco-id", VICTIM).header("grpc-metadata-eco-id", VICTIM);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        Answer::of(request).await
    }
}

#[tokio::test]
async fn nobody_reaches_anothers_data_by_any_route() -> Result<()> {
    let suite = Suite::start().await?;
    let victim = Victim::new(&suite).await?.settled(&suite).await?;
    let document = Answer::of(suite.request("GET", "/openapi.json")?).await?.body;
    let routes = routes(&victim);
    let mut unswept = BTreeMap::new();
    for (path, item) in document["paths"].as_object().context("paths")? {
        for method in item.as_object().context("an item")?.keys() {
            unswept.insert(format!("{} {path}", method.to_uppercase()), ());
        }
    }
    let user = format!("Bearer {}", user_token(OTHER)?);
    let key = suite.api_key(OTHER, false).await?;
    let service = format!("Bearer {}", service_token(&Scope::ALL)?);
    let bad = format!("Bearer {}", user_token(VICTIM)?.rsplit_once('.').context("a token")?.0);
    for route in &routes {
        let name = route.name();
        assert!(unswept.remove(&name).is_some(), "{name} is not in the document");
        let is_open = route.other == Other::Open;
        for (caller, authorization) in
            [("nobody", None), ("a service", Some(&service)), ("an unsigned token", Some(&bad))]
        {
            let answer = route.ask(&suite, authorization.map(String::as_str)).await?;
            let told = format!("{name} by {caller}: {answer:?}");
            assert!(is_open || answer.status == 401, "{told}");
            assert!(!victim.is_told_by(&answer.body.to_string()), "{told}");
        }
        let answer = route.ask(&suite, Some(&key)).await?;
        let is_tracked = route.template == "/api/secure/ping";
        assert!(
            is_open || answer.status == if is_tracked { 200 } else { 401 },
            "{name} by a key: {answer:?}"
        );
        assert!(!victim.is_told_by(&answer.body.to_string()), "{name} by a key: {answer:?}");

        let answer = route.ask(&suite, Some(&user)).await?;
        let told = format!("{name} by another user: {answer:?}");
        match route.other {
            // A checkout without a price at Stripe, or a subscription that is not there, is the user's own trouble.
            Other::Own => assert!([200, 409].contains(&answer.status.as_u16()), "{told}"),
            Other::Missing => assert_eq!(answer.status, 404, "{told}"),
            Other::Forbidden => assert_eq!(answer.status, 403, "{told}"),
            Other::NoCredential => assert_eq!(answer.status, 401, "{told}"),
            Other::Open => {}
        }
        assert!(!victim.is_told_by(&answer.body.to_string()), "{told}");
    }
    assert!(unswept.is_empty(), "routes that the sweep leaves out: {:?}", unswept.keys());
    victim.is_unchanged(&suite).await
}
