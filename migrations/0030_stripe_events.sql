-- Stripe's events are jobs. One is stored before its webhook is answered, and applied by whichever billing-svc takes
-- its row (for update skip locked): the row's lock is held until what it brought is committed. What an event says of
-- an object is not believed; it only tells which object to read at Stripe.

alter table eco_stripe_events
    add column object_id       text,         -- Stripe's id of what it is about
    add column subscription_id text,         -- Stripe's id of the subscription that this belongs to, as far as the event says so
    add column created_time    timestamptz,  -- when Stripe made the event
    add column attempts        int         not null default 0,      -- those that failed
    add column due_time        timestamptz not null default now(),  -- when it is to be applied, or tried again
    add column outcome         text,         -- what applying it came to; null: it is not processed
    add column failure         text,         -- why the last attempt failed
    add column parked_time     timestamptz;  -- it failed too often, and waits until Stripe sends it again
create index eco_stripe_events_due on eco_stripe_events (due_time) where processed_time is null and parked_time is null;
create index eco_stripe_events_subscription on eco_stripe_events (subscription_id, received_time) where subscription_id is not null;
create index eco_stripe_events_parked on eco_stripe_events (parked_time) where processed_time is null and parked_time is not null;

-- Of several subscriptions an account has at Stripe, the one that was created last is in force.
alter table eco_subscriptions add column stripe_created_time timestamptz;  -- null: not at Stripe, or not read there yet

-- Which plan a price at Stripe is of. The lookup keys below are the default; a price's id goes before its lookup key.
create table eco_stripe_prices (
    stripe_price text primary key check (length(stripe_price) between 1 and 255),  -- id of a price, or its lookup key
    plan         text not null check (plan in ('free', 'pro', 'enterprise')),
    plan_version int,  -- null: the newest there is when the account gets the plan
    foreign key (plan, plan_version) references eco_plans
);
insert into eco_stripe_prices (stripe_price, plan) values ('free', 'free'), ('pro', 'pro'), ('enterprise', 'enterprise');
grant select, insert, update, delete on eco_stripe_prices to nexus_billing;
