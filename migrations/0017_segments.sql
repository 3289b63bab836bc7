-- Changes of plan. A period is counted in segments: the first begins with it, each change of plan within it begins
-- the next. Every call belongs to exactly one, the one that is open when it is counted; what is counted before a
-- change is priced by the plan of before. A usage-svc of the version before counts in the first segment alone: plans
-- are changed once none is at work any more.

-- A change that waits for the period's end is in force from `next_plan_time` on by itself: whoever asks for the
-- plan compares the times. The next change of plan, whenever that is, moves it into `plan`.
alter table eco_subscriptions
    add column plan_epoch        int not null default 0,  -- grows with every change; a new subscription goes on from
                                                          -- that of the account's last
    add column next_plan         text,
    add column next_plan_version int,
    add column next_plan_time    timestamptz;             -- end of a period
-- Not validated: the rows there are have none.
alter table eco_subscriptions
    add constraint eco_subscriptions_next_plan_whole
        check (num_nulls(next_plan, next_plan_version, next_plan_time) in (0, 3)) not valid,
    add constraint eco_subscriptions_next_plan_version_fkey
        foreign key (next_plan, next_plan_version) references eco_plans not valid;

-- Segments that have ended, written by billing-svc and never altered. Plans and prices are versions that never
-- alter either. A segment without a row is the last of its period and takes what is counted in it, also late. Its
-- plan is that of the account's first row that was closed at the period's end or later; without one, the
-- subscription's.
create table eco_usage_segments (
    eco_id         text        not null references eco_identities,
    period_start   timestamptz not null,
    segment        int         not null check (segment >= 0),
    plan           text        not null,
    plan_version   int         not null,
    closed_time    timestamptz not null,
    recorded_units bigint,  -- sum of its counters for good; null: it ended with its period, and takes late events
    overage_units  bigint,  -- of them, those beyond what was included
    primary key (eco_id, period_start, segment),
    foreign key (plan, plan_version) references eco_plans,
    check ((recorded_units is null) = (overage_units is null))
);
grant select, insert on eco_usage_segments to nexus_billing;
grant select on eco_usage_segments to nexus_usage;

-- Answers of ChangePlan, for repeats.
create table eco_plan_requests (
    eco_id       text        not null references eco_identities,
    request_id   uuid        not null,
    plan         text        not null,  -- what was asked for
    apply_now    boolean     not null,
    account_plan text        not null,  -- the plan in force afterwards
    apply_time   timestamptz not null,
    created_time timestamptz not null default now(),
    primary key (eco_id, request_id)
);
grant select, insert on eco_plan_requests to nexus_billing;

-- A change of plan alters what the summary says of the period.
grant insert on eco_usage_changes to nexus_billing;

-- Accounts are divided into 64 ranges, each with an advisory lock (hashtext('nexus_plan_range'), range). Who counts
-- holds those of its accounts shared, in ascending order, before it reads which segments are open; a change of plan
-- holds the one of its account alone, before it adds up. So a flush of many accounts takes few locks, and a change
-- holds up few flushes.
create function nexus_plan_range(p_eco_id text) returns int
language sql immutable parallel safe
as $$ select hashtext(p_eco_id) & 63 $$;

-- As before, in the segment that is open.
create or replace function increment_api_calls(p_eco_id text, p_units bigint) returns bigint
language plpgsql
as $$
declare
    v_start   timestamptz;
    v_segment int;
begin
    if p_units < 1 then
        raise exception 'units must be at least 1, not %', p_units using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock_shared(hashtext('nexus_plan_range'), nexus_plan_range(p_eco_id));
    select nexus_period_start(s.anchor_time, now()) into v_start
    from eco_subscriptions s where s.eco_id = p_eco_id and s.ended_time is null;
    if v_start is null then
        raise exception 'unknown account %', p_eco_id using errcode = 'no_data_found';
    end if;
    select count(*) into v_segment from eco_usage_segments z
    where z.eco_id = p_eco_id and z.period_start = v_start and z.recorded_units is not null;
    perform increment_api_calls(array[p_eco_id], array[v_start], array[v_segment], 0::smallint,
                                array[p_units], array[p_units], array[0::bigint], array[now()]);
    return (select sum(recorded_units) from eco_usage_counters where eco_id = p_eco_id and period_start = v_start);
end
$$;

-- The same as the form without an epoch, as long as the account's plan has not changed since `p_plan_epoch`: else
-- `granted` is null, and the terms are to be read anew. That is asked under the lock of the row, so that nothing is
-- granted by the limit of a plan that was left before.
create function nexus_grant_quota(
    p_plan_epoch   int,
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
    v_epoch int;
begin
    outstanding := false;
    recallable := false;
    if now() < p_period_start or now() >= p_period_end then
        return;
    end if;
    loop
        perform from eco_quota_usage q where q.eco_id = p_eco_id and q.period_start = p_period_start for update;
        exit when found;
        insert into eco_quota_usage (eco_id, period_start) values (p_eco_id, p_period_start) on conflict do nothing;
    end loop;
    select s.plan_epoch into v_epoch from eco_subscriptions s where s.eco_id = p_eco_id
    order by s.ended_time desc nulls first, s.subscription_id desc limit 1;
    if v_epoch = p_plan_epoch then
        select g.granted, g.consumed, g.outstanding, g.recallable into granted, consumed, outstanding, recallable
        from nexus_grant_quota(p_lease_id, p_holder_id, p_eco_id, p_period_start, p_period_end,
                               p_limit, p_least, p_need, p_want) as g;
    end if;
end
$$;
revoke execute on function
    nexus_grant_quota(int, uuid, uuid, text, timestamptz, timestamptz, bigint, bigint, bigint, bigint) from public;
grant execute on function
    nexus_grant_quota(int, uuid, uuid, text, timestamptz, timestamptz, bigint, bigint, bigint, bigint) to nexus_usage;

-- As before, with the plan that is in force now.
create or replace view eco_current_usage as
select i.eco_id, i.email, i.currency_code, i.created_time, t.plan, s.status,
       coalesce(r.api_calls, 0)      as api_calls,
       coalesce(r.overage_units, 0)  as overage_units,
       coalesce(r.overage_micros, 0) as overage_micros,
       case when s.status in ('active', 'past_due') then coalesce(p.monthly_micros, 0) else 0 end
                                     as subscription_micros,
       r.last_event_time
from eco_identities i
     join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
     cross join lateral (
         select case when s.next_plan_time <= now() then s.next_plan else s.plan end as plan,
                case when s.next_plan_time <= now() then s.next_plan_version else s.plan_version end as version) t
     left join eco_plan_prices p
         on p.plan = t.plan and p.version = t.version and p.currency_code = i.currency_code
     left join eco_usage_records r
         on r.eco_id = i.eco_id and r.period_start = nexus_period_start(s.anchor_time, now())
            and r.period_end > now()  -- so that the cost does not grow with the periods that are over
where i.status = 'active';
