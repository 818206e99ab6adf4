-- Streams of durable channels and their publications.
-- Locks: new tables only, nothing that exists is touched. Back: drop the tables named here.
-- Times are milliseconds since 1970. Priorities: 1 low, 2 normal, 3 high, 4 critical; 0 when the publisher named none.

-- One row per channel: who holds its lock gives out the next places, so places are committed in their order.
CREATE TABLE archmesh_streams (
    channel     TEXT PRIMARY KEY,
    -- Names the stream; offsets of different epochs cannot be compared.
    epoch       TEXT   NOT NULL,
    -- Of the newest publication.
    top_seq     INTEGER NOT NULL,
    -- Everything up to here was removed: nobody reads it any more.
    floor_seq   INTEGER NOT NULL DEFAULT 0,
    -- Rows up to here have been deleted.
    deleted_seq INTEGER NOT NULL DEFAULT 0,
    -- Publications that the channel keeps.
    size_max    INTEGER NOT NULL,
    -- Life of the database in which the row was written: another one may have lost newer publications, so the stream begins
    -- anew. An empty text is the life of none.
    incarnation TEXT   NOT NULL,
    updated_at  INTEGER NOT NULL
);

CREATE TABLE archmesh_publications (
    channel    TEXT   NOT NULL,
    seq        INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    priority   INTEGER NOT NULL,
    type       TEXT   NOT NULL,
    data       TEXT   NOT NULL,
    -- The publisher's key, who it is, further members of the envelope, the connection that wants no copy.
    key        TEXT,
    sender     TEXT,
    extra      TEXT,
    origin     TEXT,
    PRIMARY KEY (channel, seq)
);
CREATE INDEX archmesh_publications_expires ON archmesh_publications (expires_at);

-- Publishing again with the same key answers the first place.
CREATE TABLE archmesh_publication_keys (
    channel         TEXT   NOT NULL,
    idempotency_key TEXT   NOT NULL,
    epoch           TEXT   NOT NULL,
    seq             INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    PRIMARY KEY (channel, idempotency_key)
) WITHOUT ROWID;
CREATE INDEX archmesh_publication_keys_expires ON archmesh_publication_keys (expires_at);
