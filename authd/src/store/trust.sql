-- Names, drained providers, proposals, and keys that took over from others.

ALTER TABLE identities ADD COLUMN name TEXT;
ALTER TABLE identities ADD COLUMN drained INTEGER NOT NULL DEFAULT 0 CHECK (drained IN (0, 1));
-- The provider's key as the holder has pinned it; none: it is still `provider`.
ALTER TABLE leases ADD COLUMN signer BLOB CHECK (length(signer) = 32);

CREATE TABLE proposals (
    id              BLOB PRIMARY KEY CHECK (length(id) = 16),
    effect          BLOB NOT NULL,
    made_by         BLOB NOT NULL REFERENCES identities (key),
    expires_unix_ms INTEGER NOT NULL
) STRICT;

-- One of an operator to a proposal.
CREATE TABLE approvals (
    proposal  BLOB NOT NULL REFERENCES proposals (id) ON DELETE CASCADE,
    operator  BLOB NOT NULL REFERENCES identities (key),
    statement BLOB NOT NULL,
    PRIMARY KEY (proposal, operator)
) STRICT;

-- Who took over from whom.
CREATE TABLE successions (
    old       BLOB PRIMARY KEY REFERENCES identities (key),
    new       BLOB NOT NULL REFERENCES identities (key),
    statement BLOB NOT NULL,
    unix_ms   INTEGER NOT NULL
) STRICT;

CREATE INDEX successions_by_new ON successions (new);

-- The auth daemon's own keys, each step signed by the one before.
CREATE TABLE authd_keys (
    number    INTEGER PRIMARY KEY,
    old       BLOB NOT NULL UNIQUE CHECK (length(old) = 32),
    statement BLOB NOT NULL,
    unix_ms   INTEGER NOT NULL
) STRICT;
