-- Notifications: usage thresholds, customers' webhooks, notices to operators; written by billing-svc only. The other
-- roles may read none of these tables: they hold the secrets that webhooks are signed with.

-- At which percentages of what a plan includes its accounts are told. Not versioned: nothing is priced by it.
create table eco_usage_thresholds (
    plan         text        primary key check (plan in ('free', 'pro', 'enterprise')),
    percents     int[]       not null check (cardinality(percents) <= 20 and 1 <= all (percents) and 1000 >= all (percents)),
    updated_time timestamptz not null default now()
);
insert into eco_usage_thresholds (plan, percents) values
    ('free', '{75,90,100,120}'), ('pro', '{75,90,100,120}'), ('enterprise', '{75,90,100,120}');
grant select, insert, update on eco_usage_thresholds to nexus_billing;

-- What was reached, each once: a row is written in the transaction that writes the messages about it. Those of periods
-- that are long over are deleted: such a period reaches nothing more.
create table eco_usage_crossings (
    eco_id       text        not null references eco_identities,
    period_start timestamptz not null,
    percent      int         not null,
    limit_units  bigint      not null,  -- after a change of plan the same percentage is another amount
    api_calls    bigint      not null,
    crossed_time timestamptz not null default now(),
    primary key (eco_id, period_start, percent, limit_units)
);
create index eco_usage_crossings_crossed on eco_usage_crossings (crossed_time);
grant select, insert, update, delete on eco_usage_crossings to nexus_billing;

create table eco_webhook_endpoints (
    endpoint_id     uuid        primary key,
    eco_id          text        not null references eco_identities,
    url             text        not null,
    description     text        not null,
    event_types     text[]      not null,  -- empty: all
    disabled_reason text        check (disabled_reason in ('by_user', 'gone', 'failing')),  -- null: enabled
    disabled_time   timestamptz,
    failing_since   timestamptz,  -- first failure after the last success; null: none
    created_time    timestamptz not null default now(),
    request_id      uuid,         -- makes a repeated creation return this endpoint
    created_as      jsonb,        -- what that creation asked for: the same id with anything else is refused
    unique (eco_id, request_id),
    check ((disabled_reason is null) = (disabled_time is null)),
    check ((request_id is null) = (created_as is null))
);
create index eco_webhook_endpoints_account on eco_webhook_endpoints (eco_id, created_time);
grant select, insert, update, delete on eco_webhook_endpoints to nexus_billing;

-- All that are not over sign; the one without an end is the newest.
create table eco_webhook_secrets (
    endpoint_id     uuid        not null references eco_webhook_endpoints on delete cascade,
    eco_id          text        not null,  -- whose endpoint it is: the audit log names the account
    secret          bytea       not null check (length(secret) between 24 and 64),
    created_time    timestamptz not null default clock_timestamp(),
    expire_time     timestamptz,
    request_id      uuid,        -- of the creation or rotation that made it
    grace_period_ms bigint      not null check (grace_period_ms >= 0),  -- as that asked for
    primary key (endpoint_id, created_time),
    unique (endpoint_id, request_id)
);
create unique index eco_webhook_secrets_newest on eco_webhook_secrets (endpoint_id) where expire_time is null;
create index eco_webhook_secrets_ended on eco_webhook_secrets (expire_time) where expire_time is not null;
grant select, insert, update, delete on eco_webhook_secrets to nexus_billing;

-- The payload is kept as the very bytes that are signed.
create table eco_webhook_messages (
    message_id   uuid        primary key,
    eco_id       text        not null references eco_identities,
    event_type   text        not null,
    payload      text        not null,
    created_time timestamptz not null default now()
);
create index eco_webhook_messages_created on eco_webhook_messages (created_time);
create index eco_webhook_messages_tests on eco_webhook_messages (eco_id, created_time) where event_type = 'webhook.test';
grant select, insert, update, delete on eco_webhook_messages to nexus_billing;

-- A message on its way to an endpoint. Whoever sends it holds it until the lease ends, by the time of the database.
create table eco_webhook_deliveries (
    endpoint_id    uuid        not null references eco_webhook_endpoints on delete cascade,
    message_id     uuid        not null references eco_webhook_messages on delete cascade,
    status         text        not null default 'pending' check (status in ('pending', 'succeeded', 'failed')),
    held           boolean     not null default false,  -- the endpoint is disabled: it waits until that is enabled
    attempts       int         not null default 0,  -- made so far, and the number of the last
    tries          int         not null default 0,  -- of these, since it was begun or begun again
    due_time       timestamptz not null default now(),
    lease_end_time timestamptz,
    created_time   timestamptz not null default now(),
    finished_time  timestamptz,
    request_id     uuid,        -- of the test that it is
    redelivery_id  uuid,        -- request id of the last redelivery
    primary key (endpoint_id, message_id),
    check ((status = 'pending') = (finished_time is null))
);
create index eco_webhook_deliveries_due on eco_webhook_deliveries (due_time, message_id)
    where status = 'pending' and not held;
create index eco_webhook_deliveries_leased on eco_webhook_deliveries (lease_end_time)
    where lease_end_time is not null;
create index eco_webhook_deliveries_list on eco_webhook_deliveries (endpoint_id, created_time desc, message_id);
create index eco_webhook_deliveries_message on eco_webhook_deliveries (message_id);
grant select, insert, update, delete on eco_webhook_deliveries to nexus_billing;

-- The delivery log: the last attempts of each. A row is written before the request is sent, so that one whose process
-- ended is in it, too.
create table eco_webhook_attempts (
    endpoint_id  uuid        not null,
    message_id   uuid        not null,
    attempt      int         not null,
    started_time timestamptz not null default now(),
    duration_ms  int,         -- null: under way, or cut off
    http_status  int,
    error        text,        -- a word; null: the receiver has it
    primary key (endpoint_id, message_id, attempt),
    foreign key (endpoint_id, message_id) references eco_webhook_deliveries on delete cascade
);
grant select, insert, update, delete on eco_webhook_attempts to nexus_billing;

-- What operators are told, each occurrence once: `subject` names it.
create table eco_operator_notices (
    notice_id      bigint      generated always as identity primary key,
    kind           text        not null check (kind in ('run_failed', 'run_overdue', 'drift_found')),
    subject        text        not null,
    message        text        not null,
    status         text        not null default 'pending' check (status in ('pending', 'sent', 'failed')),
    tries          int         not null default 0,
    due_time       timestamptz not null default now(),
    lease_end_time timestamptz,
    error          text,
    created_time   timestamptz not null default now(),
    finished_time  timestamptz,
    unique (kind, subject)
);
create index eco_operator_notices_due on eco_operator_notices (due_time) where status = 'pending';
grant select, insert, update on eco_operator_notices to nexus_billing;

-- Every replica looks for them every second.
create index eco_overage_runs_full on eco_overage_runs (finished_time)
    where status = 'finished' and account_ids is null;
create index eco_overage_runs_unfinished on eco_overage_runs (coalesce(finished_time, heartbeat_time))
    where status <> 'finished';
create index eco_reconciliations_drift on eco_reconciliations (finished_time)
    where status = 'finished' and drift <> '{}';

-- Who changed where and of what an account is told, and gave it another secret; the secrets themselves are nobody's to
-- read. That an endpoint fails, or works again, changes nothing about it.
create trigger nexus_audit_insert after insert or delete on eco_webhook_endpoints for each row
    execute function nexus_audit('webhook_endpoint', 'endpoint_id', 'url,description,event_types,disabled_reason');
create trigger nexus_audit_update after update of url, description, event_types, disabled_reason
    on eco_webhook_endpoints for each row
    execute function nexus_audit('webhook_endpoint', 'endpoint_id', 'url,description,event_types,disabled_reason');
create trigger nexus_audit after insert on eco_webhook_secrets for each row
    execute function nexus_audit('webhook_secret', 'endpoint_id', 'created_time,grace_period_ms');
create trigger nexus_audit after insert or update of percents on eco_usage_thresholds for each row
    execute function nexus_audit('usage_thresholds', 'plan', 'percents');
