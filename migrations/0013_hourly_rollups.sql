-- Rollups per hour beside those per day. A flush adds to both; both are rebuilt from the raw log.

-- Latency sketches that are cheap to add to. An entry is one number, count * 1024 + bucket + 1 (buckets as in
-- nexus_sketch_bucket, from -1 to 845). A bucket may have several entries: its count is their sum, so that adding
-- is appending. nexus_core::sketch reads and writes the same.

-- The same sketch with one entry a bucket, by bucket.
create function nexus_sketch_compact(p_entries bigint[]) returns bigint[]
language sql immutable strict parallel safe
as $$
    select coalesce(array_agg(bucket + (n << 10) order by bucket), '{}')
    from (select e & 1023 as bucket, sum(e >> 10)::bigint as n from unnest(p_entries) as e group by 1) as buckets
$$;

-- Both together. Compact when it would grow beyond what a row holds without being stored elsewhere (2 kB): so
-- it is done once in a while, and not each time. Inlined: not declared strict.
create function nexus_sketch_add(a bigint[], b bigint[]) returns bigint[]
language sql immutable parallel safe
as $$
    select case when cardinality(a) + cardinality(b) <= 220 then a || b else nexus_sketch_compact(a || b) end
$$;

create aggregate nexus_sketch_all(bigint[]) (sfunc = array_cat, stype = bigint[], initcond = '{}');

-- Per hour, account, route template, method and status class. Calls are units_count, errors those of classes 4
-- and 5. Partitions and retention are those of the raw log. Keys compare by bytes: with the rules of a language
-- an upsert takes up to half as long again.
create table eco_usage_hourly (
    eco_id         text        collate "C" not null,
    hour           timestamptz not null,  -- its start
    route          text        collate "C" not null,
    method         text        collate "C" not null,
    status_class   smallint    not null check (status_class between 1 and 5),
    units_count    bigint      not null,
    event_count    bigint      not null,
    latency_sum_ms bigint      not null,
    sketch         bigint[]    not null,
    primary key (eco_id, hour, route, method, status_class)
) partition by range (hour);
alter table eco_usage_hourly alter sketch set storage external;  -- compressing costs more than it saves
grant select, insert, update, delete on eco_usage_hourly to nexus_usage;

-- A day's latencies are latency_sketch (pairs, written by versions before this one) and sketch together.
alter table eco_usage_daily alter latency_sketch set default '{}';
alter table eco_usage_daily add sketch bigint[] not null default '{}';
alter table eco_usage_daily alter sketch set storage external;
alter table eco_usage_daily
    alter eco_id type text collate "C", alter route type text collate "C", alter method type text collate "C";

-- Makes the partitions of the days from p_from to p_to, where they are missing, of the raw log and of the hourly
-- rollup; returns the days for which it made any.
create or replace function nexus_ensure_usage_partitions(p_from date, p_to date) returns int
language plpgsql security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    d      date := p_from;
    suffix text;
    made   int := 0;
    new    boolean;
begin
    -- Replicas may call this at once.
    perform pg_advisory_xact_lock(hashtext('nexus_usage_partitions'));
    while d <= p_to loop
        suffix := to_char(d, 'YYYYMMDD');
        new := false;
        if to_regclass('public.eco_api_usage_p' || suffix) is null then
            execute format('create table public.%I partition of public.eco_api_usage for values from (%L) to (%L)',
                           'eco_api_usage_p' || suffix, d, d + 1);
            new := true;
        end if;
        if to_regclass('public.eco_usage_hourly_p' || suffix) is null then
            execute format('create table public.%I partition of public.eco_usage_hourly
                            for values from (%L) to (%L) with (fillfactor = 70)',
                           'eco_usage_hourly_p' || suffix,
                           d::timestamp at time zone 'UTC', (d + 1)::timestamp at time zone 'UTC');
            new := true;
        end if;
        made := made + new::int;
        d := d + 1;
    end loop;
    return made;
end
$$;

-- Drops the partitions of the days before p_before, which must leave at least 40 days, of the raw log and of the
-- hourly rollup; returns how many days of the raw log.
create or replace function nexus_drop_usage_partitions(p_before date) returns int
language plpgsql security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    parent  regclass;
    name    text;
    dropped int := 0;
begin
    if p_before > (now() at time zone 'UTC')::date - 40 then
        raise exception 'retention of the raw log is at least 40 days, % would leave less', p_before;
    end if;
    perform pg_advisory_xact_lock(hashtext('nexus_usage_partitions'));
    update public.eco_usage_retention set raw_complete_from = greatest(raw_complete_from, p_before);
    -- In the order in which a flush comes to them.
    foreach parent in array array['public.eco_api_usage', 'public.eco_usage_hourly']::regclass[] loop
        for name in
            select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = parent
        loop
            -- Not in the query: there it might be asked of other relations, whose names end in no day.
            continue when to_date(right(name, 8), 'YYYYMMDD') >= p_before;
            execute format('drop table public.%I', name);
            dropped := dropped + (parent = 'public.eco_api_usage'::regclass)::int;
        end loop;
    end loop;
    return dropped;
end
$$;

do $$
declare
    v_from date;
    v_to   date;
begin
    select min(to_date(right(c.relname, 8), 'YYYYMMDD')), max(to_date(right(c.relname, 8), 'YYYYMMDD'))
    into v_from, v_to
    from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'public.eco_api_usage'::regclass;
    perform nexus_ensure_usage_partitions(v_from, v_to);
end
$$;

-- Rebuilds the rollups of one UTC day from the raw log, to the very same numbers the flushes made: the hours from
-- the events, the day from its hours. Returns the rows of the day. A flush holds the day's lock shared, so none is
-- half in. A day that is not wholly retained is refused.
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
    from (select eco_id, date_trunc('hour', event_time, 'UTC') as hour, coalesce(route, endpoint) as route, method,
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

-- The hours of the days that the raw log still has, for those that were counted before this migration.
select count(aggregate_daily_usage(day))
from (select distinct event_day as day from eco_api_usage) as days, eco_usage_retention
where day >= raw_complete_from;

-- A flush that met repeats goes through a temporary table, which everybody may make unless it was revoked.
do $$
begin
    if not has_database_privilege('nexus_usage', current_database(), 'temporary') then
        execute format('grant temporary on database %I to nexus_usage', current_database());
    end if;
end
$$;
