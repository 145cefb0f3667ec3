//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// settings are the defaults of PostgreSQL where those of the tests differ, and room for the connections of
// a hundred nodes.
var settings = []string{
	"fsync=on", "full_page_writes=on", "shared_buffers=128MB", "autovacuum_naptime=60", "max_connections=400",
	"max_wal_size=4GB", "client_min_messages=warning",
}

// database is a store in a schema of its own, with its tokens that can be revoked.
type database struct {
	*pgtest.Server
	schema string
	users  int
	tokens []token
	next   int // the first token that nobody has revoked
}

const (
	groups        = 10
	rulesPerGroup = 100
	// revocable is how many tokens of a store the measurements may revoke.
	revocable = 60_000
)

// fill makes a store of service users with two tokens each, in ten groups of a hundred rules.
func fill(ctx context.Context, server *pgtest.Server, users int) (*database, error) {
	db := &database{Server: server, schema: fmt.Sprintf("users_%d", users), users: users}
	if err := server.Exec("CREATE SCHEMA " + db.schema + " AUTHORIZATION " + pgtest.Role); err != nil {
		return nil, err
	}
	s, err := store.Open(ctx, db.direct(), store.Options{Unlisted: true})
	if err != nil {
		return nil, err
	}
	var ids []string
	for g := range groups {
		group := store.Group{Name: fmt.Sprintf("group-%d", g)}
		for r := range rulesPerGroup {
			rule, err := access.ParseRule(fmt.Sprintf("allow GET /v1/group%d-things%d/{id}", g, r))
			if err != nil {
				return nil, err
			}
			group.Rules = append(group.Rules, rule)
		}
		if group, err = s.CreateGroup(ctx, store.Local, group); err != nil {
			return nil, err
		}
		ids = append(ids, group.ID)
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	if err := db.copyRows(ctx, ids); err != nil {
		return nil, err
	}
	return db, db.check(ctx)
}

// copyRows writes the rows past the store: through it each would be a transaction. Without triggers, which
// would check two references of each row, it counts the rows at the end.
func (db *database) copyRows(ctx context.Context, groups []string) error {
	conn, err := pgx.Connect(ctx, db.SocketURL(pgtest.Superuser, db.schema))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `
		BEGIN; SET LOCAL session_replication_role = replica; UPDATE meta SET revision = revision + 1`); err != nil {
		return err
	}
	var revision int64
	if err := conn.QueryRow(ctx, `SELECT revision FROM meta`).Scan(&revision); err != nil {
		return err
	}
	now := time.Now().Unix()
	userID := func(i int) string { return fmt.Sprintf("service_%027d", i) }
	tokenID := func(i int) string { return fmt.Sprintf("token_%027d", i) }
	for _, part := range []struct {
		table, columns string
		rows           int
		row            func(i int) []any
	}{
		{"service_users", `id name display_name description owner alias active role teams labels allowed_ips
			expires_at created_at created_by updated_at last_active_at deleted_at version revision name_key`,
			db.users, func(i int) []any {
				name := fmt.Sprintf("user-%d", i)
				return []any{userID(i), name, "", "", "", "", true, "member", `["finance"]`, "{}", "[]",
					int64(0), now, "local", now, int64(0), int64(0), int64(1), revision, name}
			}},
		{"tokens", `id service_user_id description hint hash pepper_id expires_at not_before allowed_ips metadata
			permission_groups created_at created_by updated_at last_used_at last_used_ip use_count retires_at revoked_at
			replaced_by version`,
			2 * db.users, func(i int) []any {
				var hash access.Hash
				rand.Read(hash[:]) // of an unknown secret
				return []any{tokenID(i), userID(i / 2), "", "", hex.EncodeToString(hash[:]), "", int64(0), int64(0), "[]", "{}",
					"[]", now, "local", now, int64(0), "", int64(0), int64(0), int64(0), "", int64(1)}
			}},
		{"members", `group_id service_user_id created_at`, db.users, func(i int) []any {
			return []any{groups[i%len(groups)], userID(i), now}
		}},
	} {
		next := 0
		rows := pgx.CopyFromFunc(func() ([]any, error) {
			if next == part.rows {
				return nil, nil
			}
			next++
			return part.row(next - 1), nil
		})
		if _, err := conn.CopyFrom(ctx, pgx.Identifier{part.table}, strings.Fields(part.columns), rows); err != nil {
			return fmt.Errorf("filling the table %s: %w", part.table, err)
		}
	}
	if _, err := conn.Exec(ctx, `
		UPDATE meta SET service_users = (SELECT COUNT(*) FROM service_users), tokens = (SELECT COUNT(*) FROM tokens),
			members = (SELECT COUNT(*) FROM members);
		COMMIT; ANALYZE; CHECKPOINT`); err != nil {
		return err
	}
	// One token of each service user, at places that are far from each other.
	step := 2 * max(db.users/revocable, 1)
	for i := 0; i < 2*db.users; i += step {
		db.tokens = append(db.tokens, token{userID(i / 2), tokenID(i)})
	}
	return nil
}

// check opens the store as a node does, which compares the numbers of rows.
func (db *database) check(ctx context.Context) error {
	s, err := store.Open(ctx, db.direct(), store.Options{Unlisted: true, ReadOnly: true})
	if err != nil {
		return err
	}
	if got := s.Directory().Len(); got != db.users {
		err = fmt.Errorf("the store has %d service users, want %d", got, db.users)
	}
	return cmp.Or(err, s.Close())
}

// direct is the URL of the store, by TCP.
func (db *database) direct() string { return db.TCPURL(pgtest.Role, db.schema) }

// take returns the next tokens to revoke.
func (db *database) take(n int) ([]token, error) {
	if db.next+n > len(db.tokens) {
		return nil, fmt.Errorf("the store of %d service users has no more tokens to revoke", db.users)
	}
	db.next += n
	return db.tokens[db.next-n : db.next], nil
}

// usage is what the work of the database has cost so far.
type usage struct {
	at      time.Time
	wal     int64         // bytes
	reports int64         // of nodes: updates of the table nodes
	commits int64         // of transactions, also of those that only read
	cpu     time.Duration // of all processes of the server
	memory  int64         // of their own, in bytes
}

func (db *database) usage() (u usage, err error) {
	u.at = time.Now()
	var pids []int
	err = db.QueryRow(`
		SELECT pg_current_wal_insert_lsn() - '0/0',
			(SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'nodes'),
			(SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()),
			(SELECT array_agg(pid) FROM pg_stat_activity)`, []any{db.schema}, &u.wal, &u.reports, &u.commits, &pids)
	for _, pid := range pids {
		u.cpu += cpu(pid)
		u.memory += memory(pid, "RssAnon")
	}
	return u, err
}

// connections is the number of connections to the database, without the one that counts.
func (db *database) connections() (n int, err error) {
	err = db.QueryRow(`
		SELECT COUNT(*) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename <> $1`, []any{pgtest.Superuser}, &n)
	return n, err
}

const tick = 10 * time.Millisecond // of /proc: USER_HZ is 100 on Linux

// cpu is the processor time of a process so far.
func cpu(pid int) (sum time.Duration) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name of the program, in parentheses, may have any character.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	for _, ticks := range f[11:13] { // utime, stime
		n, _ := strconv.Atoi(ticks)
		sum += time.Duration(n) * tick
	}
	return sum
}
