-- Which feed of changes this file has: positions say it, so that none is taken for a place of another feed. Unlike the id
-- of the file, a copy that is put in its place gets another one when it is opened to be written: its changes are numbered
-- as those that came after the copy was made. A number of 32 bits.
alter table data_file add column feed integer not null default 0;
update data_file set feed = random() & 4294967295;
