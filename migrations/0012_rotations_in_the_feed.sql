-- An old secret whose grace is changed changes what opens its key.
create trigger nexus_notify after update or delete on eco_api_key_rotations for each row
    execute function nexus_notify_key();
