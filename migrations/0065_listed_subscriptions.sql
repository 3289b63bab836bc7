-- The subscriptions that Stripe has, while they are being compared: what is listed is kept here rather than in memory.
-- One reconciliation at a time has it for itself, and empties it.
create unlogged table eco_stripe_listed_subscriptions (
    subscription_id text primary key
);
grant select, insert, truncate on eco_stripe_listed_subscriptions to nexus_billing;
