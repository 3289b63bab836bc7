-- What lists and overviews of all accounts show, a row per account that is not closed, ready to be read in every
-- order: to compute it for each account anew took a second at 100,000 of them.

-- Nothing is missed between what is there and the triggers.
lock table eco_identities, eco_subscriptions, eco_plan_prices, eco_usage_records in share row exclusive mode;

-- As before, with what is sorted by, which period it is of, and until when it holds if nobody changes anything: the
-- period ends, or the plan that waits is in force.
create or replace view eco_current_usage as
select i.eco_id, i.email, i.currency_code, i.created_time, t.plan, s.status,
       coalesce(r.api_calls, 0)      as api_calls,
       coalesce(r.overage_units, 0)  as overage_units,
       coalesce(r.overage_micros, 0) as overage_micros,
       m.subscription_micros,
       r.last_event_time,
       coalesce(r.overage_micros, 0) + m.subscription_micros as revenue_micros,
       (extract(epoch from i.created_time) * 1000000)::bigint as created_micros,
       nexus_period_start(s.anchor_time, now()) as period_start,
       least(nexus_period_end(s.anchor_time, now()),
             case when s.next_plan_time > now() then s.next_plan_time end) as valid_until
from eco_identities i
     join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
     cross join lateral (
         select case when s.next_plan_time <= now() then s.next_plan else s.plan end as plan,
                case when s.next_plan_time <= now() then s.next_plan_version else s.plan_version end as version) t
     left join eco_plan_prices p
         on p.plan = t.plan and p.version = t.version and p.currency_code = i.currency_code
     cross join lateral (
         select case when s.status in ('active', 'past_due') then coalesce(p.monthly_micros, 0) else 0 end
                    as subscription_micros) m
     left join eco_usage_records r
         on r.eco_id = i.eco_id and r.period_start = nexus_period_start(s.anchor_time, now())
            and r.period_end > now()  -- so that the cost does not grow with the periods that are over
where i.status = 'active';
grant select on eco_current_usage to nexus_billing;

-- Rows of that view as they were when they were last computed. Usage of the period comes here in the statement that writes
-- the summary; the rest is computed anew by billing-svc's refresher, where it no longer holds.
create table eco_account_figures (
    eco_id              text        primary key,
    email               text,
    currency_code       text        not null,
    created_time        timestamptz not null,
    plan                text        not null,
    status              text        not null,
    api_calls           bigint      not null,
    overage_units       bigint      not null,
    overage_micros      bigint      not null,
    subscription_micros bigint      not null,
    last_event_time     timestamptz,
    revenue_micros      bigint      not null,
    created_micros      bigint      not null,
    period_start        timestamptz not null,
    valid_until         timestamptz not null
);
create index eco_account_figures_by_usage   on eco_account_figures (api_calls desc, eco_id);
create index eco_account_figures_by_overage on eco_account_figures (overage_units desc, eco_id);
create index eco_account_figures_by_revenue on eco_account_figures (revenue_micros desc, eco_id);
create index eco_account_figures_by_created on eco_account_figures (created_micros desc, eco_id);
create index eco_account_figures_valid_until on eco_account_figures (valid_until);
grant select, insert, update, delete on eco_account_figures to nexus_billing;

-- Computes the rows of these accounts anew; those of closed accounts go. They are locked first, so that what is committed
-- before is seen by the statement that computes, and who alters a summary meanwhile comes after it.
create function nexus_compute_figures(p_eco_ids text[]) returns void
language sql
begin atomic
    select from eco_account_figures f where f.eco_id = any (p_eco_ids) order by f.eco_id for update;
    insert into eco_account_figures as f
        (eco_id, email, currency_code, created_time, plan, status, api_calls, overage_units, overage_micros,
         subscription_micros, last_event_time, revenue_micros, created_micros, period_start, valid_until)
    select u.eco_id, u.email, u.currency_code, u.created_time, u.plan, u.status, u.api_calls, u.overage_units,
           u.overage_micros, u.subscription_micros, u.last_event_time, u.revenue_micros, u.created_micros,
           u.period_start, u.valid_until
    from eco_current_usage u where u.eco_id = any (p_eco_ids) order by u.eco_id
    on conflict (eco_id) do update set
        email               = excluded.email,
        currency_code       = excluded.currency_code,
        created_time        = excluded.created_time,
        plan                = excluded.plan,
        status              = excluded.status,
        api_calls           = excluded.api_calls,
        overage_units       = excluded.overage_units,
        overage_micros      = excluded.overage_micros,
        subscription_micros = excluded.subscription_micros,
        last_event_time     = excluded.last_event_time,
        revenue_micros      = excluded.revenue_micros,
        created_micros      = excluded.created_micros,
        period_start        = excluded.period_start,
        valid_until         = excluded.valid_until;
    delete from eco_account_figures f
    where f.eco_id = any (p_eco_ids) and not exists (select from eco_current_usage u where u.eco_id = f.eco_id);
end;
revoke execute on function nexus_compute_figures from public;
grant execute on function nexus_compute_figures to nexus_billing;

-- Accounts that are new, closed, or on other terms since their row was computed; the refresher takes them off.
create table eco_account_changes (
    change_id bigint generated always as identity primary key,
    eco_id    text   not null
);
create index eco_account_changes_eco_id on eco_account_changes (eco_id);
grant select, insert, delete on eco_account_changes to nexus_billing;

create function nexus_account_changed() returns trigger
language plpgsql as $$
begin
    insert into eco_account_changes (eco_id) values (case when tg_op = 'DELETE' then old.eco_id else new.eco_id end);
    return null;
end
$$;
create trigger nexus_account_changed after insert or update or delete on eco_identities for each row
    execute function nexus_account_changed();
create trigger nexus_account_changed after insert or update or delete on eco_subscriptions for each row
    execute function nexus_account_changed();

create function nexus_summary_changed() returns trigger
language plpgsql as $$
begin
    update eco_account_figures f
    set api_calls       = n.api_calls,
        overage_units   = n.overage_units,
        overage_micros  = n.overage_micros,
        last_event_time = n.last_event_time,
        revenue_micros  = n.overage_micros + f.subscription_micros
    from changed n
    where f.eco_id = n.eco_id and f.period_start = n.period_start
      and (f.api_calls, f.overage_units, f.overage_micros, f.last_event_time)
          is distinct from (n.api_calls, n.overage_units, n.overage_micros, n.last_event_time);
    -- There may be none yet, or that of the period before: somebody may be computing it without this.
    insert into eco_account_changes (eco_id)
    select n.eco_id from changed n
    where n.period_end > now()
      and not exists (select from eco_account_figures f where f.eco_id = n.eco_id and f.period_start = n.period_start);
    return null;
end
$$;
create trigger nexus_summary_inserted after insert on eco_usage_records
    referencing new table as changed for each statement execute function nexus_summary_changed();
create trigger nexus_summary_updated after update on eco_usage_records
    referencing new table as changed for each statement execute function nexus_summary_changed();

create function nexus_price_changed() returns trigger
language plpgsql as $$
begin
    insert into eco_account_changes (eco_id)
    select s.eco_id from eco_subscriptions s
    where s.ended_time is null and (new.plan, new.version) in ((s.plan, s.plan_version), (s.next_plan, s.next_plan_version));
    return null;
end
$$;
create trigger nexus_price_changed after insert or update on eco_plan_prices for each row
    execute function nexus_price_changed();
revoke execute on function nexus_account_changed, nexus_summary_changed, nexus_price_changed from public;

-- What readers read: rows that hold, and in place of those that do not, or are not there yet, the accounts computed
-- anew. Together they are right at every moment, whether the refresher has come to them or not.
create view eco_figures_that_hold as
select f.eco_id, f.email, f.currency_code, f.created_time, f.plan, f.status, f.api_calls, f.overage_units,
       f.overage_micros, f.subscription_micros, f.last_event_time, f.revenue_micros, f.created_micros
from eco_account_figures f
where f.valid_until > now() and not exists (select from eco_account_changes c where c.eco_id = f.eco_id);

create view eco_figures_anew as
select u.eco_id, u.email, u.currency_code, u.created_time, u.plan, u.status, u.api_calls, u.overage_units,
       u.overage_micros, u.subscription_micros, u.last_event_time, u.revenue_micros, u.created_micros
from eco_current_usage u
-- An array, so that they are looked up by it, however many the planner believes there are.
where u.eco_id = any (array(select c.eco_id from eco_account_changes c
                            union
                            select f.eco_id from eco_account_figures f where f.valid_until <= now()));

create view eco_accounts_now as
select * from eco_figures_that_hold union all select * from eco_figures_anew;
grant select on eco_figures_that_hold, eco_figures_anew, eco_accounts_now to nexus_analytics;

select nexus_compute_figures(array(select eco_id from eco_identities));
