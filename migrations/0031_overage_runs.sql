-- Runs of ProcessOverage over any number of accounts: what a run has done is told from the ledger and from the table
-- below, both written in the transactions that do it. So a run that was killed goes on with the figures it had.
alter table eco_overage_runs
    add column accounts int not null default 0;  -- accounts with something to do when it began
-- `errors` is no longer written: they are in the table below, all of them.

-- Accounts that a run looked at and did not simply charge.
create table eco_overage_run_accounts (
    run_id  uuid not null references eco_overage_runs,
    eco_id  text not null,
    reason  text,  -- why it could not be charged; null: there was nothing to charge
    message text,
    primary key (run_id, eco_id),
    check ((reason is null) = (message is null))
);
grant select, insert, update, delete on eco_overage_run_accounts to nexus_billing;

-- `run_id` of a charge is the run that sent it last, or wrote it down.
create index eco_overage_charges_run on eco_overage_charges (run_id);

-- Periods that a run has to look at, in the order in which it does, whatever the database's collation.
create index eco_usage_records_open on eco_usage_records (eco_id collate "C", period_start) where settled_time is null;

-- What a run has done so far. An item that was found at Stripe and taken into the ledger was never sent, and counts
-- for no run.
create function nexus_run_figures(
    p_run_id         uuid,
    out processed    int,
    out charged      int,
    out failed       int,
    out total_micros bigint
)
language sql stable
as $$
    with charged as (
             select h.eco_id, sum(h.amount_micros) filter (where h.currency_code = 'USD') as micros
             from eco_overage_charges h
             where h.run_id = p_run_id and h.status = 'succeeded' and h.sent_time is not null
             group by h.eco_id),
         others as (select a.eco_id, a.reason from eco_overage_run_accounts a where a.run_id = p_run_id)
    select (select count(*) from (select eco_id from charged union select eco_id from others) looked_at)::int,
           (select count(*) from charged)::int,
           (select count(*) from others where reason is not null)::int,
           (select coalesce(sum(micros), 0) from charged)::bigint
$$;
