package store

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var seed = flag.Uint64("seed", 0, "the seed of random tests, which a failed test prints; 0 is another one each time")

// random returns the source of a test's random choices and logs its seed.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

var kills = flag.Int("kills", 5, "how many processes the tests of kill -9 kill, at random instants and at so many points")

// step is one change of the process that is going to be killed. It prints the
// step with Done unset before it begins, and with it set when the call returned.
type step struct {
	Do     string // create, update, deactivate, token, refresh, revoke, delete, undelete
	User   string
	Token  string // that is refreshed or revoked
	Owner  string // that is set
	New    string // the token that was made …
	Secret string // … and its secret
	Head   AuditHead
	Done   bool
}

// life is what is known of a service user.
type life struct {
	Owner           string
	Active, Deleted bool
	Tokens          map[string]bool // whether it is live
}

// unknown stands for the id of what a step made that was not acknowledged.
const unknown = "unknown"

// apply does a step in what is known.
func (e step) apply(lives map[string]life) map[string]life {
	next := maps.Clone(lives)
	u := next[e.User]
	u.Tokens = maps.Clone(u.Tokens)
	made := e.New
	if made == "" {
		made = unknown
	}
	switch e.Do {
	case "create":
		user := e.User
		if user == "" {
			user = unknown
		}
		next[user] = life{e.Owner, true, false, map[string]bool{made: true}}
		return next
	case "update":
		u.Owner = e.Owner
	case "deactivate":
		u.Active = false
	case "token":
		u.Tokens[made] = true
	case "refresh":
		u.Tokens[e.Token], u.Tokens[made] = false, true
	case "revoke":
		u.Tokens[e.Token] = false
	case "delete":
		u.Deleted, u.Active = true, false
	case "undelete":
		u.Deleted = false
	}
	next[e.User] = u
	return next
}

// livesIn reads them from the database; ids that are not known are unknown.
func livesIn(s *Store, known map[string]life) map[string]life {
	lives := make(map[string]life)
	type row struct {
		id string
		life
	}
	// All rows at once: a store in PostgreSQL has one connection for both queries.
	for _, r := range must(collect(must(s.read.QueryContext(ctx, `SELECT id, owner, active, deleted_at > 0 FROM service_users`)), func(rows *sql.Rows) (r row, err error) {
		r.Tokens = make(map[string]bool)
		err = rows.Scan(&r.id, &r.Owner, &r.Active, &r.Deleted)
		return r, err
	})) {
		id, u := r.id, r.life
		tokens := must(s.read.QueryContext(ctx, `SELECT id, revoked_at = 0 FROM tokens WHERE service_user_id = $1`, id))
		for tokens.Next() {
			var token string
			var live bool
			mustDo(tokens.Scan(&token, &live))
			if _, ok := known[id].Tokens[token]; !ok {
				token = unknown
			}
			u.Tokens[token] = live
		}
		mustDo(tokens.Err())
		tokens.Close()
		if _, ok := known[id]; !ok {
			id = unknown
		}
		lives[id] = u
	}
	return lives
}

func livesText(lives map[string]life) string {
	var out strings.Builder
	for _, id := range slices.Sorted(maps.Keys(lives)) {
		fmt.Fprintf(&out, "%s %s\n", id, must(json.Marshal(lives[id])))
	}
	return out.String()
}

// churn is the process that is going to be killed: "random" changes the store for
// ever, "point" and "commit" go through a script and "upgrade" only opens it, until
// the call of the database, or the commit, with a number.
func churn(path, how string) {
	var kind string
	var at, seed uint64
	must(fmt.Sscan(how, &kind, &at, &seed))
	var calls atomic.Uint64
	if kind != "random" {
		plans.Store(filepath.Dir(path), plan(func(when, call, statement string) error {
			if (kind != "commit" || call == "commit") && calls.Add(1) == at {
				fmt.Printf("at %s %s %s\n", when, call, strings.Join(strings.Fields(statement), " "))
				mustDo(syscall.Kill(os.Getpid(), syscall.SIGKILL))
				select {}
			}
			return nil
		}))
	}
	if kind == "upgrade" {
		c := new(clock)
		c.nanos.Store(atSchema1.UnixNano())
		mustDo(must(Open(ctx, path, Options{Now: c.Now, Peppers: must(access.ParsePeppers("0123456789abcdef")), Poll: time.Hour})).Close())
		fmt.Println("calls", calls.Load())
		return
	}
	s := must(Open(ctx, path, Options{Poll: time.Hour}))
	out := json.NewEncoder(os.Stdout)
	known := livesAgain(s)
	draw := rand.New(rand.NewPCG(seed, 0))
	script := []string{"create", "update", "token", "refresh", "revoke", "delete", "undelete"}
	for n := 0; kind == "random" || n < len(script); n++ {
		do := ""
		if kind != "random" {
			do = script[n]
		} else if do = script[draw.IntN(len(script))]; len(known) > 20 && do == "create" {
			do = "deactivate"
		}
		e, ok := drawStep(do, known, draw)
		if !ok {
			continue
		}
		mustDo(out.Encode(e))
		e.run(s)
		e.Head, e.Done = s.AuditHead(), true
		known = e.apply(known)
		mustDo(out.Encode(e))
	}
	mustDo(s.Close())
	fmt.Println("calls", calls.Load())
}

// livesAgain reads them with the ids that there are.
func livesAgain(s *Store) map[string]life {
	all := make(map[string]life)
	for _, id := range must(collect(must(s.read.QueryContext(ctx, `SELECT id FROM service_users`)), scanString)) {
		all[id] = life{Tokens: make(map[string]bool)}
		for _, token := range must(collect(must(s.read.QueryContext(ctx, `SELECT id FROM tokens WHERE service_user_id = $1`, id)), scanString)) {
			all[id].Tokens[token] = true
		}
	}
	return livesIn(s, all)
}

// drawStep draws whom a step is done to, when there is somebody.
func drawStep(do string, known map[string]life, draw *rand.Rand) (step, bool) {
	e := step{Do: do, Owner: fmt.Sprint("o", draw.Uint64())}
	if do == "create" {
		return e, true
	}
	var users []string
	for id, u := range known {
		if u.Deleted == (do == "undelete") {
			users = append(users, id)
		}
	}
	if len(users) == 0 {
		return e, false
	}
	slices.Sort(users)
	e.User = users[draw.IntN(len(users))]
	if do == "refresh" || do == "revoke" {
		tokens := slices.DeleteFunc(slices.Sorted(maps.Keys(known[e.User].Tokens)), func(id string) bool { return !known[e.User].Tokens[id] })
		if len(tokens) == 0 {
			return e, false
		}
		e.Token = tokens[draw.IntN(len(tokens))]
	}
	if do == "token" && len(known[e.User].Tokens) > 20 {
		return e, false
	}
	return e, true
}

// run does a step to the store.
func (e *step) run(s *Store) {
	edit := func(f func(*ServiceUser)) {
		must(s.UpdateServiceUser(ctx, Local, e.User, 0, func(u *ServiceUser) error { f(u); return nil }))
	}
	var issued *Issued
	switch e.Do {
	case "create":
		u, token, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: newID("n", s.Now()) + "!", Owner: e.Owner, Active: true}}, &Token{})
		mustDo(err)
		e.User, issued = u.ID, token
	case "update":
		edit(func(u *ServiceUser) { u.Owner = e.Owner })
	case "deactivate":
		edit(func(u *ServiceUser) { u.Active = false })
	case "token":
		issued = must(s.CreateToken(ctx, Local, e.User, Token{}))
	case "refresh":
		issued = must(s.refreshOf(ctx, Local, e.User, e.Token, 0))
	case "revoke":
		mustDo(s.revoke(ctx, Local, e.User, e.Token))
	case "delete":
		mustDo(s.deleteUser(ctx, Local, e.User, 0))
	case "undelete":
		must(s.UndeleteServiceUser(ctx, Local, e.User))
	}
	if issued != nil {
		e.New, e.Secret = issued.ID, issued.Secret
	}
}

// witness is what the killer knows.
type witness struct {
	lives   map[string]life
	secrets map[string]step // by secret: the step that made it
	head    AuditHead
	acks    int
}

// startChurn starts the process, and tells the witness what it says, until its
// end. said gets a value with every change that was acknowledged.
func startChurn(t testing.TB, path, how string, w *witness) (cmd *exec.Cmd, said <-chan bool, over <-chan step, rest *strings.Builder) {
	t.Helper()
	cmd = exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+path, "STORE_TEST_DO=churn "+how)
	rest = new(strings.Builder)
	cmd.Stderr = rest
	pipe := must(cmd.StdoutPipe())
	mustDo(cmd.Start())
	acks, end := make(chan bool, 1<<16), make(chan step, 1)
	go func() {
		defer close(acks)
		var last step
		lines := bufio.NewReader(pipe)
		for {
			line, err := lines.ReadString('\n')
			if err != nil { // the last line may be cut
				break
			}
			var e step
			if json.Unmarshal([]byte(line), &e) != nil {
				rest.WriteString(line)
				continue
			}
			last = e
			if e.Done {
				w.lives, w.head, last = e.apply(w.lives), e.Head, step{}
				w.acks++
				if e.Secret != "" {
					w.secrets[e.Secret] = e
				}
				acks <- true
			}
		}
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait()
		end <- last
	}()
	return cmd, acks, end, rest
}

// check opens the store after the end of the process and compares.
func (w *witness) check(t testing.TB, path, when string, pending step) {
	t.Helper()
	s, err := Open(ctx, path, Options{Poll: time.Hour})
	if err != nil {
		t.Fatalf("%s: opening it again: %v", when, err)
	}
	defer s.Close()
	whole(t, s)
	if r, err := s.VerifyAudit(ctx, Local, w.head); err != nil || r.Problem != "" {
		t.Errorf("%s: the audit trail from the last acknowledged head: got %+v, %v", when, r, err)
	}
	got, old := livesText(livesIn(s, w.lives)), livesText(w.lives)
	done := pending.Do != "" && got != old && got == livesText(pending.apply(w.lives)) // some change nothing
	if got != old && !done {
		t.Errorf("%s: after %d acknowledged changes, and %+v:", when, w.acks, pending)
		same(t, when, got, old)
	}
	// Each change has its records, and no record is without its change.
	records := map[string]int{"create": 2, "refresh": 2}[pending.Do]
	if records == 0 {
		records = 1
	}
	if got := s.AuditHead().Seq; got != w.head.Seq && !done || done && got != w.head.Seq+int64(records) {
		t.Errorf("%s: audit records: got %d after %d that were acknowledged, and %+v", when, got, w.head.Seq, pending)
	}
	w.lives, w.head = livesAgain(s), s.AuditHead()
	for secret, made := range w.secrets {
		u, want := w.lives[made.User], access.NoRule // it has none, and is known
		switch {
		case u.Deleted:
			want = access.UnknownID
		case !u.Tokens[made.New]:
			want = access.TokenRevoked
		case !u.Active:
			want = access.UserInactive
		}
		if got := probe(s, made.User, secret, "GET /"); got != want {
			t.Errorf("%s: a token that was issued: got %v, want %v", when, got, want)
		}
	}
}

func newWitness() *witness {
	return &witness{lives: make(map[string]life), secrets: make(map[string]step)}
}

// A process that is killed at any instant has lost nothing of what it
// acknowledged, and leaves nothing half done.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	draw := random(t)
	var path string
	var w *witness
	acks, open := 0, 0
	for n := range *kills {
		if n%25 == 0 { // the first dies while it makes the store
			path, w = place(t), newWitness()
		}
		cmd, said, over, rest := startChurn(t, path, fmt.Sprint("random 0 ", draw.Uint64()), w)
		if n%5 != 0 {
			for range 1 + draw.IntN(20) {
				<-said
			}
		}
		// An instant is as good as another; after none, the process is starting.
		<-time.After(time.Duration(draw.IntN(2000)) * time.Microsecond * time.Duration(1+(5-n%5)/5*25))
		_ = cmd.Process.Kill()
		pending := <-over
		if rest.Len() > 0 {
			t.Fatalf("the process said: %s", rest)
		}
		if pending.Do != "" {
			open++
		}
		w.check(t, path, fmt.Sprint("kill ", n+1), pending)
		acks, w.acks = acks+w.acks, 0
		if left := list(filepath.Dir(path)); !IsURL(path) && slices.ContainsFunc(left, func(name string) bool {
			return !strings.HasPrefix(name, "store.db") && !strings.HasPrefix(name, ".new-")
		}) {
			t.Errorf("files: got %v", left)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills, %d acknowledged changes, %d that were under way", *kills, acks, open)
}

// The same at points before and after each call of the database, those at a
// COMMIT in any dose.
func TestKilledAtPoints(t *testing.T) {
	pgtest.SQLiteOnly(t, "the points are calls of the driver of SQLite")
	t.Parallel()
	run := func(kind string, at int) int {
		w, path := newWitness(), place(t)
		_, _, over, rest := startChurn(t, path, fmt.Sprintf("%s %d 1", kind, at), w)
		pending := <-over
		said := strings.TrimSpace(rest.String())
		if !strings.HasPrefix(said, "at ") && !strings.HasPrefix(said, "calls ") {
			t.Fatalf("the process said: %s", said)
		}
		w.check(t, path, fmt.Sprintf("%s %d, %s", kind, at, said), pending)
		n, _ := strconv.Atoi(strings.TrimPrefix(said, "calls "))
		return n
	}
	for kind, points := range map[string]func(draw *rand.Rand, total int) func(func(int) bool){"point": points, "commit": everyPoint} {
		total, done := run(kind, 0), 0
		for at := range points(random(t), total) {
			run(kind, at)
			if t.Failed() {
				return
			}
			done++
		}
		t.Logf("%s: %d of %d", kind, done, total)
	}
}

func everyPoint(_ *rand.Rand, total int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for at := 1; at <= total && yield(at); at++ {
		}
	}
}

// points are as many of the numbers from 1 to total as the dose says, at a random
// distance from the first.
func points(draw *rand.Rand, total int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		step := max(1, total / *kills)
		for at := 1 + draw.IntN(step); at <= total; at += step {
			if !yield(at) {
				return
			}
		}
	}
}

// A process that is killed while it upgrades a database leaves the old one or the
// new one.
func TestKilledAtUpgrade(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	t.Parallel()
	upgrade := func(at int) (int, bool) {
		path, opts := copyOfSchema1(t)
		before := dumpTables(unopened(t, path), tables1...)
		cmd := exec.Command(must(os.Executable()))
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+path, fmt.Sprintf("STORE_TEST_DO=churn upgrade %d 0", at))
		out, _ := cmd.Output()
		said := strings.TrimSpace(string(out))
		if !strings.HasPrefix(said, "at ") && !strings.HasPrefix(said, "calls ") {
			t.Fatalf("the process said: %s", said)
		}
		db := must(sql.Open("sqlite", sqliteDSN(path, "rw", "")))
		defer db.Close()
		version := number(db, `PRAGMA user_version`)
		switch version {
		case 1:
			if n := number(db, `SELECT COUNT(*) FROM sqlite_master WHERE name IN ('permissions', 'tokens_quiet')`); n != 0 {
				t.Errorf("%s: version 1 with tables of a later one", said)
			}
			same(t, said, dumpTables(db, tables1...), before)
		case schemaVersion:
		default:
			t.Errorf("%s: schema version: got %d, want 1 or %d", said, version, schemaVersion)
		}
		mustDo(db.Close())
		s := open(t, path, opts)
		checkSchema1(t, s)
		whole(t, s)
		n, _ := strconv.Atoi(strings.TrimPrefix(said, "calls "))
		return n, version == 1
	}
	total, _ := upgrade(0)
	old, done := 0, 0
	for at := range points(random(t), total) {
		if _, was := upgrade(at); was {
			old++
		}
		done++
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of %d points, %d before the upgrade was done", done, total, old)
}
