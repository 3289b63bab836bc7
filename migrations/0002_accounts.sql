-- Accounts and their subscriptions; written by billing-svc only.
create table eco_identities (
    eco_id              text        primary key check (eco_id ~ '^eco_[A-Za-z0-9_.:-]{1,60}$'),
    email               text,
    status              text        not null default 'active' check (status in ('active', 'closed')),
    currency_code       text        not null default 'USD' check (currency_code ~ '^[A-Z]{3}$'),
    stripe_customer_id  text        unique,
    created_time        timestamptz not null default now(),
    closed_time         timestamptz,
    create_request_id   uuid        unique,  -- makes a repeated creation return this account
    check ((status = 'closed') = (closed_time is not null))
);
create index eco_identities_created on eco_identities (created_time desc, eco_id);

-- The subscription an account has (ended_time is null) and those it had.
create table eco_subscriptions (
    subscription_id        bigint      generated always as identity primary key,
    eco_id                 text        not null references eco_identities,
    plan                   text        not null,
    plan_version           int         not null,
    status                 text        not null check (status in ('trialing', 'active', 'past_due', 'unpaid',
                                       'paused', 'incomplete', 'incomplete_expired', 'canceled')),
    anchor_time            timestamptz not null,  -- its day of month and time of day begin the periods
    stripe_subscription_id text        unique,
    started_time           timestamptz not null default now(),
    ended_time             timestamptz,
    foreign key (plan, plan_version) references eco_plans
);
create unique index eco_subscriptions_current on eco_subscriptions (eco_id) where ended_time is null;

grant select on eco_identities, eco_subscriptions to nexus_usage, nexus_analytics;
grant select, insert, update on eco_identities, eco_subscriptions to nexus_billing;

-- Start of the monthly period that contains an instant. Periods follow the anchor: its day of month,
-- clamped to the month's last day (31 Jan, 28 Feb, 31 Mar), its time of day, in UTC, half-open.
-- nexus_core::period is the same rule; a test holds the two together.
create function nexus_period_start(p_anchor timestamptz, p_at timestamptz) returns timestamptz
language sql immutable strict parallel safe
set timezone = 'UTC'
as $$
    select case when (a + make_interval(months => n)) <= t
                then (a + make_interval(months => n)) at time zone 'UTC'
                else (a + make_interval(months => n - 1)) at time zone 'UTC' end
    from (select p_anchor at time zone 'UTC' as a, p_at at time zone 'UTC' as t) as instants,
         lateral (select ((extract(year from t) - extract(year from a)) * 12
                          + extract(month from t) - extract(month from a))::int as n) as months
$$;

-- End of that period, exclusive.
create function nexus_period_end(p_anchor timestamptz, p_at timestamptz) returns timestamptz
language sql immutable strict parallel safe
set timezone = 'UTC'
as $$
    select case when (a + make_interval(months => n)) <= t
                then (a + make_interval(months => n + 1)) at time zone 'UTC'
                else (a + make_interval(months => n)) at time zone 'UTC' end
    from (select p_anchor at time zone 'UTC' as a, p_at at time zone 'UTC' as t) as instants,
         lateral (select ((extract(year from t) - extract(year from a)) * 12
                          + extract(month from t) - extract(month from a))::int as n) as months
$$;
