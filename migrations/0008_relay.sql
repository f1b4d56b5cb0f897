-- The relay: changes of statuses as messages on the exchange catchall.changes.
--
-- One worker at a time publishes them, in the order of the feed, and notes here how far it came. It holds the row for some
-- seconds at a time; when it is gone, another takes over and may publish the last changes again. What was classified before
-- this migration is not published: it can be read from the feed at any time.
create table change_relay (
    only_row     boolean          not null primary key default true check (only_row),
    changed_in   bigint           not null,
    domain       text collate "C" not null default '',
    holder       uuid,
    held_until   timestamptz      not null default now()
);
insert into change_relay (changed_in) values (pg_current_xact_id()::text::bigint);

comment on table change_relay is
    'How far the changes of statuses are published on catchall.changes, and which worker publishes them. One row.';
