-- The logins of the three services: each a member of its service's role and of nothing else.
--
-- The migrations make the roles nexus_usage, nexus_billing and nexus_analytics, with their grants and
-- without a login. A service connects as its login and takes on its role with SET ROLE; NOINHERIT
-- leaves the login itself without any right on a table. Run after `nexus migrate`, by a login that may
-- create roles, with psql 15 or newer; run again, it sets the passwords anew.
--
-- Passwords come from the environment, so that they stand neither here nor on a command line:
-- USAGE_DB_PASSWORD, BILLING_DB_PASSWORD, ANALYTICS_DB_PASSWORD.
\set ON_ERROR_STOP on
\getenv usage_password USAGE_DB_PASSWORD
\getenv billing_password BILLING_DB_PASSWORD
\getenv analytics_password ANALYTICS_DB_PASSWORD

\if :{?usage_password}
\else
  DO $$ BEGIN RAISE 'USAGE_DB_PASSWORD is not set'; END $$;
\endif
\if :{?billing_password}
\else
  DO $$ BEGIN RAISE 'BILLING_DB_PASSWORD is not set'; END $$;
\endif
\if :{?analytics_password}
\else
  DO $$ BEGIN RAISE 'ANALYTICS_DB_PASSWORD is not set'; END $$;
\endif

-- no notice for what was granted before
SET client_min_messages = warning;

BEGIN;

SELECT format('CREATE ROLE %I NOINHERIT', login)
FROM unnest(ARRAY['nexus_usage_login', 'nexus_billing_login', 'nexus_analytics_login']) AS login
WHERE login NOT IN (SELECT rolname FROM pg_roles)
\gexec

GRANT nexus_usage TO nexus_usage_login;
GRANT nexus_billing TO nexus_billing_login;
GRANT nexus_analytics TO nexus_analytics_login;

ALTER ROLE nexus_usage_login LOGIN PASSWORD :'usage_password';
ALTER ROLE nexus_billing_login LOGIN PASSWORD :'billing_password';
ALTER ROLE nexus_analytics_login LOGIN PASSWORD :'analytics_password';

COMMIT;
