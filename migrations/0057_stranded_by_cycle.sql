-- What a cycle should have taken two days ago and has not is stranded, too, though its subscription goes on: one that is
-- billed by the year, or a cycle that had 250 items already. What lies on a draft is not pending, and is not collected;
-- that nobody finalises it is found by looking for the same charges.
create or replace view eco_stranded_charges as
select h.eco_id, h.charge_id, h.attempt, h.payload ->> 'customer' as customer,
       coalesce(h.payload ->> 'subscription',
                case when l.ended_time >= r.period_start then l.stripe_subscription_id end, '')
           as stripe_subscription_id,
       h.currency_code, h.stripe_invoice_item_id, h.created_time, greatest(h.finished_time, r.settled_time) as finished_time
from eco_overage_charges h
join eco_identities i on i.eco_id = h.eco_id
join eco_usage_records r on r.eco_id = h.eco_id and r.period_start = h.period_start
left join lateral (
    select s.stripe_subscription_id, s.ended_time, s.anchor_time from eco_subscriptions s
    where s.eco_id = h.eco_id and s.stripe_subscription_id is not null
    order by s.ended_time desc nulls first, s.subscription_id desc limit 1) l on true
where h.status = 'succeeded' and h.invoiced_time is null
  and case when h.payload ->> 'subscription' is not null
           then exists (select from eco_subscriptions s
                        where s.eco_id = h.eco_id and s.stripe_subscription_id = h.payload ->> 'subscription'
                          and (s.ended_time is not null
                               or case when h.payload ->> 'invoice' is not null then h.finished_time
                                       else nexus_period_end(s.anchor_time, h.finished_time) end
                                  < now() - interval '2 days'))
           -- No subscription of that customer takes it.
           when l.stripe_subscription_id is not null and h.payload ->> 'customer' is distinct from i.stripe_customer_id
           then true
           -- The subscription that goes on does, as a rule.
           when l.stripe_subscription_id is not null and l.ended_time is null
           then nexus_period_end(l.anchor_time, h.finished_time) < now() - interval '2 days'
           -- Also one that ended in the very second in which it began.
           when l.ended_time >= r.period_start
           then true
           else r.settled_time is not null
                or r.parked_reason is not null and coalesce(r.settle_time, r.period_end + interval '24 hours') <= now()
      end;
