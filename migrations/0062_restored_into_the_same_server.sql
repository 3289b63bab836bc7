-- A backup that is loaded into the server it came from has that server's identity: what tells it is that its database, or
-- the ledger's table, was made anew. Neither changes when a database is renamed.
alter table eco_database_identity add column database_oid bigint, add column ledger_oid bigint;
update eco_database_identity
set database_oid = (select oid::bigint from pg_database where datname = current_database()),
    ledger_oid = 'eco_overage_charges'::regclass::oid::bigint;
alter table eco_database_identity alter column database_oid set not null, alter column ledger_oid set not null;
