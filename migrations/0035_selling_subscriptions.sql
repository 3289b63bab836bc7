-- When a subscription at Stripe ends by itself. Null: it goes on.
alter table eco_subscriptions add column cancel_time timestamptz;

-- What is asked of Stripe about subscriptions. A change is written down before it is sent, and asks for a state, so that
-- it may be asked for again; one of a subscription is under way at a time.
create table eco_stripe_changes (
    change_id              bigint      generated always as identity primary key,
    eco_id                 text        not null references eco_identities,
    stripe_subscription_id text        not null,
    change                 jsonb       not null,  -- exactly as it is asked for
    attempt                int         not null default 1 check (attempt >= 1),  -- each has a key of its own
    attempt_time           timestamptz not null default now(),
    due_time               timestamptz not null default now(),  -- from when on another makes it than who wrote it down
    failures               int         not null default 0,
    failure                text,                  -- why it failed last
    outcome                text check (outcome in ('done', 'refused', 'superseded')),
    created_time           timestamptz not null default now(),
    finished_time          timestamptz,
    check ((outcome is null) = (finished_time is null))
);
create unique index eco_stripe_changes_open on eco_stripe_changes (stripe_subscription_id) where finished_time is null;
create index eco_stripe_changes_due on eco_stripe_changes (due_time) where finished_time is null;
grant select, insert, update on eco_stripe_changes to nexus_billing;
create trigger nexus_audit after insert or update of outcome on eco_stripe_changes for each row
    execute function nexus_audit('stripe_change', 'change_id', 'stripe_subscription_id,change,outcome,failure');

-- Checkouts that lead to subscriptions. At most one of an account is not known to be over; each ends before its key does.
create table eco_checkouts (
    eco_id       text        not null references eco_identities,
    number       int         not null check (number >= 1),
    plan         text        not null check (plan in ('free', 'pro', 'enterprise')),
    checkout     jsonb       not null,  -- exactly as it is sent
    session_id   text        unique,    -- null: not opened yet
    created_time timestamptz not null default now(),
    closed_time  timestamptz,           -- no session of it is open any more
    end_due_time timestamptz,           -- from when on a worker ends it: its account is closed; null: it may be used
    failures     int         not null default 0,  -- of ending it
    primary key (eco_id, number)
);
create unique index eco_checkouts_open on eco_checkouts (eco_id) where closed_time is null;
create index eco_checkouts_end_due on eco_checkouts (end_due_time)
    where closed_time is null and end_due_time is not null;
grant select, insert, update on eco_checkouts to nexus_billing;

-- Requests about subscriptions at Stripe, for repeats: what was written down for one is followed, and not written again.
create table eco_sale_requests (
    eco_id       text        not null references eco_identities,
    request_id   uuid        not null,
    asked        jsonb       not null,
    change_id    bigint      references eco_stripe_changes,  -- null: nothing was to be changed
    answer       jsonb,      -- null: not known yet
    created_time timestamptz not null default now(),
    primary key (eco_id, request_id)
);
grant select, insert, update on eco_sale_requests to nexus_billing;

-- Customers that are to be made at Stripe for accounts that may have to pay; the id is kept with the account.
create table eco_stripe_customers (
    eco_id        text        primary key references eco_identities,
    email         text,       -- exactly as it is sent
    attempt       int         not null default 1 check (attempt >= 1),  -- each has a key of its own
    attempt_time  timestamptz not null default now(),
    due_time      timestamptz not null default now(),
    failures      int         not null default 0,
    failure       text,       -- why it failed last
    outcome       text        check (outcome in ('made', 'refused', 'unneeded')),
    finished_time timestamptz,
    check ((outcome is null) = (finished_time is null))
);
create index eco_stripe_customers_due on eco_stripe_customers (due_time) where finished_time is null;
grant select, insert, update on eco_stripe_customers to nexus_billing;
