-- Also what was refused, or made as another item, may come late: by a process that stood still, or that had another key of
-- Stripe's. So an attempt may be rechecked whatever became of it.
alter table eco_overage_charges drop constraint eco_overage_charges_check1;
alter table eco_overage_charges
    add constraint eco_overage_charges_recheck_over check (recheck_time is null or status <> 'pending') not valid;
