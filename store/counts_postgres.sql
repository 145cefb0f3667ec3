-- The triggers of counts.sql, for PostgreSQL. A statement that adds or removes many rows updates meta
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

CREATE TRIGGER service_users_added AFTER INSERT ON service_users
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('deleted_at = 0');
CREATE TRIGGER service_users_removed AFTER DELETE ON service_users
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('deleted_at = 0');
CREATE TRIGGER service_users_buried AFTER UPDATE OF deleted_at ON service_users
FOR EACH ROW WHEN ((OLD.deleted_at = 0) <> (NEW.deleted_at = 0)) EXECUTE FUNCTION store_count_row('deleted_at');

CREATE TRIGGER tokens_added AFTER INSERT ON tokens
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('revoked_at = 0');
CREATE TRIGGER tokens_removed AFTER DELETE ON tokens
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('revoked_at = 0');
CREATE TRIGGER tokens_revoked AFTER UPDATE OF revoked_at ON tokens
FOR EACH ROW WHEN ((OLD.revoked_at = 0) <> (NEW.revoked_at = 0)) EXECUTE FUNCTION store_count_row('revoked_at');

CREATE TRIGGER permission_groups_added AFTER INSERT ON permission_groups
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('deleted_at = 0');
CREATE TRIGGER permission_groups_removed AFTER DELETE ON permission_groups
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('deleted_at = 0');
CREATE TRIGGER permission_groups_buried AFTER UPDATE OF deleted_at ON permission_groups
FOR EACH ROW WHEN ((OLD.deleted_at = 0) <> (NEW.deleted_at = 0)) EXECUTE FUNCTION store_count_row('deleted_at');

CREATE TRIGGER rules_added AFTER INSERT ON rules
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');
CREATE TRIGGER rules_removed AFTER DELETE ON rules
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');

CREATE TRIGGER group_permissions_added AFTER INSERT ON group_permissions
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');
CREATE TRIGGER group_permissions_removed AFTER DELETE ON group_permissions
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');

CREATE TRIGGER members_added AFTER INSERT ON members
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');
CREATE TRIGGER members_removed AFTER DELETE ON members
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION store_count_rows('TRUE');
