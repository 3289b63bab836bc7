-- Billing: the summary per period, the ledger, its runs, Stripe's events; written by billing-svc only.

-- Summary per account and period. Usage columns are refreshed from the counters (within a second, and
-- exactly when billing asks); money columns are billing's. A charge locks this row, which no flush touches.
create table eco_usage_records (
    eco_id           text        not null references eco_identities,
    period_start     timestamptz not null,
    period_end       timestamptz not null,
    plan             text        not null,
    plan_version     int         not null,
    currency_code    text        not null check (currency_code ~ '^[A-Z]{3}$'),
    api_calls        bigint      not null default 0,
    overage_units    bigint      not null default 0,
    overage_micros   bigint      not null default 0,  -- exact cost of the overage
    billed_micros    bigint      not null default 0,  -- Σ of the ledger, charges in doubt included
    last_event_time  timestamptz,
    parked_reason    text,        -- why it cannot be charged; null: it can
    parked_time      timestamptz,
    settled_time     timestamptz, -- final settlement: rounded once, nothing more to come from this period
    primary key (eco_id, period_start),
    foreign key (plan, plan_version) references eco_plans,
    check (period_start < period_end)
);
create index eco_usage_records_unsettled on eco_usage_records (period_end) where settled_time is null;
grant select, insert, update on eco_usage_records to nexus_billing;

create table eco_overage_runs (
    run_id        uuid        primary key,
    request_id    uuid        unique,
    account_ids   text[],     -- null: every account
    status        text        not null check (status in ('running', 'finished', 'failed')),
    processed     int         not null default 0,
    charged       int         not null default 0,
    failed        int         not null default 0,
    total_micros  bigint      not null default 0,
    errors        jsonb       not null default '[]',  -- [{eco_id, reason, message}], the first 1,000
    started_time  timestamptz not null default now(),
    heartbeat_time timestamptz not null default now(),
    finished_time timestamptz
);
grant select, insert, update on eco_overage_runs to nexus_billing;

-- The ledger. A row is written, with its exact payload and key, before anything is sent to Stripe.
create table eco_overage_charges (
    charge_id              uuid        not null,  -- the same for all attempts; in the item's metadata
    attempt                int         not null check (attempt >= 1),
    eco_id                 text        not null,
    period_start           timestamptz not null,
    period_end             timestamptz not null,
    sequence               int         not null check (sequence >= 1),
    units_from             bigint      not null,  -- overage units before and after this charge
    units_to               bigint      not null,
    amount_micros          bigint      not null check (amount_micros <> 0),
    amount_minor           bigint      not null check (amount_minor <> 0),  -- the same in Stripe's minor units
    currency_code          text        not null,
    status                 text        not null check (status in ('pending', 'succeeded', 'failed', 'superseded')),
    idempotency_key        text        not null unique,
    payload                jsonb       not null,
    stripe_invoice_item_id text        unique,
    failure_reason         text,
    run_id                 uuid        references eco_overage_runs,
    created_time           timestamptz not null default now(),
    sent_time              timestamptz,
    finished_time          timestamptz,
    recheck_time           timestamptz,  -- superseded: from when to look for an item that came late; null: done
    primary key (charge_id, attempt),
    unique (eco_id, period_start, sequence, attempt),
    foreign key (eco_id, period_start) references eco_usage_records,
    check ((status = 'succeeded') = (stripe_invoice_item_id is not null)),
    check (recheck_time is null or status = 'superseded')
);
-- At most one charge of a period is in doubt, and a sequence number has at most one live attempt.
create unique index eco_overage_charges_pending on eco_overage_charges (eco_id, period_start) where status = 'pending';
create unique index eco_overage_charges_live on eco_overage_charges (eco_id, period_start, sequence)
    where status in ('pending', 'succeeded');
create index eco_overage_charges_recheck on eco_overage_charges (recheck_time) where recheck_time is not null;
create index eco_overage_charges_created on eco_overage_charges (eco_id, created_time desc);
grant select, insert, update on eco_overage_charges to nexus_billing;

create table eco_stripe_events (
    stripe_event_id text        primary key,
    type            text        not null,
    payload         jsonb       not null,
    received_time   timestamptz not null default now(),
    processed_time  timestamptz
);
grant select, insert, update on eco_stripe_events to nexus_billing;
