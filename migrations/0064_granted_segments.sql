-- Whether the plan of a closed segment was granted while it was open: only then do its calls accrue overage, also those
-- that a correction adds later. Null: it was closed by a version that did not keep it, and before the first change that
-- eco_plan_grants has of the account; then it is told from its counts, as far as they tell it. A correction keeps it.
alter table eco_usage_segments add column granted boolean;
grant update (granted) on eco_usage_segments to nexus_billing;

-- What held when it was closed, where that is known.
update eco_usage_segments s
set granted = (select g.granted from eco_plan_grants g
               where g.eco_id = s.eco_id and g.changed_time < s.closed_time
               order by g.changed_time desc limit 1)
where s.recorded_units is not null;
