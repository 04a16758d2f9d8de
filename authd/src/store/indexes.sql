-- What `status` asks for: it comes from everybody, and must not cost more where many were trusted or revoked before.

CREATE INDEX providers ON identities (state) WHERE role = 'provider';
CREATE INDEX active_leases ON leases (bytes) WHERE stage = 'active';
