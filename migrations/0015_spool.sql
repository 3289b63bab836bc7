-- The spools of usage-svc: what it acknowledged while this database was away, and drains when it is back.

-- How far each journal of a spool is drained. It moves in the transaction that counts the events, so that they are
-- counted once, whatever happens to the file before they are removed from it. Rows stay, one or a few an outage: the
-- file may come back on another volume, or whole where it was damaged.
create table eco_spool_cursors (
    journal_id   uuid           primary key,
    next_number  bigint         not null check (next_number > 0),  -- those from here on are not drained
    missing      int8multirange not null,  -- of those before, the ones that the file did not give: not drained either
    updated_time timestamptz    not null default now()
);
grant select, insert, update on eco_spool_cursors to nexus_usage;

-- Notes that the events with these numbers are drained and moves the journal's cursor behind them, from where the
-- caller knows it to be. Somebody else who moved it meanwhile, or drained one of them, won a race.
create function nexus_advance_spool_cursor(p_journal_id uuid, p_from bigint, p_to bigint, p_numbers bigint[])
returns void
language plpgsql
as $$
declare
    v_drained int8multirange;
    v_missing int8multirange;
begin
    select coalesce(range_agg(int8range(n, n + 1)), '{}') into v_drained from unnest(p_numbers) as n;
    if p_from = 0 then
        insert into eco_spool_cursors (journal_id, next_number, missing)
        values (p_journal_id, p_to, int8multirange(int8range(0, p_to)) - v_drained)
        on conflict do nothing;
    else
        select c.missing + int8multirange(int8range(p_from, p_to)) into v_missing
        from eco_spool_cursors c where c.journal_id = p_journal_id and c.next_number = p_from for update;
        update eco_spool_cursors c
        set next_number = p_to, missing = v_missing - v_drained, updated_time = now()
        where c.journal_id = p_journal_id and v_missing @> v_drained;
    end if;
    if not found then
        raise exception 'journal % is not drained up to % any more', p_journal_id, p_from
            using errcode = 'serialization_failure';
    end if;
end
$$;
revoke execute on function nexus_advance_spool_cursor from public;
grant execute on function nexus_advance_spool_cursor to nexus_usage;

-- Events that were acknowledged and could not be counted when they were drained; for people to look at.
create table eco_usage_quarantine (
    eco_id            text        not null,
    journal_id        uuid        not null,
    number            bigint      not null,  -- in the journal
    reason            text        not null check (reason in (
                          'conflict',          -- another payload was recorded under this identity
                          'unknown_account', 'closed_account', 'too_old', 'in_the_future',
                          'foreign_key',       -- the API key is not one of the account's
                          'day_not_retained',  -- whether it was recorded before cannot be told any more
                          'rejected')),        -- the database does not take it
    event_id          uuid        not null,
    event_time        timestamptz not null,
    units_count       bigint      not null,
    endpoint          text        not null,
    method            text        not null,
    status_code       smallint    not null,
    response_time_ms  int         not null,
    api_key_id        text,
    admission_id      uuid,
    accepted_time     timestamptz,
    quarantined_time  timestamptz not null default now(),
    primary key (eco_id, journal_id, number)
);
grant select, insert on eco_usage_quarantine to nexus_usage;
