-- Version 3: disk images.

CREATE TABLE disk_images (
    name            TEXT PRIMARY KEY,               -- the URL it is from, or the name it was given
    digest          TEXT NOT NULL,                  -- of what was transferred, names the blob
    size            INTEGER NOT NULL,               -- on disk
    virtual_size    INTEGER NOT NULL,               -- of the disk that a guest sees
    etag            TEXT,                           -- as its server called this version
    last_modified   TEXT,                           -- as its server said
    created_at      TEXT NOT NULL                   -- when this host pulled it
) STRICT, WITHOUT ROWID;

ALTER TABLE vms ADD COLUMN first_booted_at TEXT;    -- when the guest had booted for the first time, to the end
