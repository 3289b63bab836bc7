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

grant select on eco_identities, eco_subscriptions to nexus_usage;
grant select on eco_identities to nexus_analytics;
grant select, insert, update on eco_identities, eco_subscriptions to nexus_billing;

-- Monthly periods follow the anchor: its day of month, clamped to the month's last day (31 Jan, 28 Feb,
-- 31 Mar), its time of day, in UTC, half-open. nexus_core::period is the same rule; a test holds the two
-- together. Plain expressions, so that the planner inlines them: lists of all accounts need them for each.

-- Calendar months from the anchor's month to that of an instant.
create function nexus_period_months(p_anchor timestamptz, p_at timestamptz) returns int
language sql immutable parallel safe
as $$
    select ((date_part('year', p_at at time zone 'UTC') - date_part('year', p_anchor at time zone 'UTC')) * 12
            + date_part('month', p_at at time zone 'UTC') - date_part('month', p_anchor at time zone 'UTC'))::int
$$;

-- Number of the period that contains an instant; the anchor begins number 0.
create function nexus_period_number(p_anchor timestamptz, p_at timestamptz) returns int
language sql immutable parallel safe
as $$
    select nexus_period_months(p_anchor, p_at)
           - case when (p_anchor at time zone 'UTC') + make_interval(months => nexus_period_months(p_anchor, p_at))
                       > p_at at time zone 'UTC' then 1 else 0 end
$$;

-- Start of the period that contains an instant.
create function nexus_period_start(p_anchor timestamptz, p_at timestamptz) returns timestamptz
language sql immutable parallel safe
as $$
    select ((p_anchor at time zone 'UTC') + make_interval(months => nexus_period_number(p_anchor, p_at)))
           at time zone 'UTC'
$$;

-- End of that period, exclusive.
create function nexus_period_end(p_anchor timestamptz, p_at timestamptz) returns timestamptz
language sql immutable parallel safe
as $$
    select ((p_anchor at time zone 'UTC') + make_interval(months => nexus_period_number(p_anchor, p_at) + 1))
           at time zone 'UTC'
$$;
