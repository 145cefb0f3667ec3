//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/segmentio/ksuid"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

const (
	groups        = 10
	rulesPerGroup = 100
	mostActive    = 100_000 // callers at the same time
)

// login is a service user that calls.
type login struct{ id, secret, path string }

// makeStore makes a store of service users with two tokens each, in ten groups
// of a hundred rules, and returns those that call: all, or of more than mostActive an even choice.
func makeStore(ctx context.Context, path string, users int) ([]login, error) {
	s, err := store.Open(ctx, path, store.Options{})
	if err != nil {
		return nil, err
	}
	var groupIDs []string
	for g := range groups {
		group := store.Group{Name: fmt.Sprintf("group-%d", g)}
		for r := range rulesPerGroup {
			rule, err := access.ParseRule(fmt.Sprintf("allow GET,POST %s/{id}", collection(g, r)))
			if err != nil {
				return nil, err
			}
			group.Rules = append(group.Rules, rule)
		}
		deny, err := access.ParseRule("deny GET /v1/denied/{rest...}")
		if err != nil {
			return nil, err
		}
		long, err := access.ParseRule("allow GET /v1/long/{rest...}")
		if err != nil {
			return nil, err
		}
		group.Rules = append(group.Rules, deny, long)
		if group, err = s.CreateGroup(ctx, store.Local, group); err != nil {
			return nil, err
		}
		groupIDs = append(groupIDs, group.ID)
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return fillStore(ctx, path, groupIDs, users)
}

func collection(group, rule int) string { return fmt.Sprintf("/v1/group%d-things%d", group, rule) }

// fillStore writes the rows of service users past the store: through it each
// would be a transaction with an audit record. The indexes are made at the end.
func fillStore(ctx context.Context, path string, groupIDs []string, users int) (logins []login, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(OFF)&_pragma=synchronous(OFF)&_pragma=cache_size(-200000)")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)

	drop, create, err := indexes(ctx, db)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	insert := func(table, columns, values string) (st *sql.Stmt) {
		if err == nil {
			st, err = tx.PrepareContext(ctx, `INSERT INTO `+table+` (`+columns+`) VALUES (`+values+`)`)
		}
		return st
	}
	run := func(st *sql.Stmt, args ...any) {
		if err == nil {
			_, err = st.ExecContext(ctx, args...)
		}
	}
	for _, statement := range drop {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE meta SET revision = revision + 1`); err != nil {
		return nil, err
	}
	user := insert("service_users", `id, name, display_name, description, owner, alias, active, role, teams, labels, allowed_ips,
		expires_at, created_at, created_by, updated_at, last_active_at, deleted_at, version, revision`,
		`$1, $2, '', '', '', '', TRUE, 'member', '["finance"]', '{}', '[]', 0, $3, 'local', $3, 0, 0, 1, (SELECT revision FROM meta)`)
	token := insert("tokens", `id, service_user_id, description, hint, hash, pepper_id, expires_at, not_before, allowed_ips, metadata, permission_groups,
		created_at, created_by, updated_at, last_used_at, last_used_ip, use_count, retires_at, revoked_at, replaced_by, version`,
		`$1, $2, '', '', $3, '', 0, 0, '[]', '', '[]', $4, 'local', $4, 0, '', 0, 0, 0, '', 1`)
	member := insert("members", `group_id, service_user_id, created_at`, `$1, $2, $3`)

	now := time.Now()
	every := max(1, users/mostActive)
	for i := range users {
		id := newID("service")
		run(user, id, fmt.Sprintf("user-%d", i), now.Unix())
		run(member, groupIDs[i%groups], id, now.Unix())
		var hash access.Hash
		if i%every == 0 {
			secret := access.NewSecret()
			hash, _ = access.Peppers{}.Hash(secret)
			logins = append(logins, login{id, secret, fmt.Sprintf("%s/%d", collection(i%groups, i/groups%rulesPerGroup), i)})
		} else {
			rand.Read(hash[:]) // the hash of an unknown secret
		}
		run(token, newID("token"), id, hex.EncodeToString(hash[:]), now.Unix())
		rand.Read(hash[:])
		run(token, newID("token"), id, hex.EncodeToString(hash[:]), now.Unix())
		if err != nil {
			return nil, err
		}
	}
	for _, statement := range create {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	return logins, tx.Commit()
}

// indexes returns the statements that remove and make the indexes of a database.
func indexes(ctx context.Context, db *sql.DB) (drop, create []string, err error) {
	rows, err := db.QueryContext(ctx, `SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL`)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, nil, err
		}
		drop, create = append(drop, `DROP INDEX "`+name+`"`), append(create, text)
	}
	return drop, create, rows.Err()
}

// newID makes an id as the store does: those that are made one after the other
// sort so, also within a second.
func newID(prefix string) string {
	now := time.Now()
	var payload [16]byte
	binary.BigEndian.PutUint32(payload[:4], uint32(now.Nanosecond()))
	rand.Read(payload[4:])
	id, _ := ksuid.FromParts(now, payload[:]) // the payload has its length
	return prefix + "_" + id.String()
}

// bcryptPrefix is as much of a password as bcrypt looks at. Passwords that begin
// with it all fit its hash, and yet a cache has to keep each by itself: that
// makes ten thousand accounts out of one hash.
var bcryptPrefix = strings.Repeat("0123456789ab", 6)

// hashPassword lets Caddy hash a password.
func (b *bench) hashPassword(ctx context.Context, password string, cost int) (string, error) {
	out, err := exec.CommandContext(ctx, b.caddy, "hash-password", "--algorithm", "bcrypt", "--plaintext", password, "--bcrypt-cost", fmt.Sprint(cost)).Output()
	if err != nil {
		return "", fmt.Errorf("caddy hash-password: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// sha1Password is a line of an htpasswd file in the form that nginx checks
// fastest.
func sha1Password(id, password string) string {
	sum := sha1.Sum([]byte(password))
	return id + ":{SHA}" + base64.StdEncoding.EncodeToString(sum[:]) + "\n"
}
