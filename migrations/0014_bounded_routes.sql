-- The route templates that an account has in its rollups, first come, first kept. Beyond a bound, which usage-svc
-- sets, calls are rolled up under `{other}`, and the raw log says so (eco_api_usage.route): a rebuild needs no more.
create table eco_usage_routes (
    eco_id text   primary key,
    routes text[] not null
);
grant select, insert, update on eco_usage_routes to nexus_usage;

-- Those known and those that are new, in their order, up to a number.
create function nexus_routes_add(p_known text[], p_new text[], p_max int) returns text[]
language sql immutable parallel safe
as $$
    select (p_known || array(select u.route from unnest(p_new) with ordinality as u (route, position)
                             where u.route <> all (p_known) order by u.position))[1 : p_max]
$$;
