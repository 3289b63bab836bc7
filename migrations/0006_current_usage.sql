-- Accounts that are not closed, each with usage and revenue of its current period, for overviews and lists.
-- Usage comes from the summary that billing-svc keeps within a second of the counters; a summary of an
-- earlier period is not current, and an account without one has used nothing yet. A subscription brings
-- revenue while it is active or past_due (nexus_core::plan has the same rule).
create view eco_current_usage as
select i.eco_id, i.email, i.currency_code, i.created_time, s.plan, s.status,
       coalesce(r.api_calls, 0)      as api_calls,
       coalesce(r.overage_units, 0)  as overage_units,
       coalesce(r.overage_micros, 0) as overage_micros,
       case when s.status in ('active', 'past_due') then coalesce(p.monthly_micros, 0) else 0 end
                                     as subscription_micros,
       r.last_event_time
from eco_identities i
     join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
     left join eco_plan_prices p
         on p.plan = s.plan and p.version = s.plan_version and p.currency_code = i.currency_code
     left join eco_usage_records r
         on r.eco_id = i.eco_id and r.period_start = nexus_period_start(s.anchor_time, now())
            and r.period_end > now()  -- so that the cost does not grow with the periods that are over
where i.status = 'active';
grant select on eco_current_usage to nexus_analytics;
create index eco_usage_records_period_end on eco_usage_records (period_end);
