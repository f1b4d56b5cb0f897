-- What operators do: changes of the rule, resets and imports, each with who did it and why.

-- walk is the number of the latest run of a reclassification. A run that finds another number there has been taken over.
alter table classification add column walk bigint not null default 0;

-- A row for each thing that an operator did, written in the transaction that did it. The table stays small, so nothing
-- but its key is indexed. The ids are made by the tool, in the order of its clock.
create table audit_log (
    id      uuid        not null primary key,
    at      timestamptz not null default now(),
    action  text        not null,
    subject text        not null,
    by_whom text        not null,
    reason  text        not null,
    details jsonb       not null
);

comment on table audit_log is
    'What operators did to the counters and the rule: when, who and why. details has the numbers.';

-- A row for each file that was imported, or is being imported, by the SHA-256 of its content: so it counts once, under
-- whatever name and whenever it comes. Each step moves bytes_through on from where it is, in the transaction that counts.
create table imports (
    digest        bytea       not null primary key check (length(digest) = 32),
    name          text        not null,
    bytes         bigint      not null,
    bytes_through bigint      not null default 0,
    rows          bigint      not null default 0,
    delivered     numeric     not null default 0,
    bounced       numeric     not null default 0,
    begun_at      timestamptz not null default now(),
    finished_at   timestamptz
);

comment on table imports is
    'Files of history: how much of each has been counted. A row must outlive every copy of its file.';
