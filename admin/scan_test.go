package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// digestOf is what somebody asks with who has found a secret, by the name that
// rows have for it.
func (s *server) digestOf(secret string) string {
	s.t.Helper()
	sum := sha256.Sum256([]byte(s.resolve(secret)))
	return hex.EncodeToString(sum[:])
}

func TestFindTokens(t *testing.T) {
	peppers, err := access.ParsePeppers(strings.Repeat("p", 32))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, store.Options{Peppers: peppers})
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"b","active":false}`, `201 {"id":"service_2","token_id":"token_2","token":"csu_2"}`),
		r(`POST /service_users/service_1/tokens {"ttl":"1s"}`, `201 {"id":"token_3","token":"csu_3"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_4","token":"csu_4"}`),
		r(`POST /service_users/service_1/tokens/token_4/refresh {"grace":"1h"}`, `201 {"id":"token_5","token":"csu_5"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_6","token":"csu_6"}`),
		r(`DELETE /service_users/service_1/tokens/token_6`, `204`),
		r(`POST /service_users {"name":"gone"}`, `201 {"id":"service_3","token":"csu_7"}`),
		r(`DELETE /service_users/service_3`, `204`),
	)
	known := func(secret, token, user, name, state string) string {
		return fmt.Sprintf(`{"digest":"%s","token_id":"%s","service_user_id":"%s","name":"%s","state":"%s","uri":"/service_users/%[3]s/tokens/%[2]s"}`,
			s.digestOf(secret), token, user, name, state)
	}
	ask := func(secrets ...string) string {
		var list []string
		for _, secret := range secrets {
			list = append(list, `"`+s.digestOf(secret)+`"`)
		}
		return `POST /service_users/find_tokens {"digests":[` + strings.Join(list, ",") + `]}`
	}
	const none = `200 = {"tokens":[]}`
	unknown := strings.Repeat("0", 64)
	s.run(
		r(ask("csu_1"), `200 = {"tokens":[`+known("csu_1", "token_1", "service_1", "a", "active")+`]}`),
		r(ask("csu_6", "csu_5", "csu_4", "csu_3", "csu_2"), `200 = {"tokens":[`+strings.Join([]string{
			known("csu_6", "token_6", "service_1", "a", "revoked"), known("csu_5", "token_5", "service_1", "a", "active"),
			known("csu_4", "token_4", "service_1", "a", "retiring"), known("csu_3", "token_3", "service_1", "a", "expired"),
			known("csu_2", "token_2", "service_2", "b", "active"),
		}, ",")+`]}`),
		r(`POST /service_users/find_tokens {"digests":["`+strings.ToUpper(s.digestOf("csu_1"))+`"]}`, `200 {"tokens":[{"name":"a"}]}`),
		r(`POST /service_users/find_tokens/ {"digests":["`+unknown+`"]}`, none),
		r(ask("csu_7"), none), // its service user is deleted
		r(`POST /service_users/find_tokens {"digests":[]}`, none),
		r(`POST /service_users/find_tokens {}`, none),
		r(`POST /service_users/find_tokens {"digests":[`+strings.Repeat(`"`+unknown+`",`, 999)+`"`+s.digestOf("csu_1")+`"]}`, `200 {"tokens":[{"name":"a"}]}`),

		r(`POST /service_users/find_tokens {"digests":[`+strings.Repeat(`"`+unknown+`",`, 1000)+`"`+unknown+`"]}`, `400 ERR_INVALID_VALUE [digests] holds 1001 digests, at most 1000`),
		r(`POST /service_users/find_tokens {"digests":["`+unknown+`",""]}`, `400 ERR_INVALID_VALUE [digests.1] is not a SHA-256 in 64 hexadecimal digits`),
		r(`POST /service_users/find_tokens {"digests":["`+unknown[2:]+`"]}`, `400 ERR_INVALID_VALUE [digests.0]`),
		r(`POST /service_users/find_tokens {"digests":["`+unknown+`00"]}`, `400 ERR_INVALID_VALUE [digests.0]`),
		r(`POST /service_users/find_tokens {"digests":["`+strings.Repeat("g", 64)+`"]}`, `400 ERR_INVALID_VALUE [digests.0]`),
		r(`POST /service_users/find_tokens {"digests":["secret"]}`, `400 ERR_INVALID_VALUE [digests.0]`),
		r(`POST /service_users/find_tokens {"digests":"`+unknown+`"}`, `400 ERR_INVALID_VALUE [digests]`),
		r(`POST /service_users/find_tokens {"secrets":[]}`, `400 ERR_NGROK_214 [secrets]`),
		r(`POST /service_users/find_tokens?x=1 {}`, `400 ERR_NGROK_231 [x]`),
		r(`GET /service_users/find_tokens`, `404 ERR_NOT_FOUND`),
	)

	// What stands in a stolen database is no digest of a secret.
	hash, _ := peppers.Hash(s.resolve("csu_1"))
	s.run(r(`POST /service_users/find_tokens {"digests":["`+hex.EncodeToString(hash[:])+`"]}`, none))
}

// TestFindTokensOfAManager: it learns whose a secret is only when it sees the
// service user.
func TestFindTokensOfAManager(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"in","teams":["finance","ops"]}`, `201 {"token":"csu_1"}`),
		r(`POST /service_users {"name":"out","teams":["ops"]}`, `201 {"token":"csu_2"}`),
		r(`POST /service_users {"name":"none"}`, `201 {"token":"csu_3"}`),
	)
	s.by = s.api.HumanManager("carol", []string{"finance"}, nil)
	all := `{"digests":["` + s.digestOf("csu_3") + `","` + s.digestOf("csu_2") + `","` + s.digestOf("csu_1") + `"]}`
	s.run(r(`POST /service_users/find_tokens `+all, `200 {"tokens":[{"digest":"`+s.digestOf("csu_1")+`","name":"in"}]}`))
	s.by = HumanAdmin("alice")
	s.run(r(`POST /service_users/find_tokens `+all, `200 {"tokens":[{"name":"none"},{"name":"out"},{"name":"in"}]}`))

	// A store that is gone is no proof that nobody owns it.
	s.store.Close()
	s.run(r(`POST /service_users/find_tokens `+all, `503 ERR_STORE_UNAVAILABLE`))
}

// TestClientStaysAtItsHost: a link in an answer cannot lead the credentials of a
// client anywhere else.
func TestClientStaysAtItsHost(t *testing.T) {
	asked := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer other.Close()
	elsewhere := strings.TrimPrefix(other.URL, "http://")
	for _, link := range []string{"@" + elsewhere + "/", ".example.com/", other.URL, ":1/", ""} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(OperationHeader, "op_0")
			fmt.Fprintf(w, `{"service_users":[],"next_page_uri":%q}`, link)
		}))
		client := &Client{Base: s.URL, Header: http.Header{"Authorization": {"Bearer secret"}}}
		err := All(t.Context(), client, "/service_users", func(l ServiceUserList) Page { return l.Page })
		s.Close()
		want := fmt.Sprintf("%s: answered with the link %q, not as the service-user API does", s.URL, link)
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", link, err, want)
		}
	}
	if asked != 0 {
		t.Errorf("another host: got %d requests, want none", asked)
	}
}
