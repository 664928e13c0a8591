-- Version 2: snapshots.

CREATE TABLE snapshots (
    id              TEXT PRIMARY KEY,
    name            TEXT UNIQUE,                    -- a snapshot needs none
    description     TEXT NOT NULL,
    vm              TEXT NOT NULL,                  -- which was saved; it may be gone by now
    vm_name         TEXT NOT NULL,                  -- its name then
    state           TEXT NOT NULL,
    size            INTEGER NOT NULL,               -- on disk, when it was made
    created_at      TEXT NOT NULL,                  -- when the VM was saved
    config          TEXT NOT NULL                   -- JSON: the VM's, as it was
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot_blobs (                       -- layers that a snapshot keeps from gc
    snapshot        TEXT NOT NULL REFERENCES snapshots ON DELETE CASCADE,
    digest          TEXT NOT NULL,
    PRIMARY KEY (snapshot, digest)
) STRICT, WITHOUT ROWID;
