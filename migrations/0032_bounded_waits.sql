-- What is granted at once, where units are limited. A holder that is killed loses what it was granted and has not told
-- anyone of; before, all that waited at it could be in one grant.

-- As before, but of what waits (`p_need`) no more is granted at once than half of what is left shared by the holders, or
-- 16 units: who still waits asks again, and is granted from what is left then.
create or replace function nexus_grant_quota(
    p_lease_id     uuid,
    p_holder_id    uuid,
    p_eco_id       text,
    p_period_start timestamptz,
    p_period_end   timestamptz,
    p_limit        bigint,
    p_least        bigint,
    p_need         bigint,
    p_want         bigint,
    out granted     bigint,
    out consumed    bigint,
    out outstanding boolean,
    out recallable  boolean
)
language plpgsql
as $$
declare
    v_left    bigint;
    v_holders bigint;
    v_share   bigint;
begin
    outstanding := false;
    recallable := false;
    if now() < p_period_start or now() >= p_period_end then
        return;
    end if;
    loop
        select q.granted_units - q.returned_units into consumed
        from eco_quota_usage q where q.eco_id = p_eco_id and q.period_start = p_period_start for update;
        exit when found;
        insert into eco_quota_usage (eco_id, period_start) values (p_eco_id, p_period_start) on conflict do nothing;
    end loop;
    consumed := consumed + coalesce((select sum(c.unadmitted_units)::bigint from eco_usage_counters c
                                     where c.eco_id = p_eco_id and c.period_start = p_period_start), 0);
    if p_limit is null then
        granted := greatest(p_least, p_need, p_want);
    else
        v_left := greatest(p_limit - consumed, 0);
        select greatest(count(*), 1) into v_holders
        from eco_quota_holders h where nexus_holder_is_heard(h.heartbeat_time);
        v_share := (v_left + 2 * v_holders - 1) / (2 * v_holders);
        granted := case when v_left < greatest(p_least, 1) then 0
                        else least(v_left, greatest(p_least, least(p_need, greatest(v_share, 16)),
                                                    least(p_want, v_share))) end;
    end if;
    if granted > 0 then
        update eco_quota_usage q set granted_units = q.granted_units + granted
        where q.eco_id = p_eco_id and q.period_start = p_period_start;
        insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units, holder_id)
        values (p_lease_id, p_eco_id, p_period_start, p_period_end, granted, p_holder_id);
        consumed := consumed + granted;
    elsif v_left < p_least then
        select count(*) > 0, coalesce(bool_or(nexus_holder_is_heard(h.heartbeat_time)), false)
        into outstanding, recallable
        from eco_quota_leases l left join eco_quota_holders h using (holder_id)
        where l.eco_id = p_eco_id and l.period_start = p_period_start and l.settled_time is null
          and l.holder_id <> p_holder_id and l.granted_units > l.booked_units;
    end if;
end
$$;

-- What is forfeited follows from the leases; this was never written.
alter table eco_quota_usage drop column forfeited_units;

-- A settlement waits no longer for rows that others hold: whose accounts' are free is settled alone then.
alter function nexus_settle_leases(uuid[], bigint[], boolean) set lock_timeout = '1s';

-- As before, but a partition is made as a table and then attached. Making it as a partition takes a lock that any reader
-- of the raw log stands against, and behind which every flush waits; attaching stands beside both.
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
            execute format('create table public.%I (like public.eco_api_usage including all)',
                           'eco_api_usage_p' || suffix);
            execute format('alter table public.eco_api_usage attach partition public.%I for values from (%L) to (%L)',
                           'eco_api_usage_p' || suffix, d, d + 1);
            new := true;
        end if;
        if to_regclass('public.eco_usage_hourly_p' || suffix) is null then
            execute format('create table public.%I (like public.eco_usage_hourly including all) with (fillfactor = 70)',
                           'eco_usage_hourly_p' || suffix);
            execute format('alter table public.eco_usage_hourly attach partition public.%I
                            for values from (%L) to (%L)',
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

-- Dropping takes that lock. It waits for it no longer than flushes can wait behind it, and is tried again.
alter function nexus_drop_usage_partitions(date) set lock_timeout = '100ms';
