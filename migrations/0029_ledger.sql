-- What the ledger says of itself, corrections of usage, invoices that are made for charges, and repeats of requests.

-- What a charge follows from: counts, plans, prices and the ledger before it, as they were when it was written down.
-- Null: it was written down by a version that did not keep it.
alter table eco_overage_charges add column basis jsonb;

-- From when on a period is rounded for good. Null: 24 hours after its end.
alter table eco_usage_records add column settle_time timestamptz;

-- Corrections of usage. They count in the segment that is open when they are made, as if that many more or fewer
-- calls had been recorded in it, for everything that is shown and billed; raw log, counters, rollups and hard limits
-- know nothing of them. Rows are never altered.
create table eco_usage_adjustments (
    adjustment_id bigint      generated always as identity primary key,
    eco_id        text        not null references eco_identities,
    period_start  timestamptz not null,
    segment       int         not null check (segment >= 0),
    units         bigint      not null check (units <> 0),
    reason        text        not null check (length(reason) between 1 and 500),
    request_id    uuid        not null,
    api_calls     bigint      not null,  -- of the period, with it
    created_time  timestamptz not null default now(),
    unique (eco_id, request_id)
);
create index eco_usage_adjustments_period on eco_usage_adjustments (eco_id, period_start);
grant select, insert on eco_usage_adjustments to nexus_billing;
grant select on eco_usage_adjustments to nexus_usage;
create trigger nexus_audit after insert or update or delete on eco_usage_adjustments for each row
    execute function nexus_audit('usage_adjustment', 'adjustment_id', 'period_start,segment,units,reason');

-- Invoices made for what an account owes after its subscription at Stripe has ended, when no other takes it any more.
-- Like a charge, a settlement is written down before anything of it is sent; what is sent has a key of its own for each
-- of its steps and attempts.
create table eco_settlements (
    settlement_id     uuid        primary key,  -- in the invoice's metadata
    eco_id            text        not null references eco_identities,
    number            int         not null check (number >= 1),
    attempt           int         not null default 1 check (attempt >= 1),
    attempt_time      timestamptz not null default now(),
    invoice           jsonb       not null,  -- exactly as it is sent
    stripe_invoice_id text        unique,    -- null: not made yet, or there was nothing to put on one
    item_ids          text[]      not null default '{}',  -- that are put on it
    listed_time       timestamptz not null default now(),  -- charges that were made by then were looked at
    filled_time       timestamptz,
    finished_time     timestamptz,
    failure_reason    text,                  -- why it went no further
    created_time      timestamptz not null default now(),
    unique (eco_id, number)
);
create unique index eco_settlements_open on eco_settlements (eco_id) where finished_time is null;
grant select, insert, update on eco_settlements to nexus_billing;

-- Charges that no invoice of a cycle takes any more, unless one took them before: the subscription at Stripe that they
-- are of has ended, whether or not the account has another by now. Those of no subscription go with the account's last
-- one; while it has one that goes on, that one takes them.
create view eco_stranded_charges as
select h.eco_id, h.charge_id, h.attempt, h.payload ->> 'customer' as customer, s.stripe_subscription_id,
       h.currency_code, h.stripe_invoice_item_id, h.created_time, h.finished_time
from eco_overage_charges h
join eco_subscriptions s on s.eco_id = h.eco_id and s.ended_time is not null and s.stripe_subscription_id
    = coalesce(h.payload ->> 'subscription',
               (select l.stripe_subscription_id from eco_subscriptions l
                where l.eco_id = h.eco_id and l.stripe_subscription_id is not null
                order by l.ended_time desc nulls first, l.subscription_id desc limit 1))
where h.status = 'succeeded' and h.payload ->> 'invoice' is null;
grant select on eco_stranded_charges to nexus_billing;

-- Answers to requests, for repeats.
create table eco_billing_requests (
    method       text        not null,
    request_id   uuid        not null,
    request      jsonb       not null,
    answer       jsonb       not null,
    created_time timestamptz not null default now(),
    primary key (method, request_id)
);
grant select, insert on eco_billing_requests to nexus_billing;
