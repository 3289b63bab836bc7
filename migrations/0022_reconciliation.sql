-- Reconciling the raw log, the counters, the summary, the ledger and Stripe.

-- The raw log is only read, and so is from when on it is whole.
grant select on eco_api_usage, eco_usage_retention to nexus_billing;

-- Every reconciliation, with what it found.
create table eco_reconciliations (
    reconciliation_id uuid        primary key,
    request_id        uuid        unique,
    account_ids       text[],     -- null: every account
    period_time       timestamptz,  -- only the periods it lies in; null: those that began in the last 64 days
    repair            boolean     not null,
    status            text        not null check (status in ('running', 'finished', 'failed')),
    accounts          bigint      not null default 0,
    periods           bigint      not null default 0,
    items             bigint      not null default 0,   -- at Stripe, of ours
    difference_count  bigint      not null default 0,   -- repaired ones included
    repaired_count    bigint      not null default 0,
    drift             jsonb       not null default '{}',  -- {kind: differences that are left}
    differences       jsonb       not null default '[]',  -- the first 1,000
    started_time      timestamptz not null default now(),
    finished_time     timestamptz
);
create index eco_reconciliations_finished on eco_reconciliations (finished_time desc)
    where status = 'finished' and account_ids is null and period_time is null;
grant select, insert, update on eco_reconciliations to nexus_billing;

-- Stripe's books while they are being compared: what is listed is kept here rather than in memory. One
-- reconciliation at a time has them for itself, and empties them. Not worth a log: lost in a crash, they are listed
-- again.
create unlogged table eco_stripe_items (
    item_id      text        primary key,
    charge_id    uuid,
    eco_id       text,
    customer     text        not null,
    amount_minor bigint      not null,
    currency_code text       not null,
    period_start timestamptz,
    period_end   timestamptz,
    invoice_id   text,
    created_time timestamptz not null
);
create index eco_stripe_items_charge on eco_stripe_items (charge_id);
create unlogged table eco_stripe_invoices (
    invoice_id   text        primary key,
    status       text        not null,
    created_time timestamptz not null
);
grant select, insert, truncate on eco_stripe_items, eco_stripe_invoices to nexus_billing;

-- The server that the ledger is known to be whole on. One that was restored from a backup, or took over from
-- another, may have lost its last rows: then nothing is charged before all accounts were reconciled with Stripe.
create function nexus_timeline() returns int
language sql stable
as $$ select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int $$;

create table eco_database_identity (
    singleton         boolean     primary key default true check (singleton),
    system_identifier bigint      not null,
    timeline_id       int         not null,
    noted_time        timestamptz not null default now()
);
insert into eco_database_identity (system_identifier, timeline_id)
select system_identifier, nexus_timeline() from pg_control_system();
grant select, update on eco_database_identity to nexus_billing;
