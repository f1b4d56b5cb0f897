-- What the roles may do with the tables. `catchall-migrate` runs this after the migrations, and roles.sql where there
-- are tables already, so that neither has to be repeated after the other. All of it takes effect at once, so that no
-- running service lacks a right for a moment. A role or a table that does not exist is left out: the tables may be
-- older than this file.
do $$
declare
    given record;
begin
    -- Two sessions that grant at the same time would both update the same catalogue rows, and one would fail.
    perform pg_advisory_xact_lock(7161132565001792876);
    -- An earlier version let catchall_query read everything.
    for given in
        select relname as name from pg_class
        where relnamespace = to_regnamespace('public') and relkind in ('r', 'v') and pg_has_role(relowner, 'usage')
            and to_regrole('catchall_query') is not null
    loop
        execute format('revoke all on public.%I from catchall_query', given.name);
    end loop;
    for given in
        select * from (values
            ('catchall_worker', 'domain_counters', 'select, insert, update'),
            ('catchall_worker', 'pruned_claims', 'select, insert, update'),
            ('catchall_worker', 'message_claims', 'select, insert, update, delete'),
            ('catchall_worker', 'event_claims', 'select, insert, update, delete'),
            ('catchall_worker', 'watermarks', 'select, insert, update, delete'),
            ('catchall_worker', 'queue_progress', 'select'),
            ('catchall_worker', 'classification', 'select'),
            ('catchall_worker', 'domain_statuses', 'select, insert, update'),
            ('catchall_worker', 'totals', 'select, insert, update, delete'),
            ('catchall_worker', 'change_relay', 'select, update'),
            ('catchall_worker', '_sqlx_migrations', 'select'),
            ('catchall_query', 'domain_counters', 'select'),
            ('catchall_query', 'classification', 'select'),
            ('catchall_query', 'domain_statuses', 'select'),
            ('catchall_query', 'totals', 'select'),
            ('catchall_query', '_sqlx_migrations', 'select')
        ) as given (role, name, rights)
        where to_regrole(role) is not null and to_regclass('public.' || name) is not null
    loop
        execute format('grant usage on schema public to %I', given.role);
        execute format('grant %s on public.%I to %I', given.rights, given.name, given.role);
    end loop;
end
$$;
