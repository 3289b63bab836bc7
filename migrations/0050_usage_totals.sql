-- What all accounts used by day, so that a chart of it costs the same however many accounts there are.

-- Per UTC day and slot: of each day the sums over eco_usage_daily, which every flush keeps in the statement that adds to
-- that. A writer has its slot to itself (as of the counters), so that none waits here; the sum over the slots counts.
create table eco_usage_totals (
    day              date     not null,
    slot             smallint not null,
    units_count      bigint   not null,
    successful_units bigint   not null,  -- of status class 2
    failed_units     bigint   not null,  -- of the classes 4 and 5
    event_count      bigint   not null,
    latency_sum_ms   bigint   not null,
    primary key (day, slot)
) with (fillfactor = 70);
grant select, insert, update, delete on eco_usage_totals to nexus_usage;
grant select on eco_usage_totals to nexus_analytics;

-- Adds up all days anew. A flush that is under way adds to them once this has ended: nothing is left out, or in twice.
-- Servers of the version before do not add to the totals; what they recorded beside those of this one is in them by this.
create function nexus_rebuild_usage_totals() returns void
language plpgsql
as $$
begin
    lock table eco_usage_totals in share row exclusive mode;
    delete from eco_usage_totals;
    insert into eco_usage_totals (day, slot, units_count, successful_units, failed_units, event_count, latency_sum_ms)
    select day, 0, sum(units_count), coalesce(sum(units_count) filter (where status_class = 2), 0),
           coalesce(sum(units_count) filter (where status_class >= 4), 0), sum(event_count), sum(latency_sum_ms)
    from eco_usage_daily
    group by day;
end
$$;
revoke execute on function nexus_rebuild_usage_totals from public;
select nexus_rebuild_usage_totals();

-- As before, and the day's totals with it.
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
    delete from eco_usage_totals where day = p_day;
    insert into eco_usage_totals (day, slot, units_count, successful_units, failed_units, event_count, latency_sum_ms)
    select p_day, 0, sum(units_count), coalesce(sum(units_count) filter (where status_class = 2), 0),
           coalesce(sum(units_count) filter (where status_class >= 4), 0), sum(event_count), sum(latency_sum_ms)
    from eco_usage_hourly
    where hour >= v_start and hour < v_end
    having count(*) > 0;
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
