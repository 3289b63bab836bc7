-- The rotations of API keys, never deleted: a rotation is repeatable, and a secret that was replaced must not
-- come back as the answer to a late repeat. The key's own row has the secret it has now.
create table eco_api_key_rotations (
    key_id                 text        not null references eco_api_keys,
    secret_sha256          bytea       not null check (length(secret_sha256) = 32),  -- the new secret
    previous_secret_sha256 bytea       not null check (length(previous_secret_sha256) = 32),
    previous_expire_time   timestamptz not null,  -- the secret before is accepted until then
    grace_period_ms        bigint      not null check (grace_period_ms >= 0),  -- as it was asked for
    rotated_time           timestamptz not null default now(),
    primary key (key_id, secret_sha256)
);
-- Every verification asks for the secrets in grace; a key may have many rotations behind it.
create index eco_api_key_rotations_grace on eco_api_key_rotations (key_id, previous_expire_time);
grant select, insert, update on eco_api_key_rotations to nexus_usage;
