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
