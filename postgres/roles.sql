-- The roles and the database. A superuser runs this on the primary, with psql 15 or newer, whenever the
-- servers start. It may be repeated, and then sets the passwords again. They come from the environment,
-- CATCHALL_PASSWORD and CATCHALL_QUERY_PASSWORD, so that no process list shows them.

\set ON_ERROR_STOP on
\getenv password CATCHALL_PASSWORD
\getenv query_password CATCHALL_QUERY_PASSWORD
-- Otherwise a failed statement would write the password to the server's log.
set log_min_error_statement = panic;

-- catchall owns the database; the migrations and the worker use it.
select 'create role catchall' where not exists (select from pg_roles where rolname = 'catchall') \gexec
alter role catchall login password :'password';

-- catchall_query only reads. On the primary, too, it can do nothing else: it is granted only select.
select 'create role catchall_query' where not exists (select from pg_roles where rolname = 'catchall_query') \gexec
alter role catchall_query login password :'query_password';
alter role catchall_query set default_transaction_read_only = on;

-- A database cannot be created inside a transaction, and has no "if not exists".
select 'create database catchall owner catchall' where not exists (select from pg_database where datname = 'catchall') \gexec
revoke all on database catchall from public;
grant connect on database catchall to catchall_query;

\connect catchall
-- Tables that later migrations create, and those that exist already.
alter default privileges for role catchall grant select on tables to catchall_query;
grant usage on schema public to catchall_query;
grant select on all tables in schema public to catchall_query;
