-- The roles and the database. A superuser runs this on the primary, with psql 15 or newer, whenever the
-- servers start. It may be repeated, and then sets the passwords again. They come from the environment,
-- CATCHALL_PASSWORD, CATCHALL_WORKER_PASSWORD and CATCHALL_QUERY_PASSWORD, so that no process list shows them.

\set ON_ERROR_STOP on
\getenv password CATCHALL_PASSWORD
\getenv worker_password CATCHALL_WORKER_PASSWORD
\getenv query_password CATCHALL_QUERY_PASSWORD
-- Otherwise a statement that fails, or takes long, would write the password to the server's log.
set log_min_error_statement = panic;
set log_min_duration_statement = -1;
set log_statement = none;

-- catchall owns the database and migrates it. No service needs it.
select 'create role catchall' where not exists (select from pg_roles where rolname = 'catchall') \gexec
alter role catchall login password :'password';

-- catchall_worker counts: it reads and writes rows, and creates nothing.
select 'create role catchall_worker' where not exists (select from pg_roles where rolname = 'catchall_worker') \gexec
alter role catchall_worker login password :'worker_password';

-- catchall_query only reads. On the primary, too, it can do nothing else: it is granted only select.
select 'create role catchall_query' where not exists (select from pg_roles where rolname = 'catchall_query') \gexec
alter role catchall_query login password :'query_password';
alter role catchall_query set default_transaction_read_only = on;

-- A database cannot be created inside a transaction, and has no "if not exists".
select 'create database catchall owner catchall' where not exists (select from pg_database where datname = 'catchall') \gexec
revoke all on database catchall from public;
grant connect on database catchall to catchall_worker, catchall_query;

\connect catchall
-- An earlier version granted more than is needed.
alter default privileges for role catchall revoke select on tables from catchall_query;
\ir grants.sql
