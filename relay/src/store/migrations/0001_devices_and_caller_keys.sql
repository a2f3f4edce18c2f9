-- Devices, their public keys, and the keys that callers' tokens are signed with.
-- Times are milliseconds since 1970; keys are SPKI in DER; thumbprints are RFC 7638 in base64url.

CREATE TABLE devices (
    device       TEXT   NOT NULL PRIMARY KEY,
    created_ms   BIGINT NOT NULL,
    last_seen_ms BIGINT
);

CREATE TABLE device_keys (
    kid          TEXT   NOT NULL PRIMARY KEY, -- one key, one device
    device       TEXT   NOT NULL REFERENCES devices (device) ON DELETE CASCADE,
    spki         BLOB   NOT NULL,
    created_ms   BIGINT NOT NULL,
    last_used_ms BIGINT
);

CREATE INDEX device_keys_by_device ON device_keys (device);

CREATE TABLE caller_keys (
    kid    TEXT NOT NULL PRIMARY KEY,
    iss    TEXT NOT NULL, -- the claim in tokens
    issuer TEXT NOT NULL, -- the operator's short name for it
    spki   BLOB NOT NULL
);
