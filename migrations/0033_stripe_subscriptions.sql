-- What the next run tells of a period that was parked outside of runs. Null: it was told.
alter table eco_usage_records add column parked_message text;
create index eco_usage_records_untold on eco_usage_records (eco_id) where parked_message is not null;

-- Since when a charge is taken off a draft that nobody finalises, to be charged anew. Null: it is not.
alter table eco_overage_charges add column take_back_time timestamptz;
create index eco_overage_charges_take_back on eco_overage_charges (eco_id)
    where take_back_time is not null and status = 'succeeded';

-- Charges that no invoice of a cycle takes any more, unless one took them before: the subscription at Stripe that they
-- are of has ended, whether or not the account has another by now. Those of no subscription go with the account's last
-- one; while it has one that goes on, that one takes them. Where it never had any, no cycle ever comes: those of a
-- period that is settled are stranded, under the empty name.
create or replace view eco_stranded_charges as
select h.eco_id, h.charge_id, h.attempt, h.payload ->> 'customer' as customer, s.stripe_subscription_id,
       h.currency_code, h.stripe_invoice_item_id, h.created_time, h.finished_time
from eco_overage_charges h
join eco_subscriptions s on s.eco_id = h.eco_id and s.ended_time is not null and s.stripe_subscription_id
    = coalesce(h.payload ->> 'subscription',
               (select l.stripe_subscription_id from eco_subscriptions l
                where l.eco_id = h.eco_id and l.stripe_subscription_id is not null
                order by l.ended_time desc nulls first, l.subscription_id desc limit 1))
where h.status = 'succeeded' and h.payload ->> 'invoice' is null
union all
select h.eco_id, h.charge_id, h.attempt, h.payload ->> 'customer', '', h.currency_code, h.stripe_invoice_item_id,
       h.created_time, greatest(h.finished_time, r.settled_time)
from eco_overage_charges h
join eco_usage_records r on r.eco_id = h.eco_id and r.period_start = h.period_start and r.settled_time is not null
where h.status = 'succeeded' and h.payload ->> 'invoice' is null and h.payload ->> 'subscription' is null
  and not exists (select from eco_subscriptions s
                  where s.eco_id = h.eco_id and s.stripe_subscription_id is not null);

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
    primary key (eco_id, number)
);
create unique index eco_checkouts_open on eco_checkouts (eco_id) where closed_time is null;
grant select, insert, update on eco_checkouts to nexus_billing;
