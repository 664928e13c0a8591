-- Version 1. Times are RFC 3339 in UTC; digests are sha256:<hex>; sizes are bytes.

CREATE TABLE images (
    name            TEXT PRIMARY KEY,               -- normalised reference
    digest          TEXT NOT NULL,                  -- of the platform's manifest
    size            INTEGER NOT NULL,               -- on disk: blobs and boot files
    architecture    TEXT NOT NULL,
    kernel_layer    TEXT NOT NULL,
    initrd_layer    TEXT NOT NULL,
    created_at      TEXT NOT NULL,                  -- when this host pulled it
    built_at        TEXT                            -- as the image says itself
) STRICT, WITHOUT ROWID;

CREATE TABLE image_layers (
    image           TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    position        INTEGER NOT NULL,               -- 0 is the bottom
    digest          TEXT NOT NULL,                  -- of the compressed layer, names the blob
    diff_id         TEXT NOT NULL,
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE vms (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    state           TEXT NOT NULL,
    reason          TEXT,                           -- why it is stopped or in error
    run             TEXT,                           -- names the current or last run of the VM process
    created_at      TEXT NOT NULL,
    updated_at      TEXT NOT NULL,
    started_at      TEXT,
    stopped_at      TEXT,
    config          TEXT NOT NULL                   -- JSON: what was asked for and resolved at create
) STRICT, WITHOUT ROWID;

CREATE TABLE vm_blobs (                             -- layers that a VM keeps from gc
    vm              TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
    digest          TEXT NOT NULL,
    PRIMARY KEY (vm, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE networks (                             -- the network of a VM, as far as it has been made
    vm              TEXT PRIMARY KEY REFERENCES vms ON DELETE CASCADE,
    record          TEXT NOT NULL                   -- JSON: netns, exact conflist, NICs
) STRICT, WITHOUT ROWID;
