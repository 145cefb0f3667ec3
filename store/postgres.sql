-- The tables of a store in PostgreSQL alone, and its triggers.

CREATE TABLE store_schema (
	version BIGINT NOT NULL
);

-- The processes that have the store open. Times are in milliseconds.
CREATE TABLE nodes (
	id            TEXT   PRIMARY KEY,
	name          TEXT   NOT NULL,
	version       TEXT   NOT NULL,
	address       TEXT   NOT NULL,
	started_at    BIGINT NOT NULL,
	seen_at       BIGINT NOT NULL,
	revision      BIGINT NOT NULL,
	max_staleness BIGINT NOT NULL
);

-- The triggers of counts.sql. A statement that adds or removes many rows updates meta
-- once.

CREATE FUNCTION store_count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	n BIGINT;
BEGIN
	EXECUTE 'SELECT COUNT(*) FROM changed WHERE ' || TG_ARGV[0] INTO n;
	IF TG_OP = 'DELETE' THEN
		n := -n;
	END IF;
	EXECUTE format('UPDATE %I.meta SET %2$I = %2$I + $1', TG_TABLE_SCHEMA, TG_TABLE_NAME) USING n;
	RETURN NULL;
END $$;

-- The condition of its triggers is that a row begins or ends to count.
CREATE FUNCTION store_count_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('UPDATE %I.meta SET %2$I = %2$I + $1', TG_TABLE_SCHEMA, TG_TABLE_NAME)
		USING CASE to_jsonb(NEW) ->> TG_ARGV[0] WHEN '0' THEN 1 ELSE -1 END;
	RETURN NULL;
END $$;

DO $$
DECLARE
	part VARCHAR[];
BEGIN
	FOREACH part SLICE 1 IN ARRAY ARRAY[
		['service_users', 'deleted_at = 0'], ['tokens', 'revoked_at = 0'], ['permission_groups', 'deleted_at = 0'],
		['rules', 'TRUE'], ['group_permissions', 'TRUE'], ['members', 'TRUE']]
	LOOP
		EXECUTE format('
			CREATE TRIGGER %1$s_added AFTER INSERT ON %1$s REFERENCING NEW TABLE AS changed
			FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows(%2$L);
			CREATE TRIGGER %1$s_removed AFTER DELETE ON %1$s REFERENCING OLD TABLE AS changed
			FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows(%2$L)', part[1], part[2]);
	END LOOP;
END $$;

CREATE TRIGGER service_users_buried AFTER UPDATE OF deleted_at ON service_users
FOR EACH ROW WHEN ((OLD.deleted_at = 0) <> (NEW.deleted_at = 0)) EXECUTE FUNCTION store_count_row('deleted_at');
CREATE TRIGGER tokens_revoked AFTER UPDATE OF revoked_at ON tokens
FOR EACH ROW WHEN ((OLD.revoked_at = 0) <> (NEW.revoked_at = 0)) EXECUTE FUNCTION store_count_row('revoked_at');
CREATE TRIGGER permission_groups_buried AFTER UPDATE OF deleted_at ON permission_groups
FOR EACH ROW WHEN ((OLD.deleted_at = 0) <> (NEW.deleted_at = 0)) EXECUTE FUNCTION store_count_row('deleted_at');
