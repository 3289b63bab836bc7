-- Accounts that Stripe has charges of and that the last reconciliation could not take them into the ledger for, because
-- they, or their customers, are not here: they are not charged before one could. They need not be in eco_identities.
create table eco_withheld_accounts (
    eco_id     text        primary key,
    noted_time timestamptz not null default now()
);
grant select, insert, delete on eco_withheld_accounts to nexus_billing;
