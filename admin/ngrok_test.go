package admin

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// recorded reads a file of requests that a client of the ngrok API sent. The first paragraph has
// the headers of every request. Each further paragraph is a request and the members of the answer
// that the client reads:
//
//	POST /bot_users
//	{"name":"a"}
//	201 {"id":"service_2"}
func recorded(t *testing.T, file string) (headers []string, rows []row) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for paragraph := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := slices.DeleteFunc(strings.Split(paragraph, "\n"), func(line string) bool { return strings.HasPrefix(line, "#") })
		if headers == nil {
			headers = lines
			continue
		}
		last := len(lines) - 1
		rows = append(rows, r(strings.Join(lines[:last], " "), lines[last], headers...))
	}
	return headers, rows
}

// known has the fields that a client of the ngrok API decodes, of service users and API keys.
type known struct {
	ID          string `json:"id"`
	URI         string `json:"uri"`
	Name        string `json:"name"`
	Active      bool   `json:"active"`
	Description string `json:"description"`
	Metadata    string `json:"metadata"`
	OwnerID     string `json:"owner_id"`
	CreatedAt   string `json:"created_at"`
}

// Clients of the ngrok API send these requests. A resource reads as it was written, so that a plan
// of Terraform after an apply is empty.
func TestRecordedClients(t *testing.T) {
	files, err := filepath.Glob("testdata/ngrok/*.txt")
	if err != nil || len(files) != 2 {
		t.Fatalf("got %q, %v, want the records of two clients", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			s := serve(t, store.Options{})
			s.must(`POST /service_users {"name":"automation","role":"admin","create_token":false}`)
			s.by = store.Actor{Name: s.real["service_1"]} // the name that a site door gives it
			headers, rows := recorded(t, file)
			if len(headers) < 4 || len(rows) < 20 {
				t.Fatalf("got %d headers and %d requests, want all", len(headers), len(rows))
			}
			written := make(map[string]known) // by URI
			for _, row := range rows {
				got := s.do(row.do, row.headers...)
				if problem := got.compare(row.want); problem != "" {
					t.Errorf("%s\n\tgot  %s\n\twant %s", row.do, problem, row.want)
				}
				var k known
				if got.status >= 400 || got.status == 204 || json.Unmarshal([]byte(got.raw), &k) != nil || k.ID == "" {
					continue
				}
				if before, ok := written[k.URI]; ok && strings.HasPrefix(row.do, "GET ") && k != before {
					t.Errorf("%s: got %+v, want %+v as it was written", row.do, k, before)
				}
				written[k.URI] = k
			}
			if len(written) < 3 {
				t.Errorf("got the resources %v, want at least three", written)
			}
		})
	}
}

// A filter chooses among API keys by every field that they show.
func TestFilterAPIKeys(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /bot_users {"name":"a"}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"b","teams":["ops"],"create_token":false}`, `201 {"id":"service_2"}`),
		r(`POST /api_keys {"owner_id":"service_1","description":"ci","metadata":"{\"env\":\"prod\"}"}`, `201 {"id":"token_1"}`), // t+3s
		r(`POST /api_keys {"owner_id":"service_2","description":"nightly"}`, `201 {"id":"token_2"}`),
		r(`POST /service_users/service_2/tokens {"description":"ci","ttl":"90d"}`, `201 {"id":"token_3"}`),
		r(`POST /service_users/service_1/tokens {"ttl":"1d"}`, `201 {"id":"token_4"}`),
		r(`POST /service_users/service_1/tokens/token_4/refresh {"grace":"12h"}`, `201 {"id":"token_5"}`),
		r(`PATCH /api_keys/token_2 {"metadata":"m"}`, `200 {"updated_at":"t+8s"}`),
	)
	filtered := func(filter string) string {
		return "GET /api_keys?filter=" + url.QueryEscape(s.resolve(filter))
	}
	for filter, want := range map[string]string{
		`true`:                                                        `[{"id":"token_5"},{"id":"token_4"},{"id":"token_3"},{"id":"token_2"},{"id":"token_1"}]`,
		`false`:                                                       `[]`,
		`obj.id == "token_3"`:                                         `[{"id":"token_3"}]`,
		`obj.uri == "/api_keys/token_3"`:                              `[{"id":"token_3"}]`,
		`obj.owner_id == "service_1"`:                                 `[{"id":"token_5"},{"id":"token_4"},{"id":"token_1"}]`,
		`obj.description == "ci"`:                                     `[{"id":"token_3"},{"id":"token_1"}]`,
		`obj.description.startsWith("night")`:                         `[{"id":"token_2"}]`,
		`obj.metadata.contains("prod")`:                               `[{"id":"token_1"}]`,
		`obj.metadata in ["m", "x"]`:                                  `[{"id":"token_2"}]`,
		`obj.created_at < timestamp("t+4s")`:                          `[{"id":"token_1"}]`,
		`obj.updated_at == timestamp("t+8s")`:                         `[{"id":"token_2"}]`,
		`obj.expires_at == null`:                                      `[{"id":"token_2"},{"id":"token_1"}]`,
		`obj.expires_at < now + duration("48h")`:                      `[{"id":"token_5"},{"id":"token_4"}]`,
		`obj.expires_at > timestamp(time.now).add("7d")`:              `[{"id":"token_3"}]`,
		`obj.created_at < timestamp(time.now).subtract("7d")`:         `[]`,
		`obj.created_at > timestamp(time.now).subtract("7d")`:         `[{"id":"token_5"},{"id":"token_4"},{"id":"token_3"},{"id":"token_2"},{"id":"token_1"}]`,
		`obj.last_used_at != null`:                                    `[]`,
		`obj.state == "retiring"`:                                     `[{"id":"token_4"}]`,
		`obj.state == "active" && !(obj.owner_id == "service_1")`:     `[{"id":"token_3"},{"id":"token_2"}]`,
		`obj.owner_id == "service_1" && size(obj.description) == 0`:   `[{"id":"token_5"},{"id":"token_4"}]`,
		`(obj.metadata == "" || obj.metadata == "m") && obj.id != ""`: `[{"id":"token_5"},{"id":"token_4"},{"id":"token_3"},{"id":"token_2"}]`,
	} {
		s.run(r(filtered(filter), `200 {"keys":`+want+`,"next_page_uri":null}`))
	}
	s.clock.Add(int64(13 * 60 * 60 * 1e9)) // the grace of token_4 is over
	s.run(
		r(filtered(`obj.state == "retiring"`), `200 {"keys":[]}`),

		// Pages of what fits, whose links keep the filter.
		r(filtered(`obj.description == "ci"`)+"&limit=1", `200 {"keys":[{"id":"token_3"}],"uri":"/api_keys","next_page_uri":"/api_keys?before_id=token_3&filter=obj.description+%3D%3D+%22ci%22&limit=1"}`),
		r(filtered(`obj.description == "ci"`)+"&limit=1&before_id=token_3", `200 {"keys":[{"id":"token_1"}],"next_page_uri":null}`),
		r(filtered(`obj.description == "ci"`)+"&limit=2", `200 {"keys":[{"id":"token_3"},{"id":"token_1"}],"next_page_uri":null}`),
		r(`DELETE /api_keys/token_3`, `204`),
		r(filtered(`obj.description == "ci"`)+"&before_id=token_3", `200 {"keys":[{"id":"token_1"}],"next_page_uri":null}`),
		r(filtered(`obj.description == "ci"`)+"&before_id=token_1", `200 {"keys":[],"next_page_uri":null}`),

		// A filter that is none.
		r(filtered(`obj.owner == "service_1"`), `400 invalid_cel_expression [filter] obj has no "owner"; it has created_at, description, expires_at, id, last_used_at, metadata, owner_id, state, updated_at, uri`),
		r(filtered(`obj.token == null`), `400 invalid_cel_expression [filter] obj has no "token"`),
		r(filtered(`obj.id`), `400 invalid_cel_expression [filter]`),
		r(filtered(`obj.id ==`), `400 invalid_cel_expression [filter]`),
		r(filtered(`key.id == "x"`), `400 invalid_cel_expression [filter]`),
		r(filtered(`obj.metadata.matches(obj.description)`), `400 invalid_cel_expression [filter] matches needs a simple pattern`),
		r(filtered(`[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, a + b + c + d > 0))))`), `400 invalid_cel_expression [filter] costs too much for token_5; make it simpler`),
		r(`GET /api_keys?filter=`, `400 ERR_NGROK_230 [filter]`),
		r(filtered(`true`)+"&limit=0", `400 ERR_NGROK_233 [limit]`),
		r(filtered(`true`)+"&before_id=service_1", `400 ERR_NGROK_227 [before_id]`),
		r(filtered(`true`)+"&filter=true", `400 ERR_NGROK_232 [filter]`),
	)

	// A manager filters the keys that it sees, and learns nothing of others.
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(filtered(`true`), `200 {"keys":[{"id":"token_2"}],"next_page_uri":null}`),
		r(filtered(`obj.owner_id == "service_1"`), `200 {"keys":[],"next_page_uri":null}`),
	)

	// A revoked key and the keys of a deleted service user are gone.
	s.by = store.Local
	s.run(
		r(`DELETE /service_users/service_1`, `204`),
		r(filtered(`obj.owner_id == "service_1" || obj.id == "token_3"`), `200 {"keys":[]}`),
	)
}

// A filter reads the keys in several transactions, and stops when the page is full.
func TestFilterManyKeys(t *testing.T) {
	const keys = 3 * store.FilteredAtOnce
	var calls int
	all := func(before string, limit int, _ bool) (list []store.Token, more bool, err error) {
		calls++
		last := keys // the newest
		if before != "" {
			fmt.Sscanf(before, "token_%d", &last)
			last--
		}
		for n := last; n > max(last-limit, 0); n-- {
			list = append(list, store.Token{ID: fmt.Sprintf("token_%04d", n)})
		}
		return list, last > limit, nil
	}
	for _, row := range []struct {
		want  string // the one that fits, "" for none
		from  string
		calls int
	}{
		{"token_1500", "", 3}, // the others might fit as well
		{"token_0001", "", 3},
		{"token_0001", "token_0501", 1},
		{"", "", 3},
	} {
		calls = 0
		fits := func(k *store.Token) (bool, error) { return k.ID == row.want, nil }
		list, more, err := filtered(all, fits)(row.from, 1, false)
		got := ""
		if len(list) > 0 {
			got = list[0].ID
		}
		if err != nil || len(list) > 1 || got != row.want || more || calls != row.calls {
			t.Errorf("%+v: got %v, more %v, %v after %d calls", row, list, more, err, calls)
		}
	}
	calls = 0
	every := func(*store.Token) (bool, error) { return true, nil }
	if list, more, err := filtered(all, every)("", 1, false); err != nil || len(list) != 1 || !more || calls != 1 {
		t.Errorf("every key fits: got %v, more %v, %v after %d calls", list, more, err, calls)
	}
}

// Without owner_id a key is the caller's own, as in the ngrok API.
func TestOwnAPIKey(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"automation","role":"admin"}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"lead","role":"manager","teams":["ops"]}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"gone"}`, `201 {"id":"service_3"}`),
		r(`DELETE /service_users/service_3`, `204`),
	)
	as := func(user, secret string) {
		t.Helper()
		p, why := s.login(user, secret)
		by, err := s.api.ServiceUserActor(p)
		if err != nil {
			t.Fatalf("%s: got %v, %v", user, why, err)
		}
		s.by = by
	}
	as("service_1", "csu_1")
	s.run(
		r(`POST /api_keys {}`, `201 {"owner_id":"service_1","token":"csu_4"}`),
		r(`POST /api_keys`, `201 {"owner_id":"service_1"}`),
		r(`POST /api_keys {"owner_id":null,"description":"d"}`, `201 {"owner_id":"service_1","description":"d"}`, `Ngrok-Version: 2`),
		r(`POST /api_keys {"owner_id":""}`, `201 {"owner_id":"service_1"}`),
		r(`POST /api_keys {"owner_id":"service_2"}`, `201 {"owner_id":"service_2"}`),
		r(`POST /api_keys {"owner_id":"service_3"}`, `404 ERR_NOT_FOUND there is no service user "service_3"`), // deleted
		r(`POST /api_keys {"owner_id":"automation"}`, `400 ERR_INVALID_VALUE [owner_id] must be the id of the service user that the key is for, service_…; only a caller that is a service user can leave it out`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_4": access.NoRule})

	// A manager cannot change itself, and a person and the local door are no service users.
	as("service_2", "csu_2")
	s.run(r(`POST /api_keys {}`, `403 ERR_NGROK_4111 a manager cannot change itself`))
	for _, by := range []store.Actor{store.Local, HumanAdmin("carol"), s.api.HumanManager("carol", []string{"ops"}, nil)} {
		s.by = by
		s.run(
			r(`POST /api_keys {}`, `400 ERR_INVALID_VALUE [owner_id] must be the id of the service user that the key is for, service_…; only a caller that is a service user can leave it out`),
			r(`POST /api_keys`, `400 ERR_INVALID_VALUE [owner_id]`),
		)
	}
	s.by = store.Local
	s.run(
		r(`GET /service_users/service_2/tokens`, `200 {"tokens":[{"id":"token_8"},{"id":"token_2"}]}`),
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{},{},{},{"id":"token_4"},{"id":"token_1"}]}`),
	)
}
