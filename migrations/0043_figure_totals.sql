-- Totals of the figures of all accounts, and how many there are of each plan and status: kept as they change, so that an
-- overview and the size of a list cost the same however many accounts there are. And indexes for lists by the beginning
-- of an id or an email.

-- Nothing is missed between what is there and the triggers.
lock table eco_account_figures in share row exclusive mode;

create table eco_figure_totals (
    plan                text   not null,
    status              text   not null,
    currency_code       text   not null,
    users               bigint not null,
    api_calls           bigint not null,
    overage_micros      bigint not null,
    subscription_micros bigint not null,
    primary key (plan, status, currency_code)
);
grant select, insert, update on eco_figure_totals to nexus_billing;

-- What is to be added to them. Appended by whoever alters figures, so that nobody waits for another's transaction;
-- added by the refresher, and by readers until then.
create table eco_figure_deltas (
    delta_id            bigint generated always as identity primary key,
    plan                text   not null,
    status              text   not null,
    currency_code       text   not null,
    users               bigint not null,
    api_calls           bigint not null,
    overage_micros      bigint not null,
    subscription_micros bigint not null
);
grant select, insert, delete on eco_figure_deltas to nexus_billing;

create function nexus_figures_inserted() returns trigger
language plpgsql as $$
begin
    insert into eco_figure_deltas (plan, status, currency_code, users, api_calls, overage_micros, subscription_micros)
    select plan, status, currency_code, count(*), sum(api_calls), sum(overage_micros), sum(subscription_micros)
    from inserted group by plan, status, currency_code;
    return null;
end
$$;
create function nexus_figures_updated() returns trigger
language plpgsql as $$
begin
    insert into eco_figure_deltas (plan, status, currency_code, users, api_calls, overage_micros, subscription_micros)
    select d.plan, d.status, d.currency_code, sum(d.users), sum(d.api_calls), sum(d.overage_micros), sum(d.subscription_micros)
    from (select plan, status, currency_code, 1 as users, api_calls, overage_micros, subscription_micros from after
          union all
          select plan, status, currency_code, -1, -api_calls, -overage_micros, -subscription_micros from before) d
    group by d.plan, d.status, d.currency_code
    having (sum(d.users), sum(d.api_calls), sum(d.overage_micros), sum(d.subscription_micros)) <> (0, 0, 0, 0);
    return null;
end
$$;
create function nexus_figures_deleted() returns trigger
language plpgsql as $$
begin
    insert into eco_figure_deltas (plan, status, currency_code, users, api_calls, overage_micros, subscription_micros)
    select plan, status, currency_code, -count(*), -sum(api_calls), -sum(overage_micros), -sum(subscription_micros)
    from deleted group by plan, status, currency_code;
    return null;
end
$$;
create trigger nexus_figures_inserted after insert on eco_account_figures
    referencing new table as inserted for each statement execute function nexus_figures_inserted();
create trigger nexus_figures_updated after update on eco_account_figures
    referencing old table as before new table as after for each statement execute function nexus_figures_updated();
create trigger nexus_figures_deleted after delete on eco_account_figures
    referencing old table as deleted for each statement execute function nexus_figures_deleted();
revoke execute on function nexus_figures_inserted, nexus_figures_updated, nexus_figures_deleted from public;

-- Adds what there is to be added; whoever calls it has the refresher's lock.
create function nexus_add_figure_deltas() returns void
language sql
begin atomic
    with taken as (delete from eco_figure_deltas returning *)
    insert into eco_figure_totals as t
        (plan, status, currency_code, users, api_calls, overage_micros, subscription_micros)
    select plan, status, currency_code, sum(users), sum(api_calls), sum(overage_micros), sum(subscription_micros)
    from taken group by plan, status, currency_code
    on conflict (plan, status, currency_code) do update set
        users               = t.users + excluded.users,
        api_calls           = t.api_calls + excluded.api_calls,
        overage_micros      = t.overage_micros + excluded.overage_micros,
        subscription_micros = t.subscription_micros + excluded.subscription_micros;
end;
revoke execute on function nexus_add_figure_deltas from public;
grant execute on function nexus_add_figure_deltas to nexus_billing;

-- What readers read: the totals, less the rows that do not hold, and in their place the accounts computed anew. It adds up
-- to eco_accounts_now at every moment.
create view eco_accounts_total as
select p.plan, p.status, p.currency_code, sum(p.users)::bigint as users, sum(p.api_calls)::bigint as api_calls,
       sum(p.overage_micros)::bigint as overage_micros, sum(p.subscription_micros)::bigint as subscription_micros
from (select plan, status, currency_code, users, api_calls, overage_micros, subscription_micros from eco_figure_totals
      union all
      select plan, status, currency_code, users, api_calls, overage_micros, subscription_micros from eco_figure_deltas
      union all
      select f.plan, f.status, f.currency_code, -1, -f.api_calls, -f.overage_micros, -f.subscription_micros
      from eco_account_figures f
      where f.eco_id = any (array(select c.eco_id from eco_account_changes c
                                  union
                                  select g.eco_id from eco_account_figures g where g.valid_until <= now()))
      union all
      select plan, status, currency_code, 1, api_calls, overage_micros, subscription_micros from eco_figures_anew) p
group by p.plan, p.status, p.currency_code;
grant select on eco_accounts_total to nexus_analytics;

insert into eco_figure_totals (plan, status, currency_code, users, api_calls, overage_micros, subscription_micros)
select plan, status, currency_code, count(*), sum(api_calls), sum(overage_micros), sum(subscription_micros)
from eco_account_figures group by plan, status, currency_code;

-- By bytes, as prefixes are compared.
create index eco_account_figures_by_id on eco_account_figures (eco_id collate "C");
create index eco_account_figures_by_email on eco_account_figures (lower(email) collate "C");
