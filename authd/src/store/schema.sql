-- Times ending in unix_ms are wall-clock times, for people and for invitations; what a lease's end rests on is
-- deadline_tick alone, milliseconds of its provider's clock in the life `boot`.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT;

CREATE TABLE identities (
    key               BLOB PRIMARY KEY CHECK (length(key) = 32),
    fingerprint       BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 20),
    state             TEXT NOT NULL CHECK (state IN ('pending', 'trusted', 'revoked')),
    role              TEXT CHECK (role IN ('consumer', 'provider', 'operator')),
    tenant            TEXT,
    last_seen_from    TEXT,
    last_seen_unix_ms INTEGER NOT NULL,
    CHECK (state <> 'trusted' OR role IS NOT NULL),
    CHECK (state <> 'pending' OR role IS NULL),
    CHECK ((role IS NOT NULL AND role = 'consumer') = (tenant IS NOT NULL))
) STRICT;

CREATE INDEX pending_by_age ON identities (last_seen_unix_ms) WHERE state = 'pending';

CREATE TABLE invitations (
    hash            BLOB PRIMARY KEY CHECK (length(hash) = 32),
    role            TEXT NOT NULL CHECK (role IN ('consumer', 'provider', 'operator')),
    tenant          TEXT,
    made_by         BLOB REFERENCES identities (key),
    expires_unix_ms INTEGER NOT NULL,
    used_by         BLOB REFERENCES identities (key),
    CHECK ((role = 'consumer') = (tenant IS NOT NULL))
) STRICT;

CREATE TABLE leases (
    id               BLOB PRIMARY KEY CHECK (length(id) = 16),
    nonce            BLOB CHECK (length(nonce) = 16),
    holder           BLOB NOT NULL REFERENCES identities (key),
    tenant           TEXT NOT NULL,
    provider         BLOB NOT NULL REFERENCES identities (key),
    boot             BLOB NOT NULL CHECK (length(boot) = 16),
    generation       INTEGER NOT NULL,
    bytes            INTEGER NOT NULL CHECK (bytes > 0),
    block            INTEGER NOT NULL CHECK (block > 0),
    blocks           INTEGER NOT NULL CHECK (blocks > 0),
    pinned_bytes     INTEGER NOT NULL CHECK (pinned_bytes > 0),
    deadline_tick    INTEGER NOT NULL,
    deadline_unix_ms INTEGER NOT NULL,
    made_unix_ms     INTEGER NOT NULL,
    stage            TEXT NOT NULL
                     CHECK (stage IN ('carving', 'abandoned', 'active', 'ending', 'ended', 'lost')),
    reason           TEXT,
    fenced           INTEGER NOT NULL DEFAULT 0 CHECK (fenced IN (0, 1)),
    receipt          BLOB,
    UNIQUE (holder, nonce)
) STRICT;

CREATE INDEX leases_by_provider ON leases (provider, stage);
CREATE INDEX leases_by_tenant ON leases (tenant, stage);
