-- The change feed: whoever caches keys, accounts, plans or quota listens on the channel `nexus_changes`. A
-- payload names what changed and not how; what it is now is to be read. None of these tables is written by a
-- flush: a NOTIFY there would make commits wait for each other.
--
--   key:<key_id>   account:<eco_id>   plans   (from the triggers here)
--   recall:<eco_id>   returned:<eco_id>       (from usage-svc, about leased units)

create function nexus_notify_key() returns trigger
language plpgsql as $$
begin
    perform pg_notify('nexus_changes', 'key:' || old.key_id);
    return null;
end
$$;

create function nexus_notify_account() returns trigger
language plpgsql as $$
begin
    perform pg_notify('nexus_changes', 'account:' || case when tg_op = 'DELETE' then old.eco_id else new.eco_id end);
    return null;
end
$$;

create function nexus_notify_plans() returns trigger
language plpgsql as $$
begin
    perform pg_notify('nexus_changes', 'plans');
    return null;
end
$$;

revoke execute on function nexus_notify_key, nexus_notify_account, nexus_notify_plans from public;

-- That a key was used changes nothing about it.
create trigger nexus_notify_update after update on eco_api_keys for each row
    when (row (old.eco_id, old.secret_sha256, old.scopes, old.test_mode, old.status)
          is distinct from row (new.eco_id, new.secret_sha256, new.scopes, new.test_mode, new.status))
    execute function nexus_notify_key();
create trigger nexus_notify_delete after delete on eco_api_keys for each row
    execute function nexus_notify_key();

create trigger nexus_notify after insert or update or delete on eco_identities for each row
    execute function nexus_notify_account();
create trigger nexus_notify after insert or update or delete on eco_subscriptions for each row
    execute function nexus_notify_account();

create trigger nexus_notify after insert or update or delete or truncate on eco_plans for each statement
    execute function nexus_notify_plans();
create trigger nexus_notify after insert or update or delete or truncate on eco_plan_prices for each statement
    execute function nexus_notify_plans();
