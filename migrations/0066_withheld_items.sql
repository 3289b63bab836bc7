-- When the oldest item was made that an account is withheld for: reconciliations list items from then on, or they would
-- take it for gone.
alter table eco_withheld_accounts add column oldest_item_time timestamptz;
update eco_withheld_accounts set oldest_item_time = noted_time - interval '65 days';
grant update on eco_withheld_accounts to nexus_billing;
