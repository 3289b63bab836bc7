-- Since when an account's subscription grants its plan, or does not. What is counted in a period's last segment, late
-- events too, accrues overage if the plan was granted when the period ended, whatever became of the subscription later.
-- The first row says what was before it, too.

-- Nothing is missed between what is there and the trigger.
lock table eco_subscriptions in share row exclusive mode;

create table eco_plan_grants (
    eco_id       text        not null references eco_identities,
    changed_time timestamptz not null,
    granted      boolean     not null,
    primary key (eco_id, changed_time)
);
grant select, insert on eco_plan_grants to nexus_billing;

insert into eco_plan_grants (eco_id, changed_time, granted)
select distinct on (s.eco_id) s.eco_id, clock_timestamp(), s.status in ('trialing', 'active', 'past_due')
from eco_subscriptions s
order by s.eco_id, s.ended_time desc nulls first, s.subscription_id desc;

create function nexus_note_plan_grant() returns trigger
language plpgsql
as $$
declare
    v_granted boolean;
    v_last    eco_plan_grants;
begin
    -- Of the subscription in force, whichever row was written.
    select s.status in ('trialing', 'active', 'past_due') into v_granted
    from eco_subscriptions s where s.eco_id = new.eco_id
    order by s.ended_time desc nulls first, s.subscription_id desc limit 1;
    select * into v_last from eco_plan_grants g where g.eco_id = new.eco_id order by g.changed_time desc limit 1;
    if v_granted is distinct from v_last.granted then
        -- In the order in which they are written, which a transaction's time is not: it may have begun long before.
        insert into eco_plan_grants (eco_id, changed_time, granted)
        values (new.eco_id, greatest(clock_timestamp(), v_last.changed_time + interval '1 microsecond'), v_granted);
    end if;
    return null;
end
$$;
revoke execute on function nexus_note_plan_grant() from public;
create trigger nexus_note_plan_grant after insert or update of status, ended_time on eco_subscriptions for each row
    execute function nexus_note_plan_grant();
