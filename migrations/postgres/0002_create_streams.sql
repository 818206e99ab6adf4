-- Streams of durable channels and their publications.
-- Locks: new tables only, nothing that exists is touched. Back: drop the tables named here.
-- Times are milliseconds since 1970. Priorities: 1 low, 2 normal, 3 high, 4 critical; 0 when the publisher named none.

-- One row per channel: who holds its lock gives out the next places, so places are committed in their order.
CREATE TABLE archmesh_streams (
    channel     TEXT PRIMARY KEY,
    -- Names the stream; offsets of different epochs cannot be compared.
    epoch       TEXT   NOT NULL,
    -- Of the newest publication.
    top_seq     BIGINT NOT NULL,
    -- Everything up to here was removed: nobody reads it any more.
    floor_seq   BIGINT NOT NULL DEFAULT 0,
    -- Rows up to here have been deleted.
    deleted_seq BIGINT NOT NULL DEFAULT 0,
    -- Publications that the channel keeps.
    size_max    BIGINT NOT NULL,
    -- Life of the database in which the row was written: another one may have lost newer publications, so the stream begins
    -- anew. An empty text is the life of none.
    incarnation TEXT   NOT NULL,
    updated_at  BIGINT NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE archmesh_publications (
    channel    TEXT   NOT NULL,
    seq        BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    priority   BIGINT NOT NULL,
    type       TEXT   NOT NULL,
    data       TEXT   NOT NULL,
    -- The publisher's key, who it is, further members of the envelope, the connection that wants no copy.
    key        TEXT,
    sender     TEXT,
    extra      TEXT,
    origin     TEXT,
    PRIMARY KEY (channel, seq, expires_at)
) PARTITION BY RANGE (expires_at);

-- The gateway adds partitions ahead of time and drops them when everything in them has expired; this one takes the rest.
CREATE TABLE archmesh_publications_default PARTITION OF archmesh_publications DEFAULT;
CREATE INDEX archmesh_publications_default_expires ON archmesh_publications_default (expires_at);
CREATE TABLE archmesh_publication_partitions (
    name    TEXT PRIMARY KEY,
    from_at BIGINT NOT NULL,
    to_at   BIGINT NOT NULL
);

-- Publishing again with the same key answers the first place.
CREATE TABLE archmesh_publication_keys (
    channel         TEXT   NOT NULL,
    idempotency_key TEXT   NOT NULL,
    epoch           TEXT   NOT NULL,
    seq             BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    PRIMARY KEY (channel, idempotency_key)
);
CREATE INDEX archmesh_publication_keys_expires ON archmesh_publication_keys (expires_at);
