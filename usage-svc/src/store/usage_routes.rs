//! `eco_usage_routes`: the route templates an account has in its rollups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::PgConnection;

/// Routes by account.
pub type Routes = HashMap<String, Vec<String>>;

/// What these accounts have.
#[tracing::instrument(name = "db.eco_usage_routes.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of(connection: &mut PgConnection, accounts: &[&str]) -> sqlx::Result<Routes> {
    let rows = sqlx::query!(
        // Row by row from the accounts, so that the cost is that of these, however many there are.
        r#"select k.eco_id as "eco_id!", r.routes
           from unnest($1::text[]) as k (eco_id)
           cross join lateral (select routes from eco_usage_routes where eco_id = k.eco_id offset 0) r"#,
        accounts as &[&str]
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.eco_id, row.routes)).collect())
}

/// Adds routes up to `max` an account, account by account in their order; returns what those accounts have then. Those
/// that stand for many paths come first: where ids are not all known for what they are, these take no place from them.
#[tracing::instrument(name = "db.eco_usage_routes.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn add(
    connection: &mut PgConnection,
    new: &BTreeMap<&str, BTreeSet<&str>>,
    max: i32,
) -> sqlx::Result<Routes> {
    let pairs = || {
        new.iter().flat_map(|(account, routes)| {
            let (of_many, of_one): (Vec<&&str>, Vec<&&str>) =
                routes.iter().partition(|route| route.contains("{id}"));
            of_many.into_iter().chain(of_one).map(|route| (*account, *route))
        })
    };
    let rows = sqlx::query!(
        "insert into eco_usage_routes as r (eco_id, routes)
         select u.eco_id, (array_agg(u.route order by u.position))[1 : $3]
         from unnest($1::text[], $2::text[]) with ordinality as u (eco_id, route, position)
         group by u.eco_id
         order by min(u.position)
         on conflict (eco_id) do update set routes = nexus_routes_add(r.routes, excluded.routes, $3)
         returning eco_id, routes",
        &pairs().map(|pair| pair.0).collect::<Vec<_>>() as &[&str],
        &pairs().map(|pair| pair.1).collect::<Vec<_>>() as &[&str],
        max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.eco_id, row.routes)).collect())
}
