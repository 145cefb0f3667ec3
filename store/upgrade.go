package store

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

//go:embed schema.sql
var schema string

// counts has the triggers that keep the numbers of rows in meta, since schema version 4. An upgrade
// that changes them must drop the old ones first.
//
//go:embed counts.sql
var counts string

// upgrades has the steps from older schemas to the present one: upgrades[i] leads from version i+1
// to version i+2. Steps are only ever appended; schema.sql always creates the newest version.
var upgrades = []string{
	// 2: the catalogue of permissions.
	`CREATE TABLE permissions (
		key         TEXT   PRIMARY KEY,
		name        TEXT   NOT NULL,
		description TEXT   NOT NULL,
		category    TEXT   NOT NULL,
		position    BIGINT NOT NULL,
		rules       TEXT   NOT NULL,
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
	CREATE INDEX group_permissions_permission ON group_permissions (permission_key);`,
	// 3: the use of tokens, and tombstones.
	`ALTER TABLE tokens ADD COLUMN used_from        TEXT   NOT NULL DEFAULT '{}';
	ALTER TABLE tokens ADD COLUMN used_rules       TEXT   NOT NULL DEFAULT '{}';
	ALTER TABLE tokens ADD COLUMN refreshed_at     BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE tokens ADD COLUMN count_at_refresh BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE tokens ADD COLUMN quiet_after      BIGINT NOT NULL DEFAULT 0;
	CREATE INDEX tokens_quiet ON tokens (quiet_after) WHERE quiet_after > 0 AND revoked_at = 0;
	CREATE INDEX service_users_deleted ON service_users (deleted_at) WHERE deleted_at > 0;`,
	// 4: how many rows there are.
	`ALTER TABLE meta ADD COLUMN service_users     BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN tokens            BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN permission_groups BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN rules             BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN group_permissions BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN members           BIGINT NOT NULL DEFAULT 0;
	UPDATE meta SET
		service_users     = (SELECT COUNT(*) FROM service_users WHERE deleted_at = 0),
		tokens            = (SELECT COUNT(*) FROM tokens WHERE revoked_at = 0),
		permission_groups = (SELECT COUNT(*) FROM permission_groups WHERE deleted_at = 0),
		rules             = (SELECT COUNT(*) FROM rules),
		group_permissions = (SELECT COUNT(*) FROM group_permissions),
		members           = (SELECT COUNT(*) FROM members);` + counts,
	// 5: names that read alike. From this version on the note beside the database belongs to
	// the owner of the database ([noteSince]).
	`ALTER TABLE service_users ADD COLUMN name_key TEXT NOT NULL DEFAULT '';
	UPDATE service_users SET name_key = service_user_name_key(name);
	CREATE INDEX service_users_name_key ON service_users (name_key) WHERE deleted_at = 0;`,
	// 6: a retiring token ends with its grace, and no earlier.
	`DROP INDEX tokens_quiet;
	ALTER TABLE tokens DROP COLUMN quiet_after;`,
	// 7: the actor of a deletion, the links of deleted groups, the subjects of audit records, and
	// idempotency keys.
	upgradeTrail + `;
	CREATE TABLE idempotency_keys (digest TEXT PRIMARY KEY, request TEXT NOT NULL, tokens TEXT NOT NULL,
		created_at BIGINT NOT NULL);`,
	// 8: lists by last activity, the search for the hint of a token, and tokens that end soon.
	`CREATE INDEX service_users_activity ON service_users (last_active_at, id) WHERE deleted_at = 0;
	CREATE INDEX tokens_hint ON tokens (hint);
	CREATE INDEX tokens_ends ON tokens (id, expires_at, retires_at) WHERE expires_at > 0 OR retires_at > 0;`,
	// 9: refusals.
	`CREATE TABLE refusals (id TEXT PRIMARY KEY, at BIGINT NOT NULL, service_user_id TEXT NOT NULL,
		node TEXT NOT NULL, text TEXT NOT NULL);
	CREATE INDEX refusals_service_user ON refusals (service_user_id, at, id);`,
	// 10: notices that tokens end soon.
	`ALTER TABLE tokens ADD COLUMN notice_end  BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE tokens ADD COLUMN notice_days BIGINT NOT NULL DEFAULT 0;
	CREATE INDEX tokens_notices ON tokens (expires_at, notice_end, notice_days) WHERE expires_at > 0 AND revoked_at = 0;`,
}

// upgradeTrail fills the new columns from the audit trail. Earlier versions did not keep the members
// of a deleted group; the link ” makes an undelete say so.
var upgradeTrail = `
	ALTER TABLE service_users ADD COLUMN deleted_by TEXT NOT NULL DEFAULT '';
	ALTER TABLE service_users ADD COLUMN was_active BOOLEAN NOT NULL DEFAULT FALSE;
	ALTER TABLE permission_groups ADD COLUMN deleted_by TEXT NOT NULL DEFAULT '';
	CREATE TABLE deleted_links (
		group_id TEXT NOT NULL REFERENCES permission_groups (id),
		kind     TEXT NOT NULL,
		link     TEXT NOT NULL,
		PRIMARY KEY (group_id, kind, link)
	);
	CREATE TABLE audit_subjects (
		resource_id TEXT   NOT NULL,
		seq         BIGINT NOT NULL,
		PRIMARY KEY (resource_id, seq)
	);
	UPDATE service_users SET deleted_by = actor, was_active = COALESCE(json_extract(before, '$.active'), FALSE)
	FROM (SELECT resource_id, actor, before, MAX(seq) FROM audit_events
		WHERE action = 'service_user.delete' AND json_valid(before) GROUP BY resource_id)
	WHERE resource_id = id AND deleted_at > 0;
	UPDATE permission_groups SET deleted_by = actor FROM ` + lastDeletions + `
	WHERE d.resource_id = permission_groups.id AND deleted_at > 0;
	INSERT INTO deleted_links SELECT id, 'member', '' FROM permission_groups WHERE deleted_at > 0;
	INSERT OR IGNORE INTO deleted_links SELECT g.id, 'permission', value
	FROM permission_groups g JOIN ` + lastDeletions + ` ON d.resource_id = g.id AND g.deleted_at > 0,
		json_each(CASE WHEN json_valid(before) THEN before ELSE '{}' END, '$.permissions');
	INSERT INTO audit_subjects (resource_id, seq)
	SELECT id.value, seq
	FROM (SELECT seq, before AS state FROM audit_events UNION ALL SELECT seq, after FROM audit_events),
		json_each('["permission_groups","permissions","members","members_by_condition","of",
			"service_user_id"]') field,
		json_each(CASE WHEN NOT json_valid(state) THEN '{}'
			WHEN json_extract(state, '$.deleted_at') <> '' THEN '{}' ELSE state END, '$.' || field.value) id
	WHERE id.type = 'text'
	GROUP BY id.value, seq, field.value HAVING COUNT(*) = 1 OR field.value = 'service_user_id'
	ON CONFLICT DO NOTHING`

// lastDeletions has the last deletion of each permission group. After a restore of a backup the trail
// also has deletions of groups that exist again, and of groups that the store does not have.
const lastDeletions = `(SELECT resource_id, actor, before, MAX(seq) FROM audit_events
		WHERE action = 'permission_group.delete' GROUP BY resource_id) d`

// insertMeta gives a new store its id.
func insertMeta(ctx context.Context, q *sql.Tx, now time.Time) error {
	_, err := q.ExecContext(ctx, `
		INSERT INTO meta (id, instance_id, revision, audit_seq, audit_hash, created_at)
		VALUES (1, $1, 0, 0, '', $2)`, newID("store", now), now.Unix())
	return err
}

// schemaVersion is the schema version that this program reads and writes.
var schemaVersion = 1 + len(upgrades)

// SchemaVersion returns the schema version that this program reads and writes.
func SchemaVersion() int { return schemaVersion }

// checkOurs rejects a database that is not a store of this program, or has a newer schema. row is
// QueryRowContext of the database or of a transaction.
func checkOurs(ctx context.Context, row func(context.Context, string, ...any) *sql.Row) error {
	var id, version int
	if err := row(ctx, `PRAGMA application_id`).Scan(&id); err != nil {
		return explainSQLite(err)
	}
	if err := row(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if id != applicationID {
		return fmt.Errorf("%w: the database belongs to another program (application id %#08x); "+
			"name another file", ErrNotOurs, uint32(id))
	}
	return checkSchema(version)
}

// checkSchema rejects a schema version that this program does not know.
func checkSchema(version int) error {
	switch {
	case version > schemaVersion:
		return fmt.Errorf("%w: the database has schema version %d, this program knows %d; "+
			"update the program, or restore a backup that the older one made",
			ErrNewer, version, schemaVersion)
	case version < 1:
		return fmt.Errorf("%w: the database has no schema version; restore it from a backup", ErrNotOurs)
	}
	return nil
}

// upgradeSQLite upgrades an older schema, all steps in one transaction, and keeps a copy of the
// database from before.
func upgradeSQLite(ctx context.Context, db *sql.DB, path string, log *zap.Logger) error {
	tx, err := db.BeginTx(ctx, nil) // takes the write lock (_txlock=immediate)
	if err != nil {
		return explainSQLite(err)
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if err := checkSchema(version); err != nil || version == schemaVersion {
		return err
	}
	dir, err := besides(path, "copy")
	if err != nil {
		return fmt.Errorf("copying the database before its schema is upgraded: %w", err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "copy.db")
	if err := copySQLite(ctx, path, copied); err != nil {
		return fmt.Errorf("copying the database before its schema is upgraded from version %d: %w",
			version, err)
	}
	for v := version; v < schemaVersion; v++ {
		if _, err := tx.ExecContext(ctx, upgrades[v-1]); err != nil {
			return fmt.Errorf("%w: upgrading the schema from version %d: %w", ErrDamaged, v, err)
		}
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion)); err != nil {
		return err
	}
	// The copy gets its final name before the commit: a crash in between leaves a needless
	// copy, never an upgraded store without one.
	kept, err := linkFree(copied, fmt.Sprintf("%s.v%d-backup", path, version))
	if err != nil {
		return fmt.Errorf("keeping a copy of the database before its schema is upgraded: %w", err)
	}
	if err := tx.Commit(); err != nil {
		os.Remove(kept)
		return err
	}
	log.Info("the store was upgraded; a copy from before the upgrade is kept", zap.String("store", path),
		zap.Int("from", version), zap.Int("to", schemaVersion), zap.String("copy", kept))
	return nil
}

// copySQLite copies the committed state of the database at path into the new file to, which only the
// owner of the database can read.
func copySQLite(ctx context.Context, path, to string) error {
	file, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // VACUUM INTO accepts an empty file
	if err != nil {
		return err
	}
	defer file.Close()
	if err := giveTo(file, path); err != nil {
		return err
	}
	db, err := openAtRest(path)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, to); err != nil {
		return explainSQLite(err)
	}
	return file.Sync()
}

// linkFree links a file to the name want or, if that is taken, to want with a number. The link is
// durable when linkFree returns.
func linkFree(file, want string) (name string, err error) {
	name = want
	for n := 2; ; n++ {
		err := os.Link(file, name)
		if err == nil {
			return name, SyncDir(filepath.Dir(name))
		}
		if !errors.Is(err, fs.ErrExist) || n > 1000 {
			return "", err
		}
		name = fmt.Sprintf("%s-%d", want, n)
	}
}
