-- What the roles may do with the tables. `catchall-migrate` runs this after the migrations, and roles.sql where there
-- are tables already, so that neither has to be repeated after the other. A role that does not exist gets nothing.
do $$
begin
    if exists (select from pg_roles where rolname = 'catchall_worker') then
        grant usage on schema public to catchall_worker;
        grant select, insert, update on domain_counters, pruned_claims to catchall_worker;
        grant select, insert, update, delete on message_claims, event_claims, watermarks to catchall_worker;
        grant select on queue_progress, _sqlx_migrations to catchall_worker;
    end if;
    if exists (select from pg_roles where rolname = 'catchall_query') then
        grant usage on schema public to catchall_query;
        grant select on domain_counters, _sqlx_migrations to catchall_query;
    end if;
end
$$;
