-- Leases that are held. A replica of usage-svc is a holder: it is granted units of an account, decides checks
-- from memory, and gives back what it has not spent. Only the holder itself gives units back, so that no clock
-- and no guess about who is alive decides about the limit.

create table eco_quota_holders (
    holder_id      uuid        primary key,
    name           text        not null,  -- for people
    started_time   timestamptz not null default now(),
    heartbeat_time timestamptz not null default now()
) with (fillfactor = 50);
grant select, insert, update, delete on eco_quota_holders to nexus_usage;

-- A lease without a holder is a grant of the version before: all of it was spent as it was granted.
alter table eco_quota_leases
    add column holder_id      uuid,
    add column returned_units bigint not null default 0,
    add column settled_time   timestamptz,  -- when its holder gave back what it had not spent
    -- Not validated: the rows of the version before have the defaults.
    add constraint eco_quota_leases_returned check (returned_units between 0 and granted_units) not valid,
    add constraint eco_quota_leases_settled check (returned_units = 0 or settled_time is not null) not valid;

-- Leases that are out: few beside those that are settled or without a holder, so that it is made at once.
create index eco_quota_leases_unsettled on eco_quota_leases (eco_id, period_start)
    where settled_time is null and holder_id is not null;

-- Whether a holder gives signs of life. That it does not decides nothing about its units: it may come back.
create function nexus_holder_is_heard(p_heartbeat_time timestamptz) returns boolean
language sql stable parallel safe
as $$ select coalesce(p_heartbeat_time > now() - interval '10 seconds', false) $$;

-- Grants units of an account's period, under the lock of its row.
--
-- At least `p_least` units or none; with a limit, all that wait (`p_need`) as far as they are left, and more
-- only as long as much is left: at most `p_want`, and half of what is left shared by the holders, so that
-- grants shrink towards the end. Without a limit what is wanted is granted.
--
-- `granted`: null where the period is over or has not begun, 0 where too little is left.
-- `consumed`: units consumed of the period, the grant included.
-- `outstanding`: where too little is left, whether other holders may give some back, and `recallable`,
-- whether one of them gives signs of life.
create function nexus_grant_quota(
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
        granted := case when v_left < greatest(p_least, 1) then 0
                        else least(v_left, greatest(p_least, p_need,
                                                    least(p_want, (v_left + 2 * v_holders - 1) / (2 * v_holders)))) end;
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

-- Takes back what a holder has not spent of its leases, each once: a lease that is settled stays as it is, so
-- that a settlement may be repeated. What was recorded against a lease is not given back, whatever the holder
-- says. Returns the accounts of the leases and what came back; those that got something, and with
-- `p_answer` all of them, are told to whoever waits for it.
--
-- Locks are taken as everywhere: the accounts' rows, then leases, each in the order of their keys.
create function nexus_settle_leases(p_lease_ids uuid[], p_unspent_units bigint[], p_answer boolean)
returns table (account text, period timestamptz, units bigint)
language plpgsql
as $$
begin
    perform from eco_quota_usage q
    where (q.eco_id, q.period_start) in (select l.eco_id, l.period_start from eco_quota_leases l
                                         where l.lease_id = any(p_lease_ids))
    order by q.eco_id, q.period_start for update;
    perform from eco_quota_leases l where l.lease_id = any(p_lease_ids) order by l.lease_id for update;
    return query
    with settled as (
        update eco_quota_leases l
        set settled_time = now(), returned_units = least(u.unspent, l.granted_units - l.booked_units)
        from unnest(p_lease_ids, p_unspent_units) as u (lease_id, unspent)
        where l.lease_id = u.lease_id and l.settled_time is null
        returning l.eco_id, l.period_start, l.returned_units
    ), sums as (
        select s.eco_id, s.period_start, sum(s.returned_units)::bigint as returned from settled s group by 1, 2
    ), given_back as (
        update eco_quota_usage q set returned_units = q.returned_units + s.returned
        from sums s where q.eco_id = s.eco_id and q.period_start = s.period_start and s.returned > 0
    )
    select s.eco_id, s.period_start, s.returned from sums s;
    perform pg_notify('nexus_changes', 'returned:' || a.eco_id)
    from (select distinct l.eco_id from eco_quota_leases l
          where l.lease_id = any(p_lease_ids) and (p_answer or l.returned_units > 0)) as a;
end
$$;

-- Makes sure that a grant whose answer was lost gives nothing: all of it is returned, and if it has not
-- happened yet, it cannot happen any more, because its id is taken.
create function nexus_disown_lease(
    p_lease_id     uuid,
    p_eco_id       text,
    p_period_start timestamptz,
    p_period_end   timestamptz
) returns void
language plpgsql
as $$
begin
    insert into eco_quota_usage (eco_id, period_start) values (p_eco_id, p_period_start) on conflict do nothing;
    -- A grant that is under way holds this lock until it is done.
    perform from eco_quota_usage q where q.eco_id = p_eco_id and q.period_start = p_period_start for update;
    insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units, returned_units, settled_time)
    values (p_lease_id, p_eco_id, p_period_start, p_period_end, 1, 1, now()) on conflict do nothing;
    perform nexus_settle_leases(array[p_lease_id], array[9223372036854775807], false);
end
$$;

revoke execute on function
    nexus_grant_quota, nexus_settle_leases, nexus_disown_lease from public;
grant execute on function
    nexus_grant_quota, nexus_settle_leases, nexus_disown_lease to nexus_usage;
