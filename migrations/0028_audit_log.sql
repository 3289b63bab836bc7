-- Who changed what: plans and prices, accounts, subscriptions, API keys, charges. Written by the triggers below alone,
-- which run with their owner's rights: no service may insert, and nobody alters or deletes.
--
-- On whose behalf a transaction changes things is told by set_config('nexus.actor', …, true); without it, the role is
-- kept. No table that a flush of usage writes is audited.
create table eco_audit_log (
    audit_id   bigint      generated always as identity primary key,
    audit_time timestamptz not null default clock_timestamp(),
    actor      text        not null,
    subject    text        not null,  -- 'plan', 'plan_price', 'account', 'subscription', 'api_key', 'charge', …
    action     text        not null check (action in ('created', 'changed', 'deleted')),
    subject_id text        not null,
    eco_id     text,
    before     jsonb,                 -- the audited columns; a change has those that differ
    after      jsonb
);
create index eco_audit_log_account on eco_audit_log (eco_id, audit_id desc);
grant select on eco_audit_log to nexus_billing;

create function nexus_audit_log_stays() returns trigger
language plpgsql as $$
begin
    raise exception 'the audit log is append-only' using errcode = 'insufficient_privilege';
end
$$;
create trigger nexus_stays before update or delete or truncate on eco_audit_log for each statement
    execute function nexus_audit_log_stays();

-- Arguments: what is audited, the columns that identify it, the columns that are kept. Of a change, only those columns
-- that differ are kept; where none does, nothing is.
create function nexus_audit() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    v_old    jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_new    jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_row    jsonb := coalesce(v_new, v_old);
    v_ids    text[] := string_to_array(tg_argv[1], ',');
    v_kept   text[] := string_to_array(tg_argv[2], ',');
    v_before jsonb;
    v_after  jsonb;
begin
    select jsonb_object_agg(k, v_old -> k) filter (where v_old is not null),
           jsonb_object_agg(k, v_new -> k) filter (where v_new is not null)
    into v_before, v_after
    from unnest(v_kept) as k
    where v_old is null or v_new is null or v_old -> k is distinct from v_new -> k;
    if v_before is null and v_after is null then
        return null;
    end if;
    insert into public.eco_audit_log (actor, subject, action, subject_id, eco_id, before, after)
    values (coalesce(nullif(current_setting('nexus.actor', true), ''),
                     nullif(current_setting('role'), 'none'), session_user),
            tg_argv[0],
            case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'changed' else 'deleted' end,
            (select string_agg(v_row ->> k, ' ') from unnest(v_ids) as k),
            coalesce(v_row ->> 'eco_id',
                     (select k.eco_id from public.eco_api_keys k where k.key_id = v_row ->> 'key_id')),
            v_before, v_after);
    return null;
end
$$;
revoke execute on function nexus_audit, nexus_audit_log_stays from public;

create trigger nexus_audit after insert or update or delete on eco_plans for each row
    execute function nexus_audit('plan', 'plan,version', 'included_units,hard_limit');
create trigger nexus_audit after insert or update or delete on eco_plan_prices for each row
    execute function nexus_audit('plan_price', 'plan,version,currency_code',
                                 'monthly_micros,overage_micros,overage_per_units');
create trigger nexus_audit after insert or update or delete on eco_identities for each row
    execute function nexus_audit('account', 'eco_id',
                                 'status,email,currency_code,stripe_customer_id,spend_cap_micros');
create trigger nexus_audit after insert or update or delete on eco_subscriptions for each row
    execute function nexus_audit('subscription', 'subscription_id',
        'plan,plan_version,status,next_plan,next_plan_version,next_plan_time,anchor_time,stripe_subscription_id,ended_time');
-- That a key was used changes nothing about it, and its secret is nobody's to read.
create trigger nexus_audit_insert after insert or delete on eco_api_keys for each row
    execute function nexus_audit('api_key', 'key_id', 'name,scopes,test_mode,status');
create trigger nexus_audit_update after update of name, scopes, test_mode, status on eco_api_keys for each row
    execute function nexus_audit('api_key', 'key_id', 'name,scopes,test_mode,status');
create trigger nexus_audit after insert or update of previous_expire_time on eco_api_key_rotations for each row
    execute function nexus_audit('api_key_rotation', 'key_id', 'previous_expire_time');
create trigger nexus_audit_insert after insert or delete on eco_overage_charges for each row
    execute function nexus_audit('charge', 'charge_id,attempt',
        'period_start,sequence,units_from,units_to,amount_micros,currency_code,status,stripe_invoice_item_id,failure_reason');
create trigger nexus_audit_update
    after update of units_from, units_to, amount_micros, status, stripe_invoice_item_id, failure_reason
    on eco_overage_charges for each row
    execute function nexus_audit('charge', 'charge_id,attempt',
        'period_start,sequence,units_from,units_to,amount_micros,currency_code,status,stripe_invoice_item_id,failure_reason');
-- Why a period takes no charge, and that it takes them again.
create trigger nexus_audit after update of parked_reason on eco_usage_records for each row
    execute function nexus_audit('parked_period', 'period_start', 'parked_reason');
