-- Leases that clients of usage-svc hold, over streams of LeaseQuota. A client is no holder of its own: the replica
-- that its stream leads to is, as long as the stream lasts. Then the leases that were not settled go over to the
-- client, which gives no signs of life: they are forfeited, unless it comes back and settles them.

alter table eco_quota_leases add column client_id uuid;  -- as the client calls itself; null: the replica holds it for itself

-- Grants units to a client, as nexus_grant_quota does.
create function nexus_lend_quota(
    p_plan_epoch   int,
    p_lease_id     uuid,
    p_client_id    uuid,
    p_holder_id    uuid,
    p_eco_id       text,
    p_period_start timestamptz,
    p_period_end   timestamptz,
    p_limit        bigint,
    p_want         bigint,
    out granted     bigint,
    out consumed    bigint,
    out outstanding boolean,
    out recallable  boolean
)
language plpgsql
as $$
begin
    select g.* into granted, consumed, outstanding, recallable
    from nexus_grant_quota(p_plan_epoch, p_lease_id, p_holder_id, p_eco_id, p_period_start, p_period_end,
                           p_limit, 1, 1, p_want) g;
    if granted > 0 then
        update eco_quota_leases l set client_id = p_client_id where l.lease_id = p_lease_id;
    end if;
end
$$;

-- Takes back what a client has not used of a lease, as nexus_settle_leases does. A lease that is unknown is made
-- known as settled, so that a grant that is still under way cannot happen any more.
--
-- Returns the units that came back; null where the lease is not this client's, and nothing changed.
create function nexus_settle_lent_quota(
    p_lease_id   uuid,
    p_client_id  uuid,
    p_eco_id     text,
    p_used_units bigint,
    p_answer     boolean
) returns bigint
language plpgsql
as $$
declare
    v_lease eco_quota_leases;
begin
    -- It waits for a grant of this id that is under way, and holds no lock that this needs.
    insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units, returned_units,
                                  settled_time, client_id)
    values (p_lease_id, p_eco_id, now(), now(), 1, 1, now(), p_client_id)
    on conflict do nothing;
    if found then
        return 0;
    end if;
    select * into strict v_lease from eco_quota_leases l where l.lease_id = p_lease_id;
    if v_lease.eco_id <> p_eco_id or v_lease.client_id is distinct from p_client_id then
        return null;
    end if;
    return coalesce((select s.units from nexus_settle_leases(array[p_lease_id],
                                                             array[greatest(v_lease.granted_units - p_used_units, 0)],
                                                             p_answer) s), 0);
end
$$;

revoke execute on function nexus_lend_quota, nexus_settle_lent_quota from public;
grant execute on function nexus_lend_quota, nexus_settle_lent_quota to nexus_usage;
