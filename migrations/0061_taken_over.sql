-- When a reconciliation took the attempt over as Stripe had it. Null: a run wrote it down. What it follows from is then
-- that of the charge's first attempt, if the ledger ever had one.
alter table eco_overage_charges add column taken_over_time timestamptz;
