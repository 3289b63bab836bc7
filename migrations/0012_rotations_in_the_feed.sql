-- An old secret whose grace is changed changes what opens its key.
create function nexus_notify_rotation() returns trigger
language plpgsql as $$
begin
    perform pg_notify('nexus_changes', 'key:' || old.key_id);
    return null;
end
$$;
revoke execute on function nexus_notify_rotation from public;

create trigger nexus_notify after update or delete on eco_api_key_rotations for each row
    execute function nexus_notify_rotation();
