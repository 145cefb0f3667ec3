package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// server is the API over a real store behind a real listener. Its clock stands
// still but for one second before every request.
//
// Rows are written and compared with names in place of what is random: the
// first service user that an answer shows is service_1, the second token
// token_2, the third secret csu_3; service_0, token_0, group_0 and rule_0 are
// ids of the right form that nothing has. The instant of the n-th request is
// t+ns.
type server struct {
	*httptest.Server
	t      testing.TB
	api    *API
	store  *store.Store
	recall *access.Recall
	by     store.Actor // who acts
	clock  atomic.Int64
	log    *observer.ObservedLogs
	name   map[string]string // real: service_…, csu_…; → service_1, csu_1
	real   map[string]string
	count  map[string]int
	issued map[string]int // secret: how often it was in an answer
	place  string
}

// start is the instant t+0s.
var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func serve(t testing.TB, opts store.Options) *server {
	t.Helper()
	core, log := observer.New(zap.DebugLevel)
	s := &server{t: t, recall: access.NewRecall(100), by: store.Local, log: log, name: map[string]string{}, real: map[string]string{}, count: map[string]int{}, issued: map[string]int{}}
	for _, prefix := range []string{"service", "token", "group", "rule", "node"} {
		s.real[prefix+"_0"] = prefix + "_" + strings.Repeat("0", 27)
	}
	opts.Now, opts.Log, opts.Poll = s.now, zap.New(core), time.Hour // nobody else writes
	var err error
	s.place = pgtest.Place(t)
	if s.store, err = store.Open(t.Context(), s.place, opts); err != nil {
		t.Fatal(err)
	}
	s.recall.Since = start
	s.api = New(s.store, s.recall, zap.New(core))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.api.Serve(w, r, s.by) }))
	t.Cleanup(func() {
		s.Close()
		if err := s.store.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
		s.checkSecrets()
	})
	return s
}

func (s *server) now() time.Time { return start.Add(time.Duration(s.clock.Load())) }

// checkSecrets: every secret is in exactly one answer, and in no log, audit
// record or file.
func (s *server) checkSecrets() {
	var files []string
	hasSecret := func(text string) bool { return strings.Contains(strings.ReplaceAll(text, "csu_…", ""), "csu_") }
	if *pgtest.On {
		if rows := pgtest.Rows(s.t, s.place); !strings.Contains(rows, "audit_seq") || hasSecret(rows) {
			s.t.Errorf("a secret stands in the rows, or they are missing: %s", rows)
		}
	} else if files, _ = filepath.Glob(s.place + "*"); len(files) == 0 { // it is closed
		s.t.Error("the store has no files")
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err != nil || hasSecret(string(text)) {
			s.t.Errorf("%s: a secret stands in it, or it cannot be read: %v", file, err)
		}
	}
	for secret, times := range s.issued {
		if times != 1 {
			s.t.Errorf("%s: shown in %d answers, want 1", s.name[secret], times)
		}
	}
	for _, entry := range s.log.All() {
		text := entry.Message + fmt.Sprint(entry.ContextMap())
		if strings.Contains(text, "csu_") {
			s.t.Errorf("a secret stands in the log: %s", text)
		}
	}
}

// reply is what came back, under the names that rows use.
type reply struct {
	status int
	header http.Header
	text   string // the body
	raw    string // the body as it was sent
}

// do sends one request, as in `POST /service_users {"name":"a"}`, over a
// connection of its own, byte for byte as it stands here. A body is
// application/json unless a header says otherwise; "Content-Type:" sends none.
func (s *server) do(request string, headers ...string) reply {
	s.t.Helper()
	method, rest, _ := strings.Cut(s.resolve(request), " ")
	target, body, _ := strings.Cut(rest, " ")
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nHost: host.invalid\r\nConnection: close\r\n", method, target)
	typed := false
	for _, h := range headers {
		name, value, _ := strings.Cut(s.resolve(h), ":")
		if typed = typed || name == "Content-Type"; name == "Content-Type" && value == "" {
			continue
		}
		fmt.Fprintf(&out, "%s:%s\r\n", name, value)
	}
	if body != "" && !typed {
		out.WriteString("Content-Type: application/json\r\n")
	}
	fmt.Fprintf(&out, "Content-Length: %d\r\n\r\n%s", len(body), body)

	s.clock.Add(int64(time.Second))
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	go conn.Write(out.Bytes()) // a refusal may come before the end
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("%.200s: %v", request, err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%.200s: %v", request, err)
	}
	for _, problem := range checkAnswer(method, resp.StatusCode, resp.Header, text) {
		s.t.Errorf("%.200s: %s\n\t%.2000s", strings.ToValidUTF8(request, "?"), problem, text)
	}
	if strings.Contains(fmt.Sprint(resp.Header)+string(text), "host.invalid") {
		s.t.Errorf("%.200s: the answer repeats the Host header: %v %s", request, resp.Header, text)
	}
	for _, problem := range s.undocumented(out.Bytes(), resp.StatusCode, resp.Header, text) {
		s.t.Errorf("%.200s: %s\n\t%.2000s", strings.ToValidUTF8(request, "?"), problem, text)
	}
	for _, secret := range secretForm.FindAllString(string(text), -1) {
		s.issued[secret]++
	}
	return reply{resp.StatusCode, resp.Header, s.rename(string(text)), string(text)}
}

// exchange sends a request whose body or answer is a document or a database, and so
// not of the form that all others have.
func (s *server) exchange(method, path string, body io.Reader, headers ...string) reply {
	s.t.Helper()
	r, err := http.NewRequest(method, s.URL+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, s.rename(string(text)), string(text)}
}

// checkAnswer finds what is wrong with the form of an answer, whatever it says.
func checkAnswer(method string, status int, h http.Header, body []byte) (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Location": ""} {
		if got := h.Get(name); got != want {
			wrong("got %s %q, want %q", name, got, want)
		}
	}
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			wrong("got a header %s, want none for other origins", name)
		}
	}
	operation := h.Get(OperationHeader)
	if !store.ValidID("op", operation) {
		wrong("got operation id %q, want op_…", operation)
	}
	kind, members := "application/json", map[string]any{}
	if status >= 400 {
		kind = "application/problem+json"
	}
	switch {
	case status < 200 || status >= 300 && status < 400 && status != 304 || status >= 500 && status != 503 && status != 507:
		wrong("got status %d", status)
	case status == 204 || status == 304:
		if len(body) != 0 || h.Get("Content-Type") != "" {
			wrong("got a body of type %q with %d, want none", h.Get("Content-Type"), status)
		}
		return problems
	case h.Get("Content-Type") != kind:
		wrong("got Content-Type %q, want %q", h.Get("Content-Type"), kind)
	}
	if method == "HEAD" {
		if len(body) != 0 {
			wrong("got a body for HEAD")
		}
		return problems
	}
	if err := json.Unmarshal(body, &members); err != nil {
		wrong("got no JSON object: %v", err)
		return problems
	}
	if status < 400 {
		return problems
	}
	var e Error
	if err := json.Unmarshal(body, &e); err != nil { // details that are no strings would fail
		wrong("got no error body: %v", err)
	}
	if got, want := slices.Sorted(maps.Keys(members)), strings.Fields("detail details error_code msg status status_code title type"); !slices.Equal(got, want) {
		wrong("got members %q, want %q", got, want)
	}
	if e.Status != status || e.Status2 != status || e.Title != http.StatusText(status) || e.Type != "about:blank" {
		wrong("got status_code %d, status %d, title %q, type %q; want those of %d", e.Status, e.Status2, e.Title, e.Type, status)
	}
	if e.Msg == "" || e.Detail != e.Msg {
		wrong("got msg %q and detail %q, want the same and not empty", e.Msg, e.Detail)
	}
	if !codeForm.MatchString(e.Code) {
		wrong("got error_code %q, want ERR_…", e.Code)
	}
	if got := e.Details["operation_id"]; got != operation {
		wrong("got operation_id %q in the body and %q in the header", got, operation)
	}
	for field, msg := range e.Details {
		if field != "operation_id" && e.Code != "ERR_IN_USE" && e.Code != "ERR_ANSWERED" && e.Code != "ERR_NOT_READY" && e.Msg != field+": "+msg {
			wrong("got msg %q, want the field %q and its message %q", e.Msg, field, msg)
		}
	}
	if (status == 503) != (h.Get("Retry-After") != "") {
		wrong("got Retry-After %q with %d", h.Get("Retry-After"), status)
	}
	return problems
}

var (
	codeForm   = regexp.MustCompile(`^(ERR_(NGROK_[0-9]+|[A-Z][A-Z_]+)|invalid_cel_expression)$`)
	secretForm = regexp.MustCompile(`\bcsu_[0-9A-Za-z]{49}\b`)
	random     = regexp.MustCompile(`\b((service|token|group|rule)_[0-9A-Za-z]{27}|(csu)_[0-9A-Za-z]{49})\b`)
	hint       = regexp.MustCompile(`"hint":"[0-9A-Za-z]{4}"`)
	instant    = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"`)
	named      = regexp.MustCompile(`\b(service|token|group|rule|node|csu)_\d{1,3}\b`)
	offset     = regexp.MustCompile(`"t\+\d+s"`)
)

// rename puts names in place of what is random.
func (s *server) rename(text string) string {
	text = random.ReplaceAllStringFunc(text, func(id string) string {
		if s.name[id] == "" {
			prefix, _, _ := strings.Cut(id, "_")
			if id == s.real[prefix+"_0"] {
				return prefix + "_0"
			}
			s.count[prefix]++
			s.name[id] = fmt.Sprintf("%s_%d", prefix, s.count[prefix])
			s.real[s.name[id]] = id
		}
		return s.name[id]
	})
	text = hint.ReplaceAllString(text, `"hint":"hint"`)
	return instant.ReplaceAllStringFunc(text, func(at string) string {
		t, err := time.Parse(`"`+time.RFC3339+`"`, at)
		if err != nil {
			return at
		}
		return fmt.Sprintf(`"t+%ds"`, int(t.Sub(start).Seconds()))
	})
}

// resolve is the way back.
func (s *server) resolve(text string) string {
	text = named.ReplaceAllStringFunc(text, func(name string) string {
		if s.real[name] == "" {
			s.t.Fatalf("%.200s: no answer has shown %s so far", text, name)
		}
		return s.real[name]
	})
	return offset.ReplaceAllStringFunc(text, func(at string) string {
		d, err := time.ParseDuration(strings.Trim(at, `"t+`))
		if err != nil {
			s.t.Fatal(err)
		}
		return start.Add(d).Format(`"` + time.RFC3339 + `"`)
	})
}

// row is a request and the answer that it must get:
//
//	"201 {…}"                       the status, and members that the body must have, among others
//	"201 = {…}"                     the status, and the body, exactly
//	"204"                           the status alone
//	"400 ERR_NGROK_214 [nmae] the…" status, code, the field at fault, and how the message begins
//	"405 … Allow: GET, HEAD"        as before, and a header
type row struct {
	do, want string
	headers  []string
}

func r(do, want string, headers ...string) row { return row{do, want, headers} }

// run sends the rows in their order.
func (s *server) run(rows ...row) {
	s.t.Helper()
	for _, row := range rows {
		got := s.do(row.do, row.headers...)
		if got := got.compare(row.want); got != "" {
			s.t.Errorf("%.200s %q\n\tgot  %.2000s\n\twant %s", strings.ToValidUTF8(row.do, "?"), row.headers, got, row.want)
		}
	}
}

// compare returns "" when the answer is as wanted, and else what it is.
func (a reply) compare(want string) string {
	want, header, withHeader := strings.Cut(want, " Allow: ")
	status, want, _ := strings.Cut(want, " ")
	got := fmt.Sprintf("%d %s Allow: %s", a.status, a.text, a.header.Get("Allow"))
	if status != fmt.Sprint(a.status) || withHeader && a.header.Get("Allow") != header {
		return got
	}
	exact, isExact := strings.CutPrefix(want, "= ")
	switch {
	case want == "":
		return ""
	case isExact:
		if strings.TrimSpace(a.text) == exact {
			return ""
		}
	case want[0] == '{':
		if has(parse(a.text), parse(want)) {
			return ""
		}
	default:
		var e Error
		if err := json.Unmarshal([]byte(a.text), &e); err != nil {
			return got
		}
		line := e.Code
		for field, msg := range e.Details {
			if field != "operation_id" {
				line, e.Msg = line+" ["+field+"]", msg
			}
		}
		if want == line || len(want) > len(line) && strings.HasPrefix(line+" "+e.Msg, want) {
			return ""
		}
		return fmt.Sprintf("%d %s %s", a.status, line, e.Msg)
	}
	return got
}

func parse(text string) any {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return fmt.Sprintf("%s: %v", text, err)
	}
	return v
}

// has reports whether got holds what want names: members of objects, lists
// element by element.
func has(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		for name, v := range want {
			member, present := object[name]
			ok = ok && present && has(member, v)
		}
		return ok
	case []any:
		list, ok := got.([]any)
		return ok && slices.EqualFunc(list, want, has)
	default:
		return got == want
	}
}

// must sends a request that prepares something, and returns the answer's members.
func (s *server) must(request string, headers ...string) map[string]any {
	s.t.Helper()
	got := s.do(request, headers...)
	if got.status >= 300 {
		s.t.Fatalf("%.200s: got %d %s", request, got.status, got.text)
	}
	object, _ := parse(got.text).(map[string]any)
	return object
}

// login says what a service user's credentials are good for at this instant.
func (s *server) login(user, secret string) (access.Principal, access.Reason) {
	return s.store.Directory().Authenticate(access.Credential{ID: s.real[user], Secret: s.real[secret]}, netip.MustParseAddr("192.0.2.1"), s.now().Unix())
}

// request says what a request such as "GET /v1/x" of a service user comes to.
func (s *server) request(user, secret, action string) access.Reason {
	p, why := s.login(user, secret)
	if why != access.Granted {
		return why
	}
	method, path, _ := strings.Cut(action, " ")
	return s.store.Directory().Authorize(p, access.Action{Method: method, Host: "api.example.com", Path: path}).Reason
}

// expect compares the outcomes of requests, one for each secret.
func (s *server) expect(user, action string, want map[string]access.Reason) {
	s.t.Helper()
	for secret, want := range want {
		if got := s.request(user, secret, action); got != want {
			s.t.Errorf("%s with %s: %s: got %s, want %s", user, secret, action, got, want)
		}
	}
}
