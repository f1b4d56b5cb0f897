-- The field's terms: "padding" for the bytes that keep room on a page, "prune" for the deletion of claims.
--
-- Nothing else changes, and no row is touched. Workers of earlier versions ask for the old names: end them before this
-- runs. What they hold goes back to the queue and is counted by the new ones.
alter table domain_counters rename column room to padding;

comment on column domain_counters.padding is
    'Says nothing. Keeps 16 bytes of the page free for later versions of the row: set when it is inserted, null once it is updated.';

alter table forgotten_claims rename to pruned_claims;

comment on table pruned_claims is
    'Claims last used before this time may have been pruned, by kind of claim.';
