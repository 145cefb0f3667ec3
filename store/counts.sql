-- Triggers that count the rows that make up a directory, so that a table that was read only in part
-- is noticed. This text is for SQLite; PostgreSQL writes triggers differently.

CREATE TRIGGER service_users_added AFTER INSERT ON service_users WHEN NEW.deleted_at = 0
BEGIN UPDATE meta SET service_users = service_users + 1; END;
CREATE TRIGGER service_users_removed AFTER DELETE ON service_users WHEN OLD.deleted_at = 0
BEGIN UPDATE meta SET service_users = service_users - 1; END;
CREATE TRIGGER service_users_buried AFTER UPDATE OF deleted_at ON service_users WHEN (OLD.deleted_at = 0) <> (NEW.deleted_at = 0)
BEGIN UPDATE meta SET service_users = service_users + (NEW.deleted_at = 0) - (OLD.deleted_at = 0); END;

CREATE TRIGGER tokens_added AFTER INSERT ON tokens WHEN NEW.revoked_at = 0
BEGIN UPDATE meta SET tokens = tokens + 1; END;
CREATE TRIGGER tokens_removed AFTER DELETE ON tokens WHEN OLD.revoked_at = 0
BEGIN UPDATE meta SET tokens = tokens - 1; END;
CREATE TRIGGER tokens_revoked AFTER UPDATE OF revoked_at ON tokens WHEN (OLD.revoked_at = 0) <> (NEW.revoked_at = 0)
BEGIN UPDATE meta SET tokens = tokens + (NEW.revoked_at = 0) - (OLD.revoked_at = 0); END;

CREATE TRIGGER permission_groups_added AFTER INSERT ON permission_groups WHEN NEW.deleted_at = 0
BEGIN UPDATE meta SET permission_groups = permission_groups + 1; END;
CREATE TRIGGER permission_groups_removed AFTER DELETE ON permission_groups WHEN OLD.deleted_at = 0
BEGIN UPDATE meta SET permission_groups = permission_groups - 1; END;
CREATE TRIGGER permission_groups_buried AFTER UPDATE OF deleted_at ON permission_groups WHEN (OLD.deleted_at = 0) <> (NEW.deleted_at = 0)
BEGIN UPDATE meta SET permission_groups = permission_groups + (NEW.deleted_at = 0) - (OLD.deleted_at = 0); END;

CREATE TRIGGER rules_added AFTER INSERT ON rules
BEGIN UPDATE meta SET rules = rules + 1; END;
CREATE TRIGGER rules_removed AFTER DELETE ON rules
BEGIN UPDATE meta SET rules = rules - 1; END;

CREATE TRIGGER group_permissions_added AFTER INSERT ON group_permissions
BEGIN UPDATE meta SET group_permissions = group_permissions + 1; END;
CREATE TRIGGER group_permissions_removed AFTER DELETE ON group_permissions
BEGIN UPDATE meta SET group_permissions = group_permissions - 1; END;

CREATE TRIGGER members_added AFTER INSERT ON members
BEGIN UPDATE meta SET members = members + 1; END;
CREATE TRIGGER members_removed AFTER DELETE ON members
BEGIN UPDATE meta SET members = members - 1; END;
