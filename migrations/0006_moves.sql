-- Moves: data files of the standalone whose content is being carried into this ledger, or has been.
--
-- Each step adds some rows to the counters or to the claims and notes here how far it came, in one transaction. So a
-- move that is killed goes on where it was, and nothing is added twice. The row stays: it shows that a copy of the file,
-- such as an old backup, has been counted here.
create table moves (
    file_id          uuid             not null primary key,
    began_at         timestamptz      not null default now(),
    finished_at      timestamptz,
    -- All claims up to this id, and all domains up to this name, have been carried over.
    claims_through   uuid,
    domains_through  text collate "C" not null default '',
    claims           bigint           not null default 0,
    domains          bigint           not null default 0,
    delivered        numeric          not null default 0,
    bounced          numeric          not null default 0
);

comment on table moves is
    'Data files of the standalone whose content was carried into this ledger: one row each, with how far that has come.';
