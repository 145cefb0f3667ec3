package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
)

// postgresEngine is the [engine] of a store in a PostgreSQL database. It uses no prepared statement, no
// lock of a session and no SET, so that any pooler may be between.
type postgresEngine struct {
	store   *Store
	config  *pgx.ConnConfig
	servers *servers
	// Whether PostgreSQL has answered a commit of a change, or a report of the watcher, with the warning of errAlone.
	writesAlone, reportsAlone atomic.Bool
	name                      string // the URL without its password
	started                   int64  // the start of this process, by its own clock in milliseconds
	// prepared is whether the schema is as this program needs it, and channel is set.
	prepared atomic.Bool
	channel  string // of notifications: the id of the store, since several stores can share a database
	// The last look, and when the clock of the database was last set forward.
	looked atomic.Pointer[look]
	jumped atomic.Pointer[time.Time]
	// The last report, which only join and the watcher touch.
	reported   int64
	reportedAt time.Time
}

// IsURL reports whether a place is the URL of a PostgreSQL database, and not the path of a file.
func IsURL(place string) bool {
	return strings.HasPrefix(place, "postgres://") || strings.HasPrefix(place, "postgresql://")
}

// Shown returns the place of a store as messages show it: a path, or a URL without its password. The error
// is for a URL that is not valid, or looks like one and is not.
func Shown(place string) (string, error) {
	if IsURL(place) {
		pg, err := newPostgres(place)
		if err != nil {
			return "", err
		}
		return pg.name, nil
	}
	// The place may contain a password, so the error has the letters before it alone.
	if mistyped.MatchString(place) {
		return "", fmt.Errorf("the place of the store begins with %q, which is neither the path of a SQLite database "+
			"nor a URL like %s", word.FindString(place), urlForm)
	}
	return place, nil
}

var (
	mistyped = regexp.MustCompile(`(?i)^postgres[a-z]*(:|//)|://|(^|\s)(host|user|dbname|password)\s*=`)
	word     = regexp.MustCompile(`^\w*\W{0,3}`)
)

const urlForm = "postgres://ROLE:PASSWORD@HOST:5432/DATABASE"

const (
	connectTimeout = 5 * time.Second // unless the URL has one
	idleTime       = 5 * time.Second // how long a connection stays open that is not used
)

// newPostgres returns the engine for a URL. Its errors never contain the URL, which may have a password.
func newPostgres(place string) (*postgresEngine, error) {
	config, err := pgx.ParseConfig(place)
	// An @ or / in a password would make the rest of it part of the host or of the database.
	if before, _, _ := strings.Cut(place, "?"); err == nil && strings.Count(before+config.Database, "@") > 1 {
		err = errors.New("it has an @ in the wrong place")
	}
	if err != nil {
		return nil, fmt.Errorf("the URL of the store is not valid: %s; it is like "+urlForm+
			", and in the password each of / ? # @ %% : is written as %% and two digits, such as %%2F for /",
			urlProblem(err))
	}
	// The parameters of a statement get their types from the statement, as in SQLite.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	config.ConnectTimeout = cmp.Or(config.ConnectTimeout, connectTimeout)
	config.ValidateConnect = writable
	config.RuntimeParams["client_encoding"] = "UTF8"
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "service_users"
	}
	u := url.URL{Scheme: "postgres", User: url.User(config.User), Path: "/" + config.Database}
	query := make(url.Values)
	if strings.HasPrefix(config.Host, "/") { // the directory of a socket
		query.Set("host", config.Host)
		query.Set("port", strconv.Itoa(int(config.Port)))
	} else {
		u.Host = net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	}
	if path := config.RuntimeParams["search_path"]; path != "" {
		query.Set("search_path", path)
	}
	u.RawQuery = query.Encode()
	return &postgresEngine{config: config, servers: newServers(config), name: u.String()}, nil
}

var errStandby = errors.New("the database can only be read: name the primary, not a standby; " +
	"if it is the primary, reset default_transaction_read_only of the role")

// writable rejects a standby. If the URL has several hosts, the next one is tried.
func writable(ctx context.Context, conn *pgconn.PgConn) error {
	answer, err := conn.Exec(ctx, `SHOW transaction_read_only`).ReadAll()
	if err == nil && len(answer) == 1 && len(answer[0].Rows) == 1 && string(answer[0].Rows[0][0]) == "on" {
		err = errStandby
	}
	return err
}

// urlProblem returns the part of an error of pgx that has no part of the URL.
func urlProblem(err error) string {
	var config *pgconn.ParseConfigError
	if errors.As(err, &config) {
		short := *config
		short.ConnString = ""
		err = &short
	}
	return quoted.ReplaceAllString(strings.TrimPrefix(err.Error(), "cannot parse ``: "), "…")
}

var quoted = regexp.MustCompile("\"[^\"]*\"?|'[^']*'?|`[^`]*`?")

// open opens one connection for changes, and one for reading. The watcher has one of its own.
func (e *postgresEngine) open(ctx context.Context) error {
	s := e.store
	e.started = s.Now().UnixMilli()
	// A change whose connection was lost begins again; a read looks whether there is still one.
	look := func(ctx context.Context, conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, e.config.ConnectTimeout)
		defer cancel()
		if conn.Ping(ctx) != nil {
			return driver.ErrBadConn
		}
		return nil
	}
	s.write = e.servers.openDB(&e.writesAlone, unchecked)
	s.read = e.servers.openDB(&e.reportsAlone, look)
	s.write.SetMaxOpenConns(1)
	s.read.SetMaxOpenConns(1)
	s.write.SetConnMaxIdleTime(idleTime)
	s.read.SetConnMaxIdleTime(idleTime)
	return e.prepare(ctx)
}

// prepare makes the tables of a new store, or upgrades an older schema, in one transaction. Nodes that
// start together wait for the first of them.
func (e *postgresEngine) prepare(ctx context.Context) error {
	s := e.store
	sqlTx, err := e.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	if _, err := sqlTx.ExecContext(ctx,
		`SELECT pg_advisory_xact_lock(hashtextextended('service users ' || current_schema(), 0))`); err != nil {
		return err
	}
	// Only a statement after the lock sees the tables that another node has made meanwhile.
	var schemaName string
	var ours bool
	if err := sqlTx.QueryRowContext(ctx,
		`SELECT COALESCE(current_schema(), ''), to_regclass('store_schema') IS NOT NULL`).
		Scan(&schemaName, &ours); err != nil {
		return err
	}
	version := schemaVersion
	switch {
	case ours:
		if version, err = e.version(ctx, sqlTx); err == nil {
			err = e.upgrade(ctx, sqlTx, version)
		}
	case schemaName == "":
		err = fmt.Errorf("search_path names no schema that the role %q can use; make one: %s; "+
			"or give it the rights of docs/fleet.md", e.config.User, e.ownSchema())
	default:
		if err = e.fit(ctx, sqlTx, schemaName); err == nil && (s.opts.Existing || s.opts.ReadOnly) {
			err = fmt.Errorf("the schema %q has no store: %w; is search_path in the URL right? "+
				"The first start of a node that is not read-only makes a store, or --create", schemaName, fs.ErrNotExist)
		} else if err == nil {
			err = e.create(ctx, sqlTx)
		}
	}
	if err == nil {
		err = sqlTx.QueryRowContext(ctx, `SELECT instance_id FROM meta`).Scan(&e.channel)
	}
	if err == nil {
		err = sqlTx.Commit()
	}
	if err != nil {
		return err
	}
	s.copy.of(e.channel)
	e.prepared.Store(true)
	switch {
	case !ours:
		s.log.Warn("there was no store, and a new one without any service user was made; "+
			"if clients have credentials already, name the right database and schema, or restore a dump",
			zap.String("store", e.name))
	case version < schemaVersion:
		s.log.Info("the store was upgraded", zap.String("store", e.name),
			zap.Int("from", version), zap.Int("to", schemaVersion))
	}
	return nil
}

// fit returns an error if a store cannot be made in a schema.
func (e *postgresEngine) fit(ctx context.Context, sqlTx *sql.Tx, schemaName string) error {
	var encoding string
	var foreign, shared sql.NullString
	if err := sqlTx.QueryRowContext(ctx, `
		SELECT current_setting('server_encoding'),
			(SELECT MIN(relname) FROM pg_class
			WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relkind IN ('r', 'p', 'v', 'm')),
			(SELECT MIN(s) FROM unnest(current_schemas(FALSE)) s WHERE has_schema_privilege('public', s, 'CREATE'))`,
		schemaName).Scan(&encoding, &foreign, &shared); err != nil {
		return err
	}
	own := "make a schema for the store, " + e.ownSchema()
	switch {
	case encoding != "UTF8":
		return fmt.Errorf("the database has the encoding %s; make one for the store: "+
			"CREATE DATABASE service_users ENCODING 'UTF8' TEMPLATE template0", encoding)
	case foreign.Valid:
		return fmt.Errorf("%w: the schema %q has tables of another program, such as %q; %s",
			ErrNotOurs, schemaName, foreign.String, own)
	// With a function for other types than PostgreSQL's own a role could make the store run its
	// code.
	case shared.Valid:
		return fmt.Errorf("every role of the database may create functions in the schema %q, which is in search_path; "+
			"%s, or run REVOKE CREATE ON SCHEMA %s FROM PUBLIC", shared.String, own,
			pgx.Identifier{shared.String}.Sanitize())
	}
	return nil
}

// create makes a store in an empty schema.
func (e *postgresEngine) create(ctx context.Context, sqlTx *sql.Tx) error {
	if _, err := sqlTx.ExecContext(ctx, inPostgres(schema+onlyPostgres)+
		fmt.Sprintf(`INSERT INTO store_schema VALUES (%d)`, schemaVersion)); err != nil {
		return err
	}
	return insertMeta(ctx, sqlTx, e.store.Now())
}

// onlyPostgres has the tables that stores in PostgreSQL have in addition, and the triggers of
// [counts]. The version of the schema is theirs too.
//
//go:embed postgres.sql
var onlyPostgres string

// inPostgres returns the text of a schema for PostgreSQL. There the order of texts depends on the
// database, unless a column says that it is that of the bytes.
func inPostgres(schema string) string { return textType.ReplaceAllString(schema, `TEXT COLLATE "C"`) }

var textType = regexp.MustCompile(`\bTEXT\b`)

func (e *postgresEngine) upgrade(ctx context.Context, sqlTx *sql.Tx, version int) error {
	if err := checkSchema(version); err != nil || version == schemaVersion {
		return err
	}
	if e.store.opts.ReadOnly {
		return fmt.Errorf("the schema of the store has version %d, and this program needs %d; first start a node "+
			"of this version that is not read-only, which upgrades it", version, schemaVersion)
	}
	for v := version; v < schemaVersion; v++ {
		if _, err := sqlTx.ExecContext(ctx, inPostgres(upgrades[v-1])); err != nil {
			return fmt.Errorf("upgrading the schema from version %d: %w", v, err)
		}
	}
	_, err := sqlTx.ExecContext(ctx, `UPDATE store_schema SET version = $1`, schemaVersion)
	return err
}

// version reads the version that prepare keeps.
func (e *postgresEngine) version(ctx context.Context, q *sql.Tx) (version int, err error) {
	if err = q.QueryRowContext(ctx, `SELECT version FROM store_schema`).Scan(&version); err != nil {
		err = fmt.Errorf("reading the schema version: %w", err)
	}
	return version, err
}

// readCommitted makes each statement see the changes that were committed before it. A role can have
// another level as its default.
var readCommitted = &sql.TxOptions{Isolation: sql.LevelReadCommitted}

// beginWrite limits how long the locks of this process last when the network is cut or the process
// is paused. All others wait for them, and the server could notice the loss hours later.
func (e *postgresEngine) beginWrite(ctx context.Context) (*sql.Tx, error) {
	sqlTx, err := e.store.write.BeginTx(ctx, readCommitted)
	if err == nil {
		if _, err = sqlTx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', $1, TRUE)`,
			strconv.FormatInt(e.store.opts.timeouts.idle.Milliseconds(), 10)); err != nil {
			sqlTx.Rollback()
		}
	}
	return sqlTx, err
}

// beginChange takes the lock of the only row of meta.
func (e *postgresEngine) beginChange(ctx context.Context) (*sql.Tx, error) {
	sqlTx, err := e.beginWrite(ctx)
	if err == nil {
		var id int
		if err = sqlTx.QueryRowContext(ctx, `SELECT id FROM meta FOR UPDATE`).Scan(&id); err == nil {
			return sqlTx, nil
		}
		sqlTx.Rollback()
	}
	return nil, fmt.Errorf("beginning a change: %w", err)
}

// passing is true for a transaction that lost against another one, and for a lost connection.
func (e *postgresEngine) passing(err error) bool {
	code := postgresCode(err)
	return code == "40001" || code == "40P01" || isLost(err) && !errors.Is(err, ErrUncertain)
}

// arguments makes texts storable, such as one that a caller looks for.
func (e *postgresEngine) arguments(args []any) []any {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = storable(text)
		}
	}
	return args
}

func (e *postgresEngine) lockRows() string { return ` FOR NO KEY UPDATE SKIP LOCKED` }

// commit also notifies the other nodes.
func (e *postgresEngine) commit(t *tx) error {
	if err := t.exec("announcing the change", `SELECT pg_notify($1, $2)`, e.channel,
		strconv.FormatInt(t.revision, 10)); err != nil {
		return err
	}
	err := e.commitTx(t.Tx)
	var answer *pgconn.PgError
	switch {
	case err == nil:
		return nil
	// After a fatal error, such as a shutdown, the server may have committed all the same.
	case errors.Is(err, pgx.ErrTxCommitRollback), errors.As(err, &answer) && answer.Severity == "ERROR":
		return fmt.Errorf("committing: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), e.store.opts.timeouts.commit)
	defer cancel()
	if made, unknown := e.committed(ctx, t); unknown != nil {
		return fmt.Errorf("%w: committing: %w", ErrUncertain, errors.Join(err, unknown))
	} else if !made {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// errAlone is the error of a commit that was answered before a synchronous standby had it, since its wait was
// cancelled: a failover would lose it.
var errAlone = errors.New("the wait for a standby was cancelled")

// commitTx commits a transaction of the connection for changes.
func (e *postgresEngine) commitTx(sqlTx *sql.Tx) error {
	e.writesAlone.Store(false)
	err := sqlTx.Commit()
	if err == nil && e.writesAlone.Load() {
		err = errAlone
	}
	return err
}

// committed reports whether a change was committed whose answer was lost. Its last audit record has a
// hash that no other record has.
func (e *postgresEngine) committed(ctx context.Context, t *tx) (bool, error) {
	sqlTx, err := e.beginChange(ctx)
	for err != nil && isLost(err) && ctx.Err() == nil { // the server may be starting again
		time.Sleep(jitter(changePause))
		sqlTx, err = e.beginChange(ctx)
	}
	if err != nil {
		return false, err
	}
	defer sqlTx.Rollback()
	// The lock of beginChange is free since the server has ended the lost transaction.
	last := t.events[len(t.events)-1]
	hash, err := hashOf(ctx, sqlTx.QueryRowContext, last.Seq)
	if err == nil {
		err = e.commitTx(sqlTx) // waits for a synchronous standby, as the change did
	}
	return hash == last.Hash, err
}

func (e *postgresEngine) catalogue() (objects, columns string) {
	const here = `(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('meta'))`
	return `
		SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'index' END, relname
		FROM pg_class WHERE relnamespace = ` + here + ` AND relkind IN ('r', 'v', 'i') UNION ALL
		SELECT 'trigger', tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
		WHERE c.relnamespace = ` + here + ` AND NOT tgisinternal ORDER BY 2`,
		`SELECT attname FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum`
}

func (e *postgresEngine) canCopy() error {
	return conflict("", "the store is in PostgreSQL, whose own tool makes backups: run pg_dump with the database %q "+
		"on host %s; to make a SQLite file of it, run: caddy service-user copy --from URL --to FILE",
		e.config.Database, e.config.Host)
}

// checkPages does nothing: PostgreSQL itself keeps references whole, and its extension amcheck checks
// pages.
func (e *postgresEngine) checkPages(*checker) {}

func (e *postgresEngine) forms() map[string]string {
	return map[string]string{
		"blob": `FALSE`, // the columns have types
		"id":   `COLUMN !~ '^KIND_[0-9A-Za-z]{27}$'`, "control": `COLUMN ~ '[\x01-\x1f\x7f]'`,
		"hash": `COLUMN !~ '^[0-9a-f]{64}$'`,
	}
}

// inPlace returns an error until the database has answered, if the store began with its last good copy.
func (e *postgresEngine) inPlace() error {
	if !e.prepared.Load() {
		return fmt.Errorf("%w: %s", errAway, e.store.Fault())
	}
	return nil
}

// readers is 1: a node has at most three connections, for changes, for the watcher, and this one.
func (e *postgresEngine) readers() int { return 1 }

func (e *postgresEngine) older() string { return "restart Caddy" }

func (e *postgresEngine) work() []func(context.Context) {
	return []func(context.Context){e.watch}
}

func (e *postgresEngine) end() {
	defer e.store.copy.close()
	ctx, cancel := context.WithTimeout(context.Background(), reportWait)
	defer cancel()
	err := e.store.write.PingContext(ctx) // if the database is away, the node keeps its copy
	if err == nil {
		err = e.store.copy.leave(func() error { return e.leave(ctx) })
	}
	if err != nil {
		e.store.log.Warn("the node could not say that it ends", zap.String("store", e.name),
			zap.Stringp("node", e.store.node.Load()), zap.Error(err))
	}
}
