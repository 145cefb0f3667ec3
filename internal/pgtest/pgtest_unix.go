//go:build unix

// Package pgtest runs a PostgreSQL server for tests. [URL] is the function to call: it returns an empty
// schema of a server that belongs to the test binary.
package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// Advice says how to get PostgreSQL.
const Advice = "PostgreSQL is missing: apt-get install postgresql"

// Roles of a server. Both may log in by the socket without a password, and by TCP with Password.
const (
	Superuser = "superuser"
	Role      = "store" // has no right but those to its schemas
	Password  = "only-for-tests"
)

// Server is a running PostgreSQL server with the database "test".
type Server struct {
	Dir  string // has the data, the socket and the log
	Port int    // of the socket, and of 127.0.0.1

	own      bool           // it is of one test, so its schemas need no end of their own
	primary  *Server        // nil, or the server whose data it starts with, as its standby
	settings []string       // such as "work_mem=8MB"
	bin      string         // the directory of the programs
	end      io.WriteCloser // see ending
	server   *exec.Cmd      // nil while it does not run
	mu       sync.Mutex
	admin    *pgx.Conn
	made     int // the number of schemas
}

var shared = sync.OnceValues(func() (*Server, error) { return Start() })

var errMissing = errors.New(Advice)

// URL returns the address of a new schema, which is dropped at the end of the test. The first call
// starts the server. Without PostgreSQL it skips the test, or with CI=true fails it.
func URL(t testing.TB) string {
	t.Helper()
	s := Shared(t)
	return s.SocketURL(Role, s.NewSchema(t, Role))
}

// Shared returns the server of the test binary. It skips or fails the test as [URL] does.
func Shared(t testing.TB) *Server {
	t.Helper()
	s, err := shared()
	if errors.Is(err, errMissing) {
		testkit.Missing(t, Advice)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// NewSchema returns the name of a new schema of a role, which is dropped at the end of the test.
func (s *Server) NewSchema(t testing.TB, role string) (name string) {
	t.Helper()
	s.mu.Lock()
	s.made++
	name = fmt.Sprintf("test_%d", s.made)
	s.mu.Unlock()
	if err := s.Exec("CREATE SCHEMA " + name + " AUTHORIZATION " + role); err != nil {
		t.Fatal(err)
	}
	if s.own {
		return name
	}
	t.Cleanup(func() {
		if err := s.Exec("DROP SCHEMA " + name + " CASCADE"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// SocketURL returns the URL of a schema, by the socket.
func (s *Server) SocketURL(role, schema string) string {
	return fmt.Sprintf("postgres://%s@/test?host=%s&port=%d&search_path=%s",
		role, url.QueryEscape(s.Dir), s.Port, schema)
}

// TCPURL is like SocketURL, by TCP, with the password.
func (s *Server) TCPURL(role, schema string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/test?sslmode=disable&search_path=%s",
		role, Password, s.Port, schema)
}

// Exec runs statements as the superuser.
func (s *Server) Exec(statements string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.admin.Exec(context.Background(), statements)
	return err
}

// ExecIn runs statements as the superuser in a database.
func (s *Server) ExecIn(t testing.TB, database, statements string) {
	t.Helper()
	at := strings.Replace(s.SocketURL(Superuser, "public"), "/test?", "/"+database+"?", 1)
	conn, err := pgx.Connect(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statements); err != nil {
		t.Fatal(err)
	}
}

// Start starts a server, with settings such as "fsync=on" in the place of those that make tests fast. It
// ends, and its files are removed, when this process ends in any way.
func Start(settings ...string) (*Server, error) {
	return start(&Server{settings: append([]string{"full_page_writes=off"}, settings...)})
}

func start(s *Server) (*Server, error) {
	var err error
	if s.bin, err = binaries(); err != nil {
		return nil, err
	}
	if s.Dir, err = os.MkdirTemp("", "pgtest-*"); err != nil {
		return nil, err
	}
	if err := s.make(); err != nil {
		log, _ := os.ReadFile(s.logFile())
		if s.end != nil {
			s.end.Close()
		}
		os.RemoveAll(s.Dir)
		return nil, fmt.Errorf("starting PostgreSQL: %w\n%s", err, log)
	}
	return s, nil
}

// binaries returns the directory of initdb and postgres.
func binaries() (dir string, err error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	// Debian does not put the server into PATH.
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", errMissing
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })), nil
}

// credential returns a user for the server if this process is root, which PostgreSQL refuses.
func credential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err, err2)
}

func (s *Server) logFile() string { return filepath.Join(s.Dir, "log") }

// ending ends the server whose process id is the last line of the input, and removes the folder $0. It
// continues processes that are stopped by a signal, since only then the server ends.
const ending = `while read -r line; do server=$line; done
kill -CONT $server $(cat /proc/$server/task/$server/children)
kill -QUIT $server
until rm -rf "$0"; do sleep 0.1; done`

// make makes the data, and starts the server.
func (s *Server) make() error {
	as, err := credential()
	if err != nil {
		return err
	}
	password := filepath.Join(s.Dir, "password")
	if err := os.WriteFile(password, []byte(Password), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(s.logFile(), nil, 0o600); err != nil {
		return err
	}
	if as != nil {
		for _, path := range []string{s.Dir, password, s.logFile()} {
			if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
				return err
			}
		}
	}
	fill := s.initdb
	if s.primary != nil {
		fill = s.copyPrimary
	}
	if err := fill(); err != nil {
		return err
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	// The shell outlives this process, however it ends: its standard input is then closed.
	if err := s.with(func(c *exec.Cmd) (err error) {
		if s.end, err = c.StdinPipe(); err != nil {
			return err
		}
		return c.Start()
	}, "/bin/sh", "-c", ending, s.Dir); err != nil {
		return err
	}
	if err := s.Start(); err != nil || s.primary != nil {
		return err
	}
	for _, statement := range []string{
		`CREATE ROLE ` + Role + ` LOGIN PASSWORD '` + Password + `'`, `CREATE DATABASE test`,
	} {
		if err := s.Exec(statement); err != nil {
			return err
		}
	}
	return s.connect("test")
}

// initdb makes the data of a new server.
func (s *Server) initdb() error {
	args := []string{"-D", s.data(), "-U", Superuser, "--pwfile=" + filepath.Join(s.Dir, "password"), "-E", "UTF8",
		"--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--no-instructions"}
	// In the order of English "a" comes before "B", so a comparison that needs the order of
	// bytes, and does not say so, fails a test. Before version 15, initdb knows no such order.
	english := append(slices.Clone(args), "--locale-provider=icu", "--icu-locale=en")
	if s.run("initdb", english...) != nil {
		return s.run("initdb", args...)
	}
	return nil
}

// copyPrimary replaces the data by that of the primary.
func (s *Server) copyPrimary() error {
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	return s.run("pg_basebackup", "-D", s.data(), "-h", s.primary.Dir, "-p", fmt.Sprint(s.primary.Port), "-U", Superuser,
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync")
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

// run runs a program of PostgreSQL.
func (s *Server) run(program string, args ...string) error {
	return s.with((*exec.Cmd).Run, filepath.Join(s.bin, program), args...)
}
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// with makes a command that runs as the user of the server and writes to its log, and calls do with it.
func (s *Server) with(do func(*exec.Cmd) error, name string, args ...string) error {
	as, err := credential()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.logFile(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(name, args...)
	c.Dir, c.Stdout, c.Stderr = s.Dir, log, log
	c.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	return do(c)
}

// Start starts the server, which has ended, on the same port and data. It returns when the server accepts
// connections.
func (s *Server) Start() error {
	args := []string{"-D", s.data(), "-k", s.Dir, "-p", strconv.Itoa(s.Port)}
	// The memory of the system outlives the end of any process, so no test needs a disk.
	for _, setting := range append([]string{"listen_addresses=127.0.0.1", "max_connections=200", "fsync=off",
		"shared_buffers=32MB", "autovacuum_naptime=10"}, s.settings...) {
		args = append(args, "-c", setting)
	}
	if err := s.with(func(c *exec.Cmd) error {
		s.server = c
		return c.Start()
	}, filepath.Join(s.bin, "postgres"), args...); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(s.end, s.server.Process.Pid); err != nil {
		return err
	}
	return s.connect("test")
}

// connect waits for the server, and connects to a database, or to "postgres" while it does not exist.
func (s *Server) connect(database string) error {
	ctx := context.Background()
	at := fmt.Sprintf("postgres://%s@/%s?host=%s&port=%d", Superuser, database, url.QueryEscape(s.Dir), s.Port)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	conn, err := pgx.Connect(ctx, at)
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); <-tick.C {
		var answer *pgconn.PgError
		if errors.As(err, &answer) && answer.Code == "3D000" {
			at = strings.Replace(at, "/"+database+"?", "/postgres?", 1)
		}
		conn, err = pgx.Connect(ctx, at)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admin != nil {
		s.admin.Close(ctx)
	}
	s.admin = conn
	return err
}

// Rows returns all rows of the tables at a URL, as text.
func Rows(t testing.TB, at string) string {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var text string
	if err := conn.QueryRow(context.Background(), `
		SELECT string_agg(query_to_xml('SELECT * FROM ' || quote_ident(tablename), false, true, '')::text, '')
		FROM pg_tables WHERE schemaname = current_schema()`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// Pooler starts pgbouncer before the server, in the mode that gives each transaction another connection
// to the server. It returns the URL of a role; pgbouncer passes no search_path, so the role itself has
// that of a schema.
func (s *Server) Pooler(t testing.TB) (at string) {
	t.Helper()
	at, stop, err := s.StartPooler(s.NewSchema(t, Role), 5)
	if errors.Is(err, errNoPooler) {
		testkit.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return at
}

var errNoPooler = errors.New("pgbouncer is missing: apt-get install pgbouncer")

// StartPooler is [Server.Pooler] for a schema that exists. size is the largest number of connections to the
// server.
func (s *Server) StartPooler(schema string, size int) (at string, stop func(), err error) {
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		if bin, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			return "", nil, errNoPooler
		}
	}
	as, err := credential()
	if err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	role := "pooled_" + schema
	if err := s.Exec("CREATE ROLE " + role + " LOGIN; ALTER ROLE " + role + " SET search_path = " + schema +
		"; GRANT " + Role + " TO " + role); err != nil {
		return "", nil, err
	}
	// auth_type "any" ignores the name of the client: the role is that of the database.
	config := filepath.Join(s.Dir, role+".ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[databases]
test = user=%s dbname=test host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 1000
default_pool_size = %d
`, role, s.Dir, s.Port, port, size), 0o644); err != nil {
		return "", nil, err
	}
	command := exec.Command(bin, "-q", config)
	command.Dir = s.Dir
	command.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if err := command.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}
	at = fmt.Sprintf("postgres://%s@127.0.0.1:%d/test?sslmode=disable", role, port)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		conn, err := pgx.Connect(context.Background(), at+"&default_query_exec_mode=exec")
		if err == nil {
			conn.Close(context.Background())
			return at, stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return "", nil, fmt.Errorf("pgbouncer: %w", err)
		}
	}
}

// QueryRow scans the first row of a query of the superuser into to.
func (s *Server) QueryRow(query string, args []any, to ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admin.QueryRow(context.Background(), query, args...).Scan(to...)
}
