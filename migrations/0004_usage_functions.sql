-- The atomic counter update, set-based: arrays of one row per (account, period, segment), sorted by the
-- caller in that order so that writers take row locks in one order.
create function increment_api_calls(
    p_eco_ids          text[],
    p_period_starts    timestamptz[],
    p_segments         int[],
    p_slot             smallint,
    p_recorded_units   bigint[],
    p_unadmitted_units bigint[],
    p_test_units       bigint[],
    p_last_event_times timestamptz[]
) returns void
language sql
as $$
    insert into eco_usage_counters as c
        (eco_id, period_start, segment, slot, recorded_units, unadmitted_units, test_units, last_event_time)
    select u.eco_id, u.period_start, u.segment, p_slot, u.recorded, u.unadmitted, u.test, u.last_event_time
    from unnest(p_eco_ids, p_period_starts, p_segments, p_recorded_units, p_unadmitted_units, p_test_units,
                p_last_event_times)
         with ordinality as u (eco_id, period_start, segment, recorded, unadmitted, test, last_event_time, position)
    order by u.position
    on conflict (eco_id, period_start, segment, slot) do update set
        recorded_units   = c.recorded_units + excluded.recorded_units,
        unadmitted_units = c.unadmitted_units + excluded.unadmitted_units,
        test_units       = c.test_units + excluded.test_units,
        last_event_time  = greatest(c.last_event_time, excluded.last_event_time);
    insert into eco_usage_changes (eco_id, period_start)
    select distinct u.eco_id, u.period_start from unnest(p_eco_ids, p_period_starts) as u (eco_id, period_start);
$$;

-- The scalar form: units of one account, now, in its current period. Returns the period's new total.
create function increment_api_calls(p_eco_id text, p_units bigint) returns bigint
language plpgsql
as $$
declare
    v_start timestamptz;
begin
    if p_units < 1 then
        raise exception 'units must be at least 1, not %', p_units using errcode = 'invalid_parameter_value';
    end if;
    select nexus_period_start(s.anchor_time, now()) into v_start
    from eco_subscriptions s where s.eco_id = p_eco_id and s.ended_time is null;
    if v_start is null then
        raise exception 'unknown account %', p_eco_id using errcode = 'no_data_found';
    end if;
    perform increment_api_calls(array[p_eco_id], array[v_start], array[0], 0::smallint,
                                array[p_units], array[p_units], array[0::bigint], array[now()]);
    return (select sum(recorded_units) from eco_usage_counters where eco_id = p_eco_id and period_start = v_start);
end
$$;

-- Latency sketches: bigint[] of pairs (bucket, events), by bucket. Merging is addition, exact in any order.
create function nexus_sketch_merge(a bigint[], b bigint[]) returns bigint[]
language sql immutable strict parallel safe
as $$
    select coalesce(array_agg(x.v order by m.bucket, x.k), '{}')
    from (select p.arr[i] as bucket, sum(p.arr[i + 1])::bigint as n
          from (select a || b as arr) as p, generate_series(1, cardinality(p.arr), 2) as i
          group by 1) as m,
         lateral (values (0, m.bucket), (1, m.n)) as x (k, v)
$$;

-- Bucket of a latency in whole milliseconds: -1 for 0, else floor(32 * log2(ms)). The small addend keeps
-- powers of two, whose logarithm is exact, from falling below their bucket; nexus_core::sketch has the same.
-- Not declared strict: then it is inlined, which makes a rebuild several times faster.
create function nexus_sketch_bucket(p_ms int) returns bigint
language sql immutable parallel safe
as $$
    select case when p_ms <= 0 then -1 else floor(ln(p_ms::float8) * (32 / ln(2::float8)) + 1e-9)::bigint end
$$;

-- Rebuilds the rollup of one UTC day from the raw log, to the very same numbers the flushes made; returns
-- the rows written. A flush holds the day's lock shared, so none is half in. A day that is not wholly
-- retained is refused.
create function aggregate_daily_usage(p_day date) returns bigint
language plpgsql
as $$
declare
    v_from date;
    v_rows bigint;
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
    delete from eco_usage_daily where day = p_day;
    insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count,
                                 latency_sum_ms, latency_sketch)
    select g.eco_id, p_day, g.route, g.method, g.status_class, sum(g.units)::bigint, sum(g.n)::bigint,
           sum(g.latency)::bigint,
           (select array_agg(x.v order by b.bucket, x.k)
            from unnest(array_agg(g.bucket), array_agg(g.n)) as b (bucket, n),
                 lateral (values (0, b.bucket), (1, b.n)) as x (k, v))
    from (select eco_id, coalesce(route, endpoint) as route, method, (status_code / 100)::smallint as status_class,
                 nexus_sketch_bucket(response_time_ms) as bucket,
                 sum(units_count) as units, count(*) as n, sum(response_time_ms::bigint) as latency
          from eco_api_usage
          where event_day = p_day and not test_mode
          group by 1, 2, 3, 4, 5) as g
    group by g.eco_id, g.route, g.method, g.status_class;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

revoke execute on function
    increment_api_calls(text[], timestamptz[], int[], smallint, bigint[], bigint[], bigint[], timestamptz[]),
    increment_api_calls(text, bigint), aggregate_daily_usage from public;
grant execute on function
    increment_api_calls(text[], timestamptz[], int[], smallint, bigint[], bigint[], bigint[], timestamptz[]),
    increment_api_calls(text, bigint), aggregate_daily_usage to nexus_usage;
