-- What is parked is counted by reason, again and again.
create index eco_usage_records_parked on eco_usage_records (parked_reason, eco_id)
    where parked_reason is not null and settled_time is null;
