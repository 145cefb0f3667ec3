-- The store of service users, version 10. Times are Unix seconds in UTC; 0 means "never" or "not
-- yet". Lists and maps are JSON text. The same text serves SQLite and PostgreSQL.
--
-- A revision is the number of a change. The column revision has the last change that affected the
-- part of the row that requests depend on; a node reads the rows with a higher revision than the
-- one it knows. A version counts the changes of the row's own fields and is its ETag.

CREATE TABLE meta (
	id          INTEGER PRIMARY KEY CHECK (id = 1), -- the only row
	instance_id TEXT    NOT NULL, -- store_…, created once; identifies this store
	revision    BIGINT  NOT NULL, -- the number of the last change
	audit_seq   BIGINT  NOT NULL, -- the number of the last record of the audit trail …
	audit_hash  TEXT    NOT NULL, -- … and its hash, in hex
	created_at  BIGINT  NOT NULL,
	-- The numbers of rows, kept by triggers (counts.sql). They reveal a table that was read
	-- only in part, so that a directory is made of all rows or not at all.
	service_users     BIGINT NOT NULL DEFAULT 0, -- not deleted
	tokens            BIGINT NOT NULL DEFAULT 0, -- not revoked
	permission_groups BIGINT NOT NULL DEFAULT 0, -- not deleted
	rules             BIGINT NOT NULL DEFAULT 0,
	group_permissions BIGINT NOT NULL DEFAULT 0,
	members           BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE service_users (
	id             TEXT    PRIMARY KEY, -- service_…; never used again
	name           TEXT    NOT NULL,    -- unique among those that are not deleted
	display_name   TEXT    NOT NULL,
	description    TEXT    NOT NULL,
	owner          TEXT    NOT NULL,    -- the contact for questions
	alias          TEXT    NOT NULL,    -- a second login id; '' is none
	active         BOOLEAN NOT NULL,
	role           TEXT    NOT NULL,    -- admin, manager, member
	teams          TEXT    NOT NULL,    -- ["finance"]
	labels         TEXT    NOT NULL,    -- {"env":"prod"}
	allowed_ips    TEXT    NOT NULL,    -- ["10.0.0.0/8"]; [] is any
	expires_at     BIGINT  NOT NULL,
	created_at     BIGINT  NOT NULL,
	created_by     TEXT    NOT NULL,    -- local, local:…, human:…, service_…
	updated_at     BIGINT  NOT NULL,
	last_active_at BIGINT  NOT NULL,
	deleted_at     BIGINT  NOT NULL,    -- 0 if not deleted; a row with a time is a tombstone
	version        BIGINT  NOT NULL,
	revision       BIGINT  NOT NULL,
	-- The same for all names that read alike. A new name needs a key that no other service user
	-- has.
	name_key       TEXT    NOT NULL DEFAULT '',
	deleted_by     TEXT    NOT NULL DEFAULT '',    -- of a tombstone: the actor of the deletion …
	was_active     BOOLEAN NOT NULL DEFAULT FALSE  -- … and whether it was active before
);
CREATE UNIQUE INDEX service_users_name ON service_users (name) WHERE deleted_at = 0;
CREATE UNIQUE INDEX service_users_alias ON service_users (alias) WHERE deleted_at = 0 AND alias <> '';
-- This index is not unique: names from older versions may share a key.
CREATE INDEX service_users_name_key ON service_users (name_key) WHERE deleted_at = 0;
CREATE INDEX service_users_revision ON service_users (revision);
CREATE INDEX service_users_deleted ON service_users (deleted_at) WHERE deleted_at > 0;
CREATE INDEX service_users_activity ON service_users (last_active_at, id) WHERE deleted_at = 0;

CREATE TABLE tokens (
	id                TEXT   PRIMARY KEY, -- token_…
	service_user_id   TEXT   NOT NULL REFERENCES service_users (id),
	description       TEXT   NOT NULL,
	hint              TEXT   NOT NULL,    -- the last four characters of the secret
	hash              TEXT   NOT NULL,    -- hex of SHA-256(secret) or HMAC-SHA-256(pepper, SHA-256(secret))
	pepper_id         TEXT   NOT NULL,    -- the id of the pepper; '' is none
	expires_at        BIGINT NOT NULL,
	not_before        BIGINT NOT NULL,
	allowed_ips       TEXT   NOT NULL,
	metadata          TEXT   NOT NULL,
	permission_groups TEXT   NOT NULL,    -- limits the allows of the token to these groups; [] is all
	created_at        BIGINT NOT NULL,
	created_by        TEXT   NOT NULL,
	updated_at        BIGINT NOT NULL,
	last_used_at      BIGINT NOT NULL,
	last_used_ip      TEXT   NOT NULL,
	use_count         BIGINT NOT NULL,
	retires_at        BIGINT NOT NULL,    -- the end of the grace after a refresh; 0 is none
	revoked_at        BIGINT NOT NULL,
	replaced_by       TEXT   NOT NULL,    -- the id of the successor
	version           BIGINT NOT NULL,
	used_from         TEXT   NOT NULL DEFAULT '{}', -- {"192.0.2.7":1767323045}: the last addresses with their times
	used_rules        TEXT   NOT NULL DEFAULT '{}', -- {"rule_…":1767323045}: the last rules with their times
	refreshed_at      BIGINT NOT NULL DEFAULT 0,    -- the time of the refresh or rotation that replaced it
	count_at_refresh  BIGINT NOT NULL DEFAULT 0,    -- use_count at that time
	-- The last notice that the token ends soon: the end that it was about, and how many days ahead
	-- the notice was for.
	notice_end        BIGINT NOT NULL DEFAULT 0,
	notice_days       BIGINT NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX tokens_hash ON tokens (hash);
CREATE INDEX tokens_service_user ON tokens (service_user_id, id);
CREATE INDEX tokens_hint ON tokens (hint);
CREATE INDEX tokens_ends ON tokens (id, expires_at, retires_at) WHERE expires_at > 0 OR retires_at > 0;
CREATE INDEX tokens_notices ON tokens (expires_at, notice_end, notice_days) WHERE expires_at > 0 AND revoked_at = 0;

-- The idempotency keys of requests that issued tokens. A row has ended 24 hours later, and
-- the next key removes it.
CREATE TABLE idempotency_keys (
	digest     TEXT   PRIMARY KEY, -- hex of SHA-256(the actor's name and the key)
	request    TEXT   NOT NULL,    -- hex of SHA-256(method, path and body)
	tokens     TEXT   NOT NULL,    -- ["token_…"]: the tokens that the request issued
	created_at BIGINT NOT NULL
);

CREATE TABLE permission_groups (
	id               TEXT   PRIMARY KEY, -- group_…
	name             TEXT   NOT NULL,    -- unique among those that are not deleted
	description      TEXT   NOT NULL,
	mode             TEXT   NOT NULL,    -- enforce, observe
	member_condition TEXT   NOT NULL,
	created_at       BIGINT NOT NULL,
	created_by       TEXT   NOT NULL,
	updated_at       BIGINT NOT NULL,
	deleted_at       BIGINT NOT NULL,    -- 0 if not deleted; a row with a time is a tombstone
	version          BIGINT NOT NULL,
	revision         BIGINT NOT NULL,
	deleted_by       TEXT   NOT NULL DEFAULT '' -- of a tombstone: the actor of the deletion
);
CREATE UNIQUE INDEX permission_groups_name ON permission_groups (name) WHERE deleted_at = 0;
CREATE INDEX permission_groups_revision ON permission_groups (revision);

CREATE TABLE rules (
	id          TEXT   PRIMARY KEY, -- rule_…
	group_id    TEXT   NOT NULL REFERENCES permission_groups (id),
	position    BIGINT NOT NULL,    -- the order that people see, without effect on decisions
	effect      TEXT   NOT NULL,    -- allow, deny
	methods     TEXT   NOT NULL,    -- GET,HEAD
	host        TEXT   NOT NULL,
	path        TEXT   NOT NULL,
	condition   TEXT   NOT NULL,
	name        TEXT   NOT NULL,
	description TEXT   NOT NULL,
	created_at  BIGINT NOT NULL
);
CREATE INDEX rules_group ON rules (group_id, position);

-- The catalogue: named rights, each of which represents rules and can be given to a group.
CREATE TABLE permissions (
	key         TEXT   PRIMARY KEY, -- people.address.view
	name        TEXT   NOT NULL,
	description TEXT   NOT NULL,
	category    TEXT   NOT NULL,
	position    BIGINT NOT NULL,    -- the order that people see
	rules       TEXT   NOT NULL,    -- ["allow GET /v1/people/{id}/address"]
	created_at  BIGINT NOT NULL,
	created_by  TEXT   NOT NULL,
	updated_at  BIGINT NOT NULL
);

CREATE TABLE group_permissions (
	group_id       TEXT   NOT NULL REFERENCES permission_groups (id),
	permission_key TEXT   NOT NULL REFERENCES permissions (key),
	created_at     BIGINT NOT NULL,
	PRIMARY KEY (group_id, permission_key)
);
CREATE INDEX group_permissions_permission ON group_permissions (permission_key);

CREATE TABLE members (
	group_id        TEXT   NOT NULL REFERENCES permission_groups (id),
	service_user_id TEXT   NOT NULL REFERENCES service_users (id),
	created_at      BIGINT NOT NULL,
	PRIMARY KEY (group_id, service_user_id)
);
CREATE INDEX members_service_user ON members (service_user_id, group_id);

-- The members and permissions that a deleted group had, for an undelete. Decisions and lists read
-- members and group_permissions only, so a deleted group gives no right.
CREATE TABLE deleted_links (
	group_id TEXT NOT NULL REFERENCES permission_groups (id),
	kind     TEXT NOT NULL, -- member, permission
	link     TEXT NOT NULL, -- the id of the service user; the key of the permission
	PRIMARY KEY (group_id, kind, link)
);

CREATE TABLE audit_events (
	seq          BIGINT PRIMARY KEY, -- 1, 2, 3 … without a gap
	id           TEXT   NOT NULL,    -- audit_…
	at           BIGINT NOT NULL,
	actor        TEXT   NOT NULL,    -- local, local:…, human:…, service_…
	action       TEXT   NOT NULL,    -- service_user.create, token.revoke, …
	resource_id  TEXT   NOT NULL,    -- the id of the changed resource
	before       TEXT   NOT NULL,    -- JSON without secrets; '' when the resource did not exist
	after        TEXT   NOT NULL,    -- JSON without secrets; '' when it no longer exists
	operation_id TEXT   NOT NULL,    -- op_…, as in the answer and the log
	prev_hash    TEXT   NOT NULL,    -- the hash of the previous record
	hash         TEXT   NOT NULL     -- SHA-256 over prev_hash and every other column
);
CREATE INDEX audit_events_resource ON audit_events (resource_id, seq);

-- The further resources that a record concerns, such as the group of a new member. The records
-- themselves have this information: see indexSubjects.
CREATE TABLE audit_subjects (
	resource_id TEXT   NOT NULL,
	seq         BIGINT NOT NULL,
	PRIMARY KEY (resource_id, seq)
);

-- The newest refusals that have a decision id, for later questions about them. They are not a part of
-- the directory: neither the revision nor the audit trail changes with them.
CREATE TABLE refusals (
	id              TEXT   PRIMARY KEY, -- decision_…
	at              BIGINT NOT NULL,
	service_user_id TEXT   NOT NULL,
	node            TEXT   NOT NULL,    -- the name of the node that refused the request; '' if it has none
	text            TEXT   NOT NULL     -- JSON without secrets: see refusalText
);
CREATE INDEX refusals_service_user ON refusals (service_user_id, at, id);
