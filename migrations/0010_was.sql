-- What each domain was before it became what it is, written by the statement that notes a status. It tells the writer in
-- its answer what it has replaced, read under the lock of the row. So a reclassification need not lock the counters, for
-- which workers would wait. The column has no check, because that would read the whole table.
--
-- Workers of an earlier version lock no status: stop them before this runs.
alter table domain_statuses add column was smallint not null default 0;
