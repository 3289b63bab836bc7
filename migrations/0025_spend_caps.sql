-- Spend caps. What an account's overage may cost in a period; beyond it a plan that bills overage refuses calls as a
-- hard limit does. The units that it allows follow from it and from the segments that are closed, so that they change
-- only with the plan or the cap. The trigger on accounts tells all replicas of usage-svc. One of the version before
-- knows no caps, and is granted nothing of an account that has one: caps are set once none is at work any more.

alter table eco_identities
    add column spend_cap_micros bigint,                  -- of the account's currency; null: no cap
    add column spend_cap_epoch  int not null default 0,  -- grows with every change of the cap
    -- Not validated: the rows there are have none.
    add constraint eco_identities_spend_cap check (spend_cap_micros >= 0) not valid;

-- What SetSpendCap was asked for, for repeats.
create table eco_spend_cap_requests (
    eco_id           text        not null references eco_identities,
    request_id       uuid        not null,
    spend_cap_micros bigint,  -- null: none
    created_time     timestamptz not null default now(),
    primary key (eco_id, request_id)
);
grant select, insert on eco_spend_cap_requests to nexus_billing;

-- As before, where the epoch of the account's terms is that of its plan and that of its cap together: both only grow,
-- so that the sum stays the same only where neither has changed.
create or replace function nexus_grant_quota(
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
    select s.plan_epoch + i.spend_cap_epoch into v_epoch
    from eco_subscriptions s join eco_identities i using (eco_id) where s.eco_id = p_eco_id
    order by s.ended_time desc nulls first, s.subscription_id desc limit 1;
    if v_epoch = p_plan_epoch then
        select g.granted, g.consumed, g.outstanding, g.recallable into granted, consumed, outstanding, recallable
        from nexus_grant_quota(p_lease_id, p_holder_id, p_eco_id, p_period_start, p_period_end,
                               p_limit, p_least, p_need, p_want) as g;
    end if;
end
$$;
