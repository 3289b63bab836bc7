-- Subscriptions that have ended at Stripe are jobs: what is owed is settled, taken off drafts that nobody finalises, and
-- put on an invoice. One is done when nothing of it lies on a draft any more, whatever becomes of its account; until then
-- it is due again. Whoever hears of the end writes it down in the same transaction; a run takes up what was missed.
create table eco_ended_subscriptions (
    subscription_id bigint      primary key references eco_subscriptions,
    eco_id          text        not null references eco_identities,
    ended_time      timestamptz not null,  -- at Stripe
    due_time        timestamptz not null default now(),  -- when it is done, or tried again
    failures        int         not null default 0,
    failure         text,                  -- why it failed last
    cleared_time    timestamptz            -- null: it is to be done
);
create index eco_ended_subscriptions_due on eco_ended_subscriptions (due_time) where cleared_time is null;
create index eco_ended_subscriptions_account on eco_ended_subscriptions (eco_id);
grant select, insert, update on eco_ended_subscriptions to nexus_billing;

insert into eco_ended_subscriptions (subscription_id, eco_id, ended_time)
select subscription_id, eco_id, ended_time from eco_subscriptions
where stripe_subscription_id is not null and ended_time is not null and status in ('canceled', 'incomplete_expired');

-- Whether the period was past its settlement once, and goes on: the subscription that had cut it has ended. What was rounded
-- half up then is rounded so from then on, so that no cent is given back and taken again.
alter table eco_usage_records add column rounded boolean not null default false;

-- Since when the charge's item is known to be on a final invoice. Null: it is looked for, by whoever collects and by
-- reconciliations, however old it is.
alter table eco_overage_charges add column invoiced_time timestamptz;
create index eco_overage_charges_open on eco_overage_charges (eco_id) where status = 'succeeded' and invoiced_time is null;
create index eco_overage_charges_oldest_open on eco_overage_charges (created_time) where status = 'succeeded' and invoiced_time is null;

-- (eco_settlements.listed_time was how far charges had been looked at; only the version before reads it.)

-- Charges that are not known to be on a final invoice, and that no invoice of a cycle takes: the subscription at Stripe
-- that they are of has ended, whether or not the account has another by now. Those of a customer alone are taken by the
-- account's subscription that goes on, if that is the same customer's; else they go with the last one that ended. Where the
-- account never had any, no cycle ever comes: those of a period that is settled, or that takes no charge when it should be,
-- go under the empty name.
create or replace view eco_stranded_charges as
select h.eco_id, h.charge_id, h.attempt, h.payload ->> 'customer' as customer,
       coalesce(h.payload ->> 'subscription', case when l.ended_time is not null then l.stripe_subscription_id end, '')
           as stripe_subscription_id,
       h.currency_code, h.stripe_invoice_item_id, h.created_time, greatest(h.finished_time, r.settled_time) as finished_time
from eco_overage_charges h
join eco_identities i on i.eco_id = h.eco_id
join eco_usage_records r on r.eco_id = h.eco_id and r.period_start = h.period_start
left join lateral (
    select s.stripe_subscription_id, s.ended_time from eco_subscriptions s
    where s.eco_id = h.eco_id and s.stripe_subscription_id is not null
    order by s.ended_time desc nulls first, s.subscription_id desc limit 1) l on true
where h.status = 'succeeded' and h.invoiced_time is null
  and case when h.payload ->> 'subscription' is not null
           then exists (select from eco_subscriptions s
                        where s.eco_id = h.eco_id and s.stripe_subscription_id = h.payload ->> 'subscription'
                          and s.ended_time is not null)
           when l.stripe_subscription_id is null
           then r.settled_time is not null
                or r.parked_reason is not null and coalesce(r.settle_time, r.period_end + interval '24 hours') <= now()
           else l.ended_time is not null or h.payload ->> 'customer' is distinct from i.stripe_customer_id
      end;
