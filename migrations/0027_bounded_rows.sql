-- What callers make up makes no rows without end.

-- The method that a call is rolled up under: the registered methods of HTTP, and gRPC; all others are one. The raw log
-- keeps what it was given. nexus_core::method has the same.
create function nexus_rollup_method(p_method text) returns text
language sql immutable strict parallel safe
as $$
    select case when p_method in (
        'ACL', 'BIND', 'CHECKIN', 'CHECKOUT', 'CONNECT', 'COPY', 'DELETE', 'GET', 'GRPC', 'HEAD',
        'LABEL', 'LINK', 'LOCK', 'MERGE', 'MKACTIVITY', 'MKCALENDAR', 'MKCOL', 'MKREDIRECTREF',
        'MKWORKSPACE', 'MOVE', 'OPTIONS', 'ORDERPATCH', 'PATCH', 'POST', 'PRI', 'PROPFIND',
        'PROPPATCH', 'PUT', 'QUERY', 'REBIND', 'REPORT', 'SEARCH', 'TRACE', 'UNBIND', 'UNCHECKOUT',
        'UNLINK', 'UNLOCK', 'UPDATE'
    ) then p_method else '{other}' end
$$;

-- As before, by these methods. Rows of other methods that were counted before this migration stay until their day is
-- rebuilt.
create or replace function aggregate_daily_usage(p_day date) returns bigint
language plpgsql
as $$
declare
    v_from  date;
    v_rows  bigint;
    v_start timestamptz := p_day::timestamp at time zone 'UTC';
    v_end   timestamptz := (p_day + 1)::timestamp at time zone 'UTC';
begin
    -- Partitions are neither made nor dropped meanwhile: whether the day is retained holds until the end, and
    -- maintenance waits here rather than for the tables, where all flushes would wait behind it.
    perform pg_advisory_xact_lock_shared(hashtext('nexus_usage_partitions'));
    perform pg_advisory_xact_lock(hashtext('nexus_usage_day'), p_day - date '2000-01-01');
    select raw_complete_from into strict v_from from eco_usage_retention;
    if p_day < v_from then
        raise exception 'the raw log of % is not wholly retained (it is from % on)', p_day, v_from
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    delete from eco_usage_hourly where hour >= v_start and hour < v_end;
    insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count,
                                  latency_sum_ms, sketch)
    select g.eco_id, g.hour, g.route, g.method, g.status_class, sum(g.units)::bigint, sum(g.n)::bigint,
           sum(g.latency)::bigint, array_agg(g.bucket + 1 + (g.n << 10) order by g.bucket)
    from (select eco_id, date_trunc('hour', event_time, 'UTC') as hour, coalesce(route, endpoint) as route,
                 nexus_rollup_method(method) as method,
                 (status_code / 100)::smallint as status_class, nexus_sketch_bucket(response_time_ms) as bucket,
                 sum(units_count) as units, count(*) as n, sum(response_time_ms::bigint) as latency
          from eco_api_usage
          where event_day = p_day and not test_mode
          group by 1, 2, 3, 4, 5, 6) as g
    group by g.eco_id, g.hour, g.route, g.method, g.status_class;
    delete from eco_usage_daily where day = p_day;
    insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count,
                                 latency_sum_ms, sketch)
    select eco_id, p_day, route, method, status_class, sum(units_count)::bigint, sum(event_count)::bigint,
           sum(latency_sum_ms)::bigint, nexus_sketch_compact(nexus_sketch_all(sketch))
    from eco_usage_hourly
    where hour >= v_start and hour < v_end
    group by eco_id, route, method, status_class;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

-- Leases that are made known as settled before they were granted; those of each account are few, and counted. (Not
-- concurrently: of the table's rows only those of the last hours remain.)
create index eco_quota_leases_made on eco_quota_leases (eco_id) where period_start = period_end;

-- As before, but of leases that are unknown an account makes at most 1,000 known within the hour that they are kept:
-- whoever makes ids up must not fill the table. Beyond, a lease that is unknown is not this client's.
create or replace function nexus_settle_lent_quota(
    p_lease_id   uuid,
    p_client_id  uuid,
    p_eco_id     text,
    p_used_units bigint,
    p_answer     boolean
) returns bigint
language plpgsql
as $$
declare
    v_lease eco_quota_leases;
begin
    -- Of what is wanted so that a grant that is under way cannot happen, an account has so many within the hour that
    -- they are kept.
    if (select count(*) from (select from eco_quota_leases l
                              where l.eco_id = p_eco_id and l.period_start = l.period_end limit 1000) as made) < 1000
    then
        -- It waits for a grant of this id that is under way, and holds no lock that this needs.
        insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units, returned_units,
                                      settled_time, client_id)
        values (p_lease_id, p_eco_id, now(), now(), 1, 1, now(), p_client_id)
        on conflict do nothing;
        if found then
            return 0;
        end if;
    end if;
    select * into v_lease from eco_quota_leases l where l.lease_id = p_lease_id;
    if not found then
        return null;
    end if;
    if v_lease.eco_id <> p_eco_id or v_lease.client_id is distinct from p_client_id then
        return null;
    end if;
    return coalesce((select s.units from nexus_settle_leases(array[p_lease_id],
                                                             array[greatest(v_lease.granted_units - p_used_units, 0)],
                                                             p_answer) s), 0);
end
$$;
