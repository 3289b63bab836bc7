-- What the revenue history, forecasts and exports read besides, by column where a table holds more than that.

grant select on eco_plans, eco_plan_prices, eco_usage_counters, eco_usage_hourly to nexus_analytics;
grant select (eco_id, subscription_id, plan, plan_version, status, anchor_time, ended_time, next_plan, next_plan_version,
              next_plan_time) on eco_subscriptions to nexus_analytics;
grant select (eco_id, period_start, segment, plan, plan_version, recorded_units, overage_units)
    on eco_usage_segments to nexus_analytics;
grant select (eco_id, period_start, units) on eco_usage_adjustments to nexus_analytics;
grant select (currency_code, status, amount_micros, finished_time) on eco_overage_charges to nexus_analytics;

-- Sums by month, from the index alone.
create index eco_overage_charges_sums on eco_overage_charges (currency_code, finished_time) include (amount_micros)
    where status = 'succeeded';
