-- Usage: the raw log, the counters, the daily rollup, quota and keys; written by usage-svc only.

create table eco_api_keys (
    key_id              text        primary key check (key_id ~ '^eco_api_[A-Za-z0-9]{22}$'),
    eco_id              text        not null references eco_identities,
    secret_sha256       bytea       not null check (length(secret_sha256) = 32),
    name                text        not null,
    scopes              text[]      not null default '{}',
    test_mode           boolean     not null default false,
    status              text        not null default 'active' check (status in ('active', 'revoked')),
    created_time        timestamptz not null default now(),
    last_used_time      timestamptz,
    revoked_time        timestamptz
);
create index eco_api_keys_account on eco_api_keys (eco_id, created_time desc);
grant select, insert, update on eco_api_keys to nexus_usage;

-- The raw log: one row per event, never updated. Identity is (event_id, account, UTC day); the id comes
-- first because it grows with time. Daily partitions, made ahead and dropped by retention.
create table eco_api_usage (
    event_id         uuid        not null,
    eco_id           text        not null,
    event_day        date        not null,  -- UTC day of event_time
    event_time       timestamptz not null,
    period_start     timestamptz not null,  -- the period it counts in; the one of its time but for events
                                           -- from before the anchor and after the grace
    segment          int         not null,
    units_count      bigint      not null,
    endpoint         text        not null,  -- as it was given
    route            text,                  -- its normalised template in the rollups; null: the endpoint itself
    method           text        not null,
    status_code      smallint    not null,
    response_time_ms int         not null,
    api_key_id       text,
    admission_id     uuid,                  -- lease it was admitted under
    test_mode        boolean     not null,  -- metered apart: never limited, billed or rolled up
    late             boolean     not null,  -- came after the grace of its own period
    primary key (event_id, eco_id, event_day)
) partition by range (event_day);
grant select, insert on eco_api_usage to nexus_usage;

-- From this day on the raw log is whole: a day before it cannot be rebuilt.
create table eco_usage_retention (
    singleton         boolean primary key default true check (singleton),
    raw_complete_from date    not null
);
insert into eco_usage_retention (raw_complete_from) values ((now() at time zone 'UTC')::date - 36);
grant select on eco_usage_retention to nexus_usage;

-- Both functions run with their owner's rights, so that nothing of the caller's may stand in for a name:
-- temporary tables come last.

-- Makes the partitions of the days from p_from to p_to, where they are missing; returns how many it made.
create function nexus_ensure_usage_partitions(p_from date, p_to date) returns int
language plpgsql security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    d    date := p_from;
    name text;
    made int := 0;
begin
    -- Replicas may call this at once.
    perform pg_advisory_xact_lock(hashtext('nexus_usage_partitions'));
    while d <= p_to loop
        name := 'eco_api_usage_p' || to_char(d, 'YYYYMMDD');
        if to_regclass('public.' || name) is null then
            execute format('create table public.%I partition of public.eco_api_usage for values from (%L) to (%L)',
                           name, d, d + 1);
            made := made + 1;
        end if;
        d := d + 1;
    end loop;
    return made;
end
$$;

-- Drops the partitions of the days before p_before, which must leave at least 40 days; returns how many.
create function nexus_drop_usage_partitions(p_before date) returns int
language plpgsql security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    name    text;
    dropped int := 0;
begin
    if p_before > (now() at time zone 'UTC')::date - 40 then
        raise exception 'retention of the raw log is at least 40 days, % would leave less', p_before;
    end if;
    perform pg_advisory_xact_lock(hashtext('nexus_usage_partitions'));
    update public.eco_usage_retention set raw_complete_from = greatest(raw_complete_from, p_before);
    for name in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'public.eco_api_usage'::regclass
    loop
        -- Not in the query: there it might be asked of other relations, whose names end in no day.
        continue when to_date(right(name, 8), 'YYYYMMDD') >= p_before;
        execute format('drop table public.%I', name);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;
revoke execute on function nexus_ensure_usage_partitions, nexus_drop_usage_partitions from public;
grant execute on function nexus_ensure_usage_partitions, nexus_drop_usage_partitions to nexus_usage;

-- Late events reach 35 days back; the day after tomorrow is always ready.
select nexus_ensure_usage_partitions((now() at time zone 'UTC')::date - 36, (now() at time zone 'UTC')::date + 7);

-- Counters per account, period, segment (a plan change begins one) and slot. A writer has a slot of its
-- own, so that writers never wait for each other; the count is the sum over the slots.
create table eco_usage_counters (
    eco_id           text        not null,
    period_start     timestamptz not null,
    segment          int         not null,
    slot             smallint    not null,
    recorded_units   bigint      not null,  -- basis of api_calls, overage and rollups
    unadmitted_units bigint      not null,  -- recorded without an admission: consumed by being recorded
    test_units       bigint      not null,  -- of test-mode keys, in neither of the above
    last_event_time  timestamptz not null,
    primary key (eco_id, period_start, segment, slot)
) with (fillfactor = 70);
grant select, insert, update on eco_usage_counters to nexus_usage;
grant select on eco_usage_counters to nexus_billing;

-- A queue from usage-svc to billing-svc: which account's period has new usage. Appended in the flush,
-- taken by whoever refreshes eco_usage_records.
create table eco_usage_changes (
    change_id    bigint      generated always as identity primary key,
    eco_id       text        not null,
    period_start timestamptz not null
);
grant insert on eco_usage_changes to nexus_usage;
grant select, delete on eco_usage_changes to nexus_billing;

-- Rollup per day, account, route template, method and status class. The sketch is a merged latency
-- histogram: pairs (bucket, events), buckets of base 2^(1/32); see nexus_core::sketch.
create table eco_usage_daily (
    eco_id         text     not null,
    day            date     not null,
    route          text     not null,
    method         text     not null,
    status_class   smallint not null check (status_class between 1 and 5),
    units_count    bigint   not null,
    event_count    bigint   not null,
    latency_sum_ms bigint   not null,
    latency_sketch bigint[] not null,
    primary key (eco_id, day, route, method, status_class)
) with (fillfactor = 70);
grant select, insert, update, delete on eco_usage_daily to nexus_usage;
grant select on eco_usage_daily to nexus_analytics;

-- Quota: units handed out per account and period. consumed = granted - returned + Σ unadmitted.
create table eco_quota_usage (
    eco_id          text        not null,
    period_start    timestamptz not null,
    granted_units   bigint      not null default 0,
    returned_units  bigint      not null default 0,
    forfeited_units bigint      not null default 0,  -- of the granted: lost with their holder
    primary key (eco_id, period_start)
) with (fillfactor = 70);

-- A grant of units. Recording against it books units; what goes beyond the grant is unadmitted.
create table eco_quota_leases (
    lease_id      uuid        primary key,
    eco_id        text        not null,
    period_start  timestamptz not null,
    period_end    timestamptz not null,
    granted_units bigint      not null check (granted_units >= 1),
    booked_units  bigint      not null default 0 check (booked_units between 0 and granted_units),
    created_time  timestamptz not null default now()
) with (fillfactor = 80);
create index eco_quota_leases_period_end on eco_quota_leases (period_end);
grant select, insert, update on eco_quota_usage to nexus_usage;
grant select, insert, update, delete on eco_quota_leases to nexus_usage;

-- Log files that were imported, each with the shift its times got: a repeated import sends the same events.
create table eco_imports (
    file_digest  text        primary key check (file_digest ~ '^[0-9a-f]{64}$'),
    shift_ms     bigint      not null,
    created_time timestamptz not null default now()
);
grant select, insert on eco_imports to nexus_usage;
