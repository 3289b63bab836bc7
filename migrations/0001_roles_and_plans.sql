-- One role per service, with only its grants (the grants stand beside each table). A service logs in as
-- any user that is a member of its role and does SET ROLE; roles belong to the whole cluster, so they may
-- exist already.
do $$
declare
    r text;
begin
    foreach r in array array['nexus_usage', 'nexus_billing', 'nexus_analytics'] loop
        begin
            execute format('create role %I nologin', r);
        exception when duplicate_object or unique_violation then
            null; -- another database of this cluster has made it
        end;
        -- Whoever migrates may act as each service. A superuser may already; but who creates a role is,
        -- from PostgreSQL 16 on, a member that may administer it and not act as it.
        if not pg_has_role(current_user, r, case when current_setting('server_version_num')::int < 160000
                                                 then 'member' else 'set' end) then
            execute format('grant %I to current_user', r);
        end if;
    end loop;
end
$$;

grant usage on schema public to nexus_usage, nexus_billing, nexus_analytics;
-- A service is ready when the schema is the one it was built with.
grant select on _sqlx_migrations to nexus_usage, nexus_billing, nexus_analytics;

-- Plans are data. A change adds a version; nothing that was counted or billed under an older one alters.
create table eco_plans (
    plan           text        not null check (plan in ('free', 'pro', 'enterprise')),
    version        int         not null check (version >= 1),
    included_units bigint      check (included_units >= 0),  -- null: unlimited
    hard_limit     boolean     not null,
    created_time   timestamptz not null default now(),
    primary key (plan, version),
    check (not (hard_limit and included_units is null))
);

-- One price per plan version and currency; money is integer micros of the currency.
create table eco_plan_prices (
    plan              text   not null,
    version           int    not null,
    currency_code     text   not null check (currency_code ~ '^[A-Z]{3}$'),
    monthly_micros    bigint not null check (monthly_micros >= 0),
    overage_micros    bigint not null default 0 check (overage_micros >= 0),  -- of overage_per_units units; 0: not billed
    overage_per_units bigint not null default 1 check (overage_per_units >= 1),
    primary key (plan, version, currency_code),
    foreign key (plan, version) references eco_plans
);

insert into eco_plans (plan, version, included_units, hard_limit) values
    ('free', 1, 1000, true),
    ('pro', 1, 100000, false),
    ('enterprise', 1, null, false);
insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros) values
    ('free', 1, 'USD', 0, 0),
    ('pro', 1, 'USD', 49000000, 1000),
    ('enterprise', 1, 'USD', 500000000, 0);

grant select on eco_plans, eco_plan_prices to nexus_usage;
grant select, insert on eco_plans, eco_plan_prices to nexus_billing;
