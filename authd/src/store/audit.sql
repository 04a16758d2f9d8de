-- The audit log. `ends_at` counts the bytes of all records up to and with this one, those included that were archived.

CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY CHECK (seq > 0),
    record  BLOB NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    ends_at INTEGER NOT NULL
) STRICT;

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN
    SELECT raise(ABORT, 'a record of the audit log is never changed');
END;

CREATE TABLE checkpoints (
    seq        INTEGER PRIMARY KEY,
    checkpoint BLOB NOT NULL
) STRICT;
