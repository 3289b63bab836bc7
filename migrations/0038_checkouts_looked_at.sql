-- From when on a worker looks what came of a checkout whose time is over: somebody may have paid while Stripe's events did not
-- arrive. Null: nobody looks before the account's next checkout. Checkouts that the version before writes have it, too.
alter table eco_checkouts add column look_due_time timestamptz;
alter table eco_checkouts alter column look_due_time set default now() + interval '23 hours';
update eco_checkouts set look_due_time = created_time + interval '23 hours' where closed_time is null;
-- Instead of eco_checkouts_end_due, which the version before uses.
create index eco_checkouts_due on eco_checkouts (least(end_due_time, look_due_time)) where closed_time is null;

-- How many an account has of a day is bounded.
create index eco_stripe_changes_of_account on eco_stripe_changes (eco_id, created_time);
