-- The history of the monthly recurring revenue (MRR): what moved it, when and by whom. It counts what eco_current_usage
-- counts: of accounts that are not closed the monthly price, in the account's currency, of the plan in force, while the
-- subscription is active or past_due. The movements up to a moment add up to the MRR at that moment, of each account too.
--
-- They are written by triggers with their owner's rights at the end of the transaction that changes something, by
-- comparing what is true then with what was noted last. So a subscription that ends and another that begins in one
-- transaction are one movement, and a change that is taken back in it is none.

-- Nothing is missed between what is there and the triggers.
lock table eco_identities, eco_subscriptions, eco_plan_prices in share row exclusive mode;

-- What was noted of an account last: its movements add up to mrr_micros.
create table eco_account_mrr (
    eco_id            text        primary key,
    currency_code     text        not null,
    plan              text,                  -- null: closed
    plan_version      int,
    counts            boolean     not null,  -- active or past_due, and not closed
    mrr_micros        bigint      not null,
    has_paid          boolean     not null,  -- now or before
    noted_time        timestamptz not null,
    -- What is in force from a time on by itself. Nothing is written then: readers compare the time, and whoever notes
    -- next, the refresher at the latest, writes the movement of that time first.
    next_plan         text,
    next_plan_version int,
    next_plan_time    timestamptz,
    check (num_nulls(plan, plan_version) in (0, 2)),
    check (num_nulls(next_plan, next_plan_version, next_plan_time) in (0, 3))
);
create index eco_account_mrr_next on eco_account_mrr (next_plan_time) where next_plan_time is not null;

-- Append-only.
create table eco_mrr_movements (
    movement_id       bigint      generated always as identity primary key,
    eco_id            text        not null,
    movement_time     timestamptz not null,
    -- opening: it was there when this history began, and nobody knows since when.
    kind              text        not null check (kind in ('opening', 'new', 'reactivation', 'expansion', 'contraction',
                                                           'churn')),
    currency_code     text        not null,
    from_plan         text,
    from_plan_version int,
    from_micros       bigint      not null,
    to_plan           text,
    to_plan_version   int,
    to_micros         bigint      not null,
    delta_micros      bigint      not null check (delta_micros = to_micros - from_micros and delta_micros <> 0)
);
-- All that sums by month need.
create index eco_mrr_movements_sums on eco_mrr_movements (currency_code, movement_time) include (kind, delta_micros);
create index eco_mrr_movements_opening on eco_mrr_movements (currency_code, movement_time) where kind = 'opening';

create function nexus_movement_stays() returns trigger
language plpgsql as $$
begin
    raise exception 'the history of the MRR is append-only' using errcode = 'insufficient_privilege';
end
$$;
create trigger nexus_stays before update or delete or truncate on eco_mrr_movements for each statement
    execute function nexus_movement_stays();

create function nexus_movement_kind(p_from bigint, p_to bigint, p_has_paid boolean) returns text
language sql immutable parallel safe
as $$
    select case when p_from = 0 then case when p_has_paid then 'reactivation' else 'new' end
                when p_to = 0 then 'churn'
                when p_to > p_from then 'expansion'
                else 'contraction' end
$$;

create function nexus_plan_price(p_plan text, p_version int, p_currency_code text) returns bigint
language sql stable parallel safe
as $$
    select coalesce((select p.monthly_micros from eco_plan_prices p
                     where p.plan = p_plan and p.version = p_version and p.currency_code = p_currency_code), 0)
$$;

-- Writes down how an account's MRR has moved from one note to the next, if it has. Currencies are not added up: one that
-- changes is left, and the other begins.
create function nexus_write_movement(p_was eco_account_mrr, p_is eco_account_mrr) returns void
language plpgsql as $$
begin
    if (p_was.currency_code, p_was.mrr_micros) = (p_is.currency_code, p_is.mrr_micros) then
        return;
    end if;
    insert into eco_mrr_movements (eco_id, movement_time, kind, currency_code, from_plan, from_plan_version, from_micros,
                                   to_plan, to_plan_version, to_micros, delta_micros)
    select p_is.eco_id, p_is.noted_time, nexus_movement_kind(m.from_micros, m.to_micros, p_was.has_paid), m.currency_code,
           p_was.plan, p_was.plan_version, m.from_micros,
           p_is.plan, p_is.plan_version, m.to_micros, m.to_micros - m.from_micros
    from (select p_was.currency_code, p_was.mrr_micros as from_micros,
                 case when p_was.currency_code = p_is.currency_code then p_is.mrr_micros else 0 end as to_micros
          union all
          select p_is.currency_code, 0, p_is.mrr_micros where p_was.currency_code <> p_is.currency_code) m
    where m.from_micros <> m.to_micros;
end
$$;

-- Notes what an account pays now, with the movements since the last note: first that of a plan that has waited and came
-- into force by itself, then what is different now. Times of an account never go back.
create function nexus_note_mrr(p_eco_id text) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp
-- By the keys, also where a session's plans are from when the tables were empty.
set enable_seqscan = off as $$
declare
    v_was eco_account_mrr;
    v_is  eco_account_mrr;
    v_at  timestamptz := clock_timestamp();
begin
    -- Who notes first goes first, and what the other sees then is committed.
    loop
        select * into v_was from eco_account_mrr m where m.eco_id = p_eco_id for update;
        exit when found;
        insert into eco_account_mrr (eco_id, currency_code, counts, mrr_micros, has_paid, noted_time)
        select i.eco_id, i.currency_code, false, 0, false, v_at from eco_identities i where i.eco_id = p_eco_id
        on conflict do nothing;
        if not found and not exists (select from eco_identities i where i.eco_id = p_eco_id) then
            return;
        end if;
    end loop;
    v_at := greatest(v_at, v_was.noted_time);

    v_is := v_was;
    if v_was.next_plan_time <= v_at then
        v_is.plan := v_was.next_plan;
        v_is.plan_version := v_was.next_plan_version;
        v_is.mrr_micros := case when v_was.counts
                                then nexus_plan_price(v_is.plan, v_is.plan_version, v_was.currency_code) else 0 end;
        v_is.has_paid := v_was.has_paid or v_is.mrr_micros > 0;
        v_is.noted_time := greatest(v_was.next_plan_time, v_was.noted_time);
        perform nexus_write_movement(v_was, v_is);
        v_was := v_is;
    end if;

    select i.currency_code,
           case when s.next_plan_time <= v_at then s.next_plan else s.plan end,
           case when s.next_plan_time <= v_at then s.next_plan_version else s.plan_version end,
           coalesce(s.status in ('active', 'past_due'), false),
           case when s.status in ('active', 'past_due') then coalesce(p.monthly_micros, 0) else 0 end,
           case when s.next_plan_time > v_at then s.next_plan end,
           case when s.next_plan_time > v_at then s.next_plan_version end,
           case when s.next_plan_time > v_at then s.next_plan_time end
    into v_is.currency_code, v_is.plan, v_is.plan_version, v_is.counts, v_is.mrr_micros,
         v_is.next_plan, v_is.next_plan_version, v_is.next_plan_time
    from eco_identities i
         left join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null and i.status = 'active'
         left join eco_plan_prices p
             on p.plan = case when s.next_plan_time <= v_at then s.next_plan else s.plan end
                and p.version = case when s.next_plan_time <= v_at then s.next_plan_version else s.plan_version end
                and p.currency_code = i.currency_code
    where i.eco_id = p_eco_id;
    v_is.has_paid := v_was.has_paid or v_is.mrr_micros > 0;
    v_is.noted_time := v_at;
    perform nexus_write_movement(v_was, v_is);
    update eco_account_mrr m
    set currency_code = v_is.currency_code, plan = v_is.plan, plan_version = v_is.plan_version, counts = v_is.counts,
        mrr_micros = v_is.mrr_micros, has_paid = v_is.has_paid, noted_time = v_is.noted_time,
        next_plan = v_is.next_plan, next_plan_version = v_is.next_plan_version, next_plan_time = v_is.next_plan_time
    where m.eco_id = p_eco_id;
end
$$;

-- Notes accounts whose plan has come into force by itself, at most so many; returns how many it found. Those that
-- somebody else is noting are his.
create function nexus_note_due_mrr(p_most int) returns int
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    v_eco_ids text[];
    v_eco_id  text;
begin
    select coalesce(array_agg(due.eco_id), '{}') into v_eco_ids
    from (select m.eco_id from eco_account_mrr m where m.next_plan_time <= clock_timestamp()
          order by m.next_plan_time limit p_most for update skip locked) due;
    foreach v_eco_id in array v_eco_ids loop
        perform nexus_note_mrr(v_eco_id);
    end loop;
    return cardinality(v_eco_ids);
end
$$;

create function nexus_mrr_may_have_moved() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform nexus_note_mrr(new.eco_id);
    return null;
end
$$;
-- An account without a subscription pays nothing, so that new accounts are noted with theirs.
create constraint trigger nexus_account_mrr after update of status, currency_code on eco_identities
    deferrable initially deferred for each row
    when ((old.status, old.currency_code) is distinct from (new.status, new.currency_code))
    execute function nexus_mrr_may_have_moved();
create constraint trigger nexus_new_mrr after insert on eco_subscriptions
    deferrable initially deferred for each row
    when (new.ended_time is null)
    execute function nexus_mrr_may_have_moved();
create constraint trigger nexus_other_mrr
    after update of plan, plan_version, status, ended_time, next_plan, next_plan_version, next_plan_time on eco_subscriptions
    deferrable initially deferred for each row
    when ((old.plan, old.plan_version, old.status, old.ended_time,
           old.next_plan, old.next_plan_version, old.next_plan_time)
          is distinct from (new.plan, new.plan_version, new.status, new.ended_time,
                            new.next_plan, new.next_plan_version, new.next_plan_time))
    execute function nexus_mrr_may_have_moved();

-- Versions of plans are not altered, but a currency may be added to one.
create function nexus_price_may_have_moved_mrr() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform nexus_note_mrr(m.eco_id) from eco_account_mrr m
    where m.plan = new.plan and m.plan_version = new.version and m.currency_code = new.currency_code;
    return null;
end
$$;
create constraint trigger nexus_mrr_by_price after insert or update on eco_plan_prices
    deferrable initially deferred for each row execute function nexus_price_may_have_moved_mrr();

revoke execute on function
    nexus_movement_stays, nexus_write_movement, nexus_note_mrr, nexus_note_due_mrr, nexus_mrr_may_have_moved,
    nexus_price_may_have_moved_mrr from public;
grant execute on function nexus_note_due_mrr to nexus_billing;

-- What readers read: the movements, and those of plans that have come into force by themselves and are not written yet.
-- With it they are right at every moment, whether the refresher has come to them or not.
create view eco_mrr_movements_now as
select movement_time, kind, currency_code, delta_micros from eco_mrr_movements
union all
select m.next_plan_time, nexus_movement_kind(m.mrr_micros, n.micros, m.has_paid), m.currency_code, n.micros - m.mrr_micros
from eco_account_mrr m
     cross join lateral (select case when m.counts then nexus_plan_price(m.next_plan, m.next_plan_version, m.currency_code)
                                     else 0 end as micros) n
where m.next_plan_time <= now() and n.micros <> m.mrr_micros;
grant select on eco_mrr_movements_now to nexus_analytics;
grant select on eco_mrr_movements to nexus_analytics, nexus_billing;

-- What is there already. Whether an account paid before is told by its subscriptions and by segments of its periods, as
-- far as they go back.
insert into eco_account_mrr (eco_id, currency_code, plan, plan_version, counts, mrr_micros, has_paid, noted_time,
                             next_plan, next_plan_version, next_plan_time)
select i.eco_id, i.currency_code, t.plan, t.version, t.counts, t.micros,
       t.micros > 0
       or exists (select from eco_subscriptions x where x.eco_id = i.eco_id and x.started_time < x.ended_time
                  and nexus_plan_price(x.plan, x.plan_version, i.currency_code) > 0)
       or exists (select from eco_usage_segments g where g.eco_id = i.eco_id
                  and nexus_plan_price(g.plan, g.plan_version, i.currency_code) > 0),
       now(),
       case when s.next_plan_time > now() then s.next_plan end,
       case when s.next_plan_time > now() then s.next_plan_version end,
       case when s.next_plan_time > now() then s.next_plan_time end
from eco_identities i
     left join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null and i.status = 'active'
     cross join lateral (
         select case when s.next_plan_time <= now() then s.next_plan else s.plan end as plan,
                case when s.next_plan_time <= now() then s.next_plan_version else s.plan_version end as version,
                coalesce(s.status in ('active', 'past_due'), false) as counts) w
     cross join lateral (
         select w.plan, w.version, w.counts,
                case when w.counts then nexus_plan_price(w.plan, w.version, i.currency_code) else 0 end as micros) t;
insert into eco_mrr_movements (eco_id, movement_time, kind, currency_code, from_micros, to_plan, to_plan_version, to_micros,
                               delta_micros)
select m.eco_id, m.noted_time, 'opening', m.currency_code, 0, m.plan, m.plan_version, m.mrr_micros, m.mrr_micros
from eco_account_mrr m where m.mrr_micros > 0 order by m.eco_id;
