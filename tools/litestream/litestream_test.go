// A test of Litestream, by its Go module, beside a Caddy with a store.
package litestream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	_ "github.com/benbjohnson/litestream/file"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/superfly/ltx"
	"go.yaml.in/yaml/v3"

	_ "github.com/serviceusers/caddy-service-users"
	"github.com/serviceusers/caddy-service-users/admin"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// patience is how long the test waits. Nothing is measured with it.
const patience = 60 * time.Second

// TestMain makes the test binary a caddy and a litestream as well: each needs a process of its own, since SQLite's
// locks are between processes.
func TestMain(m *testing.M) {
	switch os.Getenv("RUN_AS") {
	case "caddy":
		caddycmd.Main()
	case "litestream":
		if err := replicate(os.Getenv("CONFIG")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// configuration is the part of litestream.yml that the example has. The command litestream reads the file into more.
type configuration struct {
	DBs []struct {
		Path    string `yaml:"path"`
		Replica struct {
			URL string `yaml:"url"`
		} `yaml:"replica"`
	} `yaml:"dbs"`
}

// open returns the database and its replica in a configuration.
func open(config string) (*litestream.DB, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	var c configuration
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil {
		return nil, err
	}
	client, err := litestream.NewReplicaClientFromURL(c.DBs[0].Replica.URL)
	if err != nil {
		return nil, err
	}
	db := litestream.NewDB(c.DBs[0].Path)
	db.Replica = litestream.NewReplicaWithClient(db, client)
	return db, nil
}

// replicate does what "litestream replicate" does, and for each line of its input what "litestream sync -wait" does: it
// answers with the number of the last transaction in the replica.
func replicate(config string) error {
	db, err := open(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	store := litestream.NewStore([]*litestream.DB{db}, litestream.CompactionLevels{{Level: 0}, {Level: 1, Interval: time.Second}})
	if err := store.Open(ctx); err != nil {
		return err
	}
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			result, err := store.SyncDB(ctx, db.Path(), true)
			fmt.Println(result.ReplicatedTXID, err)
		}
	}()
	<-ctx.Done()
	return store.Close(context.Background())
}

// process is a caddy or a litestream.
type process struct {
	*exec.Cmd
	in  io.Writer
	out *bufio.Reader
	log *bytes.Buffer
}

func start(t *testing.T, as string, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], args...), log: new(bytes.Buffer)}
	p.Env, p.Stderr = append(append(os.Environ(), "RUN_AS="+as), env...), p.log
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// sync waits until the replica has everything, and returns its last transaction.
func (p *process) sync(t *testing.T) uint64 {
	t.Helper()
	if _, err := fmt.Fprintln(p.in); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	number, failure, _ := strings.Cut(strings.TrimSpace(line), " ")
	txid, parsed := strconv.ParseUint(number, 10, 64)
	if err != nil || parsed != nil || failure != "<nil>" {
		p.kill()
		t.Fatalf("sync: got %q, %v:\n%s", line, err, p.log)
	}
	return txid
}

// machine is a directory with a Caddyfile, and the Caddy that runs there.
type machine struct {
	t                *testing.T
	dir, admin, site string
	env              []string
	caddy            *process
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), admin: testkit.FreeAddress(t), site: testkit.FreeAddress(t)}
	m.env = []string{"HOME=" + m.dir, "XDG_DATA_HOME=" + m.dir + "/data", "XDG_CONFIG_HOME=" + m.dir + "/config", "CADDY_ADMIN=" + m.admin}
	caddyfile := fmt.Sprintf("{\nadmin %s\nservice_users {\nstore %s\n}\n}\nhttp://%s {\nservice_users\nrespond allowed\n}\n", m.admin, m.store(), m.site)
	if err := os.WriteFile(m.dir+"/Caddyfile", []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) store() string { return m.dir + "/service_users.db" }

// run starts Caddy and waits until it decides requests.
func (m *machine) run() {
	m.t.Helper()
	m.caddy = start(m.t, "caddy", m.env, "run", "--config", m.dir+"/Caddyfile", "--adapter", "caddyfile")
	m.until("Caddy is not ready", func() bool {
		var list map[string]any
		return m.client().Do(m.t.Context(), http.MethodGet, "/service_users", nil, &list) == nil
	})
}

func (m *machine) client() *admin.Client { return &admin.Client{Base: "http://" + m.admin} }

// until polls until ok.
func (m *machine) until(complaint string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.caddy.kill()
			m.t.Fatalf("%s:\n%s", complaint, m.caddy.log)
		}
	}
}

// call makes a change at the local door.
func (m *machine) call(method, path string, in, out any) {
	m.t.Helper()
	if err := m.client().Do(m.t.Context(), method, path, in, out); err != nil {
		m.t.Fatal(err)
	}
}

// account is a service user with its token.
type account struct {
	ID, Token string
	TokenID   string `json:"token_id"`
}

func (m *machine) create(name string, groups ...string) (a account) {
	m.t.Helper()
	m.call(http.MethodPost, "/service_users", map[string]any{"name": name, "permission_groups": groups}, &a)
	return a
}

// expect asks the site.
func (m *machine) expect(what string, a account, want int) {
	m.t.Helper()
	r, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, "http://"+m.site+"/v1/x", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	r.SetBasicAuth(a.ID, a.Token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		m.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		m.t.Errorf("%s: got %d, want %d", what, resp.StatusCode, want)
	}
}

// cli runs "caddy service-user" on this machine.
func (m *machine) cli(args ...string) (output string, code int) {
	m.t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"service-user"}, args...)...)
	cmd.Dir, cmd.Env = m.dir, append(append(os.Environ(), "RUN_AS=caddy"), m.env...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		m.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (m *machine) mustCLI(args ...string) string {
	m.t.Helper()
	output, code := m.cli(args...)
	if code != 0 {
		m.t.Fatalf("caddy service-user %s: exit code %d: %s", strings.Join(args, " "), code, output)
	}
	return output
}

// verify follows the chain of the audit trail, and returns the number and the hash of its last record.
func (m *machine) verify() (seq int64, head string) {
	m.t.Helper()
	var report struct {
		OK      bool
		Records int64
		Head    string
	}
	m.call(http.MethodGet, "/audit_events/verify", nil, &report)
	if !report.OK {
		m.t.Errorf("the audit trail: %+v", report)
	}
	return report.Records, report.Head
}

// TestLitestream replicates the store of a Caddy that is changed all the time, kills both, restores on another machine,
// and tries an older state.
func TestLitestream(t *testing.T) {
	m := newMachine(t)
	m.run()
	var group struct{ ID string }
	m.call(http.MethodPost, "/permission_groups", map[string]any{"name": "callers", "rules": []string{"allow GET /v1/{rest...}"}}, &group)
	stays, goes := m.create("stays", group.ID), m.create("goes", group.ID)

	example, err := os.ReadFile("../../examples/litestream/litestream.yml")
	if err != nil {
		t.Fatal(err)
	}
	config, replica := m.dir+"/litestream.yml", t.TempDir()
	text := strings.NewReplacer("/var/lib/caddy/service_users.db", m.store(), "s3://bucket/service_users", "file://"+replica).Replace(string(example))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	beside := start(t, "litestream", []string{"CONFIG=" + config})
	before := beside.sync(t)
	m.expect("before", goes, 200)

	// Changes and requests go on beside Litestream, which syncs and checkpoints meanwhile.
	m.call(http.MethodDelete, "/service_users/"+goes.ID+"/tokens/"+goes.TokenID, nil, nil)
	m.expect("revoked", goes, 401)
	var last account
	for i := range 60 {
		last = m.create(fmt.Sprintf("user-%d", i), group.ID)
		m.expect("a new one", last, 200)
		m.expect("an old one", stays, 200)
		if i%10 == 0 {
			beside.sync(t)
		}
	}
	m.mustCLI("check")
	records, head := m.verify()
	if after := beside.sync(t); after <= before {
		t.Fatalf("the replica went from transaction %d to %d", before, after)
	}

	// The note beside the database has the revision that a later start compares.
	m.until("the note does not follow", func() bool {
		var seen struct {
			AuditSeq int64 `json:"audit_seq"`
		}
		text, err := os.ReadFile(m.store() + ".seen")
		return err == nil && json.Unmarshal(text, &seen) == nil && seen.AuditSeq >= records
	})
	m.caddy.kill()
	beside.kill()

	restore := func(name string, txid uint64) string {
		t.Helper()
		db, err := open(config)
		if err != nil {
			t.Fatal(err)
		}
		opt := litestream.NewRestoreOptions()
		opt.OutputPath, opt.TXID, opt.IntegrityCheck = filepath.Join(t.TempDir(), name), ltx.TXID(txid), litestream.IntegrityCheckFull
		if err := db.Replica.Restore(t.Context(), opt); err != nil {
			t.Fatalf("restoring to transaction %d: %v", txid, err)
		}
		return opt.OutputPath
	}

	// On another machine the copy is whole, and decides as before.
	copied := restore("copy.db", 0)
	other := newMachine(t)
	other.mustCLI("check", copied, "--head", head)
	other.mustCLI("--store", other.store(), "restore", copied, "--yes")
	other.run()
	other.expect("stays, elsewhere", stays, 200)
	other.expect("the last one, elsewhere", last, 200)
	other.expect("revoked, elsewhere", goes, 401)
	if got, _ := other.verify(); got <= records {
		t.Errorf("the audit trail has %d records, want the %d and that of the restore", got, records)
	}
	other.caddy.kill()

	// The killed store goes on by itself, and so does its replica.
	m.run()
	m.expect("stays, after the kill", stays, 200)
	m.expect("revoked, after the kill", goes, 401)
	beside = start(t, "litestream", []string{"CONFIG=" + config})
	more := m.create("more", group.ID)
	beside.sync(t)
	if output, code := m.cli("--store", m.store(), "restore", copied, "--yes"); code != 4 {
		t.Errorf("restore beside Caddy and Litestream: got %d %s, want a refusal with 4", code, output)
	}
	m.caddy.kill()
	if output, code := m.cli("--store", m.store(), "restore", copied, "--yes"); code != 4 {
		t.Errorf("restore beside Litestream: got %d %s, want a refusal with 4", code, output)
	}
	beside.kill()
	other = newMachine(t)
	other.mustCLI("--store", other.store(), "restore", restore("more.db", 0), "--yes")
	other.run()
	other.expect("made after the kill", more, 200)
	other.caddy.kill()

	// A state from before the revocation, put in the place of the store, is refused; elsewhere it would be valid.
	old := restore("old.db", before)
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(m.store() + suffix); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(old, m.store()); err != nil {
		t.Fatal(err)
	}
	refused := start(t, "caddy", m.env, "run", "--config", m.dir+"/Caddyfile", "--adapter", "caddyfile")
	_ = refused.Wait()
	if code := refused.ProcessState.ExitCode(); code != 1 || !strings.Contains(refused.log.String(), "older than before") {
		t.Errorf("an older state: got the exit code %d, want 1 and the reason:\n%s", code, refused.log)
	}
	if output, code := m.cli("--store", m.store(), "list"); code == 0 || !strings.Contains(output, "older than before") {
		t.Errorf("the command line with an older state: got %d %s", code, output)
	}
}
