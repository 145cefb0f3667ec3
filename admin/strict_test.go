package admin

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// A body says exactly one thing, or it is refused with the name of the field.
func TestStrictJSON(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"a","create_token":false}`, `201`),
		r(`POST /service_users/service_1/tokens {}`, `201`),
		r(`POST /permission_groups {"name":"g","rules":["allow GET /"]}`, `201`),
	)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	fmt.Fprint(w, `{"name":"x"}`)
	w.Close()

	// Faults of the document, which are the same for every resource.
	for _, target := range []string{
		"POST /service_users", "PATCH /service_users/service_1", "POST /service_users/service_1/tokens", "PATCH /service_users/service_1/tokens/token_1",
		"POST /service_users/service_1/tokens/token_1/refresh", "POST /permission_groups", "PATCH /permission_groups/group_1", "POST /permission_groups/group_1/rules",
		"PUT /permission_groups/group_1/members/service_1", "POST /bot_users", "PATCH /bot_users/service_1", "POST /api_keys", "PATCH /api_keys/token_1",
	} {
		s.run(
			r(target+` {"nmae":"x"}`, `400 ERR_NGROK_214 [nmae] there is no such field`),
			r(target+` {"":"x"}`, `400 ERR_NGROK_214 there is no such field`),
			r(target+` {"a/b~c":"x"}`, `400 ERR_NGROK_214 [a/b~c] there is no such field`),
			r(target+` {"operation_id":"x"}`, `400 ERR_NGROK_214`),
			r(target+` {"NAME":"x"}`, `400 ERR_NGROK_214 [NAME]`),
			r(target+` {"Effect":"x"}`, `400 ERR_NGROK_214 [Effect]`),
			r(target+` {"name ":"x"}`, `400 ERR_NGROK_214 [name ]`),
			r(target+` {"token":"x"}`, `400 ERR_NGROK_214 [token]`),
			r(target+` {"hash":"x"}`, `400 ERR_NGROK_214 [hash]`),
			r(target+` {"version":9}`, `400 ERR_NGROK_214 [version]`),
			r(target+` null`, `400 ERR_NGROK_213 the body must be a JSON object`),
			r(target+`  null `, `400 ERR_NGROK_213 the body must be a JSON object`),
			r(target+` []`, `400 ERR_INVALID_VALUE the body must not be a JSON array`),
			r(target+` [{}]`, `400 ERR_INVALID_VALUE the body must not be a JSON array`),
			r(target+` 7`, `400 ERR_INVALID_VALUE the body must not be a JSON number`),
			r(target+` true`, `400 ERR_INVALID_VALUE the body must not be a JSON boolean`),
			r(target+` {} {}`, `400 ERR_NGROK_213 the body is not valid JSON: `),
			r(target+` {}x`, `400 ERR_NGROK_213 the body is not valid JSON: `),
			r(target+` {}]`, `400 ERR_NGROK_213`),
			r(target+` {},`, `400 ERR_NGROK_213`),
			r(target+` {`, `400 ERR_NGROK_213`),
			r(target+` {"`, `400 ERR_NGROK_213`),
			r(target+` {'name':"x"}`, `400 ERR_NGROK_213`),
			r(target+` {name:"x"}`, `400 ERR_NGROK_213`),
			r(target+` {/**/}`, `400 ERR_NGROK_213`),
			r(target+" \ufeff{}", `400 ERR_NGROK_213`),
			r(target+"  \x00", `400 ERR_NGROK_213`),
			r(target+"  \u00a0null", `400 ERR_NGROK_213`),
			r(target+`  `, `400 ERR_NGROK_213`),
			r(target+` name=x`, `415 ERR_NGROK_210`, "Content-Type: application/x-www-form-urlencoded"),
			r(target+` {}`, `415 ERR_NGROK_216 the Content-Type is missing`, "Content-Type:"),
			r(target+` {}`, `415 ERR_NGROK_210 the Content-Type must be application/json`, "Content-Type: text/plain"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: application/json-patch+json"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: application/jsonx"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: text/json"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: multipart/form-data; boundary=application/json"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: application/json;;"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: ;"),
			r(target+` {}`, `415 ERR_NGROK_210`, "Content-Type: application/json, text/plain"),
			r(target+` {}`, `415 ERR_CONTENT_ENCODING`, "Content-Type: application/json", "Content-Encoding: br"),
			r(target+" "+zipped.String(), `415 ERR_CONTENT_ENCODING`, "Content-Type: application/json", "Content-Encoding: gzip"),
			r(target+" "+strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000), `400 ERR_INVALID_VALUE the body must not`),
			r(target+` {"x":`+strings.Repeat(`{"x":`, 20_000)+`1`+strings.Repeat("}", 20_001), `400 ERR_NGROK_214 [x]`),
			r(target+`?dry_run=1 {}`, `400 ERR_NGROK_231 [dry_run] there is no such query parameter`),
			r(target+`?%zz {}`, `400 ERR_NGROK_230`),
		)
	}
	for _, target := range []string{"POST /service_users", "PATCH /permission_groups/group_1", "PUT /permission_groups/group_1/members/service_1"} {
		s.run(
			r(target+" "+strings.Repeat(" ", maxBody+1), `413 ERR_BODY_TOO_LARGE the body is larger than 1048576 bytes`),
			r(target+` {"x":"`+strings.Repeat("y", maxBody-7)+`"}`, `413 ERR_BODY_TOO_LARGE`),
			r(target+` {"x":"`+strings.Repeat("y", maxBody-8)+`"}`, `400 ERR_NGROK_214 [x]`),
		)
	}
	const user, token, group, rules = "PATCH /service_users/service_1 ", "PATCH /service_users/service_1/tokens/token_1 ", "PATCH /permission_groups/group_1 ", "POST /permission_groups/group_1/rules "
	s.run(
		r(`POST /service_users "allow GET /"`, `400 ERR_INVALID_VALUE the body must not be a JSON string`),

		r(user+`{"name":"x","name":"y"}`, `400 ERR_NGROK_213 [name] the field appears in the body twice`),
		r(user+`{"name":"x","n\u0061me":"y"}`, `400 ERR_NGROK_213 [name] the field appears`),
		r(user+`{"labels":{"k":"1","k":"2"}}`, `400 ERR_NGROK_213 [labels.k] the field appears`),
		r(group+`{"rules":["allow GET /x",{"effect":"allow","path":"/","path":"/y"}]}`, `400 ERR_NGROK_213 [rules.1.path] the field appears`),
		r(user+`{"name":"x","NAME":"y"}`, `400 ERR_NGROK_214 [NAME]`),
		r(user+"{\"name\":\"\xff\"}", `400 ERR_NGROK_213 the body is not valid JSON: invalid UTF-8`),
		r(user+"{\"\xff\":1}", `400 ERR_NGROK_213`),
		r(user+"{\"name\":\"\xc0\xaf\"}", `400 ERR_NGROK_213`),
		r(user+"{\"name\":\"\xed\xa0\x80\"}", `400 ERR_NGROK_213`),
		r(user+`{"name":"\ud800"}`, `400 ERR_NGROK_213`),
		r(user+`{"name":"\udc00\ud800"}`, `400 ERR_NGROK_213`),
		r(user+"{\"name\":\"a\nb\"}", `400 ERR_NGROK_213`),
		r(user+`{"name":"\u0000"}`, `400 ERR_INVALID_VALUE [name] must not hold the control character U+0000`),
		r(user+`{"name":"a\u202eb"}`, `400 ERR_INVALID_VALUE [name] must not hold the control character U+202E`),
		r(user+`{"name":" a"}`, `400 ERR_INVALID_VALUE [name]`),
		r(user+`{"name":7}`, `400 ERR_INVALID_VALUE [name] must not be a JSON number`),
		r(user+`{"name":true}`, `400 ERR_INVALID_VALUE [name] must not be a JSON boolean`),
		r(user+`{"name":["x"]}`, `400 ERR_INVALID_VALUE [name] must not be a JSON array`),
		r(user+`{"name":{}}`, `400 ERR_INVALID_VALUE [name] must not be a JSON object`),
		r(user+`{"active":null}`, `400 ERR_INVALID_VALUE [active] must be true or false, not null`),
		r(user+`{"active":"true"}`, `400 ERR_INVALID_VALUE [active] must not be a JSON string`),
		r(user+`{"active":1}`, `400 ERR_INVALID_VALUE [active] must not be a JSON number`),
		r(`POST /service_users {"name":"x","create_token":null}`, `400 ERR_INVALID_VALUE [create_token] must be true or false, not null`),
		r(`POST /service_users {"name":"x","create_token":0}`, `400 ERR_INVALID_VALUE [create_token]`),
		r(user+`{"teams":"x"}`, `400 ERR_INVALID_VALUE [teams] must not be a JSON string`),
		r(user+`{"teams":["x",1e3]}`, `400 ERR_INVALID_VALUE [teams.1] must not be a JSON number`),
		r(user+`{"teams":{}}`, `400 ERR_INVALID_VALUE [teams]`),
		r(user+`{"teams":["a,b"]}`, `400 ERR_INVALID_VALUE [teams] "a,b"`),
		r(user+`{"labels":["x"]}`, `400 ERR_INVALID_VALUE [labels] must not be a JSON array`),
		r(user+`{"labels":{"a":{}}}`, `400 ERR_INVALID_VALUE [labels.a] must not be a JSON object`),
		r(user+`{"labels":{"a.b/c":7}}`, `400 ERR_INVALID_VALUE [labels.a.b/c]`),
		r(user+`{"labels":{"":"x"}}`, `400 ERR_INVALID_VALUE [labels] the key ""`),
		r(user+`{"allowed_ips":["10.0.0.0/33"]}`, `400 ERR_INVALID_VALUE [allowed_ips]`),
		r(user+`{"allowed_ips":[7]}`, `400 ERR_INVALID_VALUE [allowed_ips.0]`),
		r(user+`{"role":"root"}`, `400 ERR_INVALID_VALUE [role] "root" is none of admin, manager, member`),
		r(user+`{"role":0}`, `400 ERR_INVALID_VALUE [role] must not be a JSON number`),
		r(user+`{"role":"Admin"}`, `400 ERR_INVALID_VALUE [role]`),
		r(user+`{"permission_groups":"group_1"}`, `400 ERR_INVALID_VALUE [permission_groups] must not be a JSON string`),
		r(user+`{"permission_groups":["g"]}`, `400 ERR_INVALID_VALUE [permission_groups]`),
		r(user+`{"expires_at":1893456000}`, `400 ERR_INVALID_VALUE [expires_at] must not be a JSON number`),
		r(user+`{"expires_at":"tomorrow"}`, `400 ERR_INVALID_VALUE [expires_at] "tomorrow" is not a time such as 2030-01-31T12:00:00Z`),
		r(user+`{"expires_at":"2030-01-31"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"2030-02-30T00:00:00Z"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"2030-01-31T12:00:00"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"t+1s"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"0001-01-01T00:00:00Z"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"0001-01-01T00:00:00.5Z"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"0001-01-01T05:00:00+05:00"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"1970-01-01T00:00:00Z"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"9999-12-31T23:59:59-01:00"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(user+`{"expires_at":"2030-01-31T13:00:00.9+01:00"}`, `200 {"expires_at":"t+128768155s"}`),
		r(user+`{"expires_at":null}`, `200 {"expires_at":null}`),

		r(token+`{"not_before":"0001-01-01T00:00:00Z"}`, `400 ERR_INVALID_VALUE [not_before]`),
		r(token+`{"not_before":"1970-01-01T00:00:00Z"}`, `400 ERR_INVALID_VALUE [not_before]`),
		r(token+`{"not_before":"9999-12-31T23:59:59-01:00"}`, `400 ERR_INVALID_VALUE [not_before]`),
		r(token+`{"not_before":false}`, `400 ERR_INVALID_VALUE [not_before] must not be a JSON boolean`),
		r(token+`{"expires_at":"t+900s","not_before":"t+900s"}`, `400 ERR_INVALID_VALUE [not_before] must lie before expires_at`),
		r(token+`{"ttl":"90d","expires_at":"t+900s"}`, `400 ERR_INVALID_VALUE [ttl] give ttl or expires_at, not both`),
		r(token+`{"ttl":"90d","expires_at":""}`, `400 ERR_INVALID_VALUE [ttl] give ttl or expires_at, not both`),
		r(token+`{"ttl":"0d"}`, `400 ERR_INVALID_VALUE [ttl] "0d" is not a duration`),
		r(token+`{"ttl":"999ms"}`, `400 ERR_INVALID_VALUE [ttl] "999ms" is not a duration`),
		r(token+`{"ttl":"-1h"}`, `400 ERR_INVALID_VALUE [ttl]`),
		r(token+`{"ttl":""}`, `400 ERR_INVALID_VALUE [ttl]`),
		r(token+`{"ttl":90}`, `400 ERR_INVALID_VALUE [ttl] must not be a JSON number`),
		r(token+`{"metadata":{"a":1}}`, `400 ERR_INVALID_VALUE [metadata] must not be a JSON object`),
		r(token+`{"metadata":"`+strings.Repeat("x", 4097)+`"}`, `400 ERR_INVALID_VALUE [metadata]`),
		r(token+`{"state":"active"}`, `400 ERR_NGROK_214 [state]`),
		r(token+`{"name":"x"}`, `400 ERR_NGROK_214 [name]`),
		r(token+`{"permission_groups":["group_0"]}`, `400 ERR_INVALID_VALUE [permission_groups] there is no permission group "group_0"`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":"soon"}`, `400 ERR_INVALID_VALUE [grace] "soon" is not a duration`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":24}`, `400 ERR_INVALID_VALUE [grace] must not be a JSON number`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":"-1h"}`, `400 ERR_INVALID_VALUE [grace]`),

		r(group+`{"name":"a/b"}`, `400 ERR_INVALID_VALUE [name]`),
		r(group+`{"mode":"off"}`, `400 ERR_INVALID_VALUE [mode] "off" is neither enforce nor observe`),
		r(group+`{"mode":true}`, `400 ERR_INVALID_VALUE [mode] must not be a JSON boolean`),
		r(group+`{"member_condition":true}`, `400 ERR_INVALID_VALUE [member_condition] must not be a JSON boolean`),
		r(group+`{"member_condition":"user.nam == 'a'"}`, `400 ERR_INVALID_VALUE [member_condition] condition "user.nam == 'a'": at character 5: undefined field 'nam'`),
		r(group+`{"member_count":1}`, `400 ERR_NGROK_214 [member_count]`),
		r(group+`{"rules":"allow GET /"}`, `400 ERR_INVALID_VALUE [rules] must not be a JSON string`),
		r(group+`{"rules":[7]}`, `400 ERR_INVALID_VALUE [rules.0] must not be a JSON number`),
		r(group+`{"rules":["allow GET /",["deny"]]}`, `400 ERR_INVALID_VALUE [rules.1] must not be a JSON array`),
		r(group+`{"rules":[{"effect":"allow","methods":"GET","path":"/"}]}`, `400 ERR_INVALID_VALUE [rules.0.methods] must not be a JSON string`),
		r(group+`{"rules":[{"effect":"allow","methods":["GET",7],"path":"/"}]}`, `400 ERR_INVALID_VALUE [rules.0.methods.1] must not be a JSON number`),
		r(group+`{"rules":["allow GET /",{"effect":"allow","verbs":["GET"],"path":"/"}]}`, `400 ERR_NGROK_214 [rules.1.verbs] there is no such field`),
		r(group+`{"rules":[{"id":"rule_1","effect":"allow","methods":["GET"],"path":"/"}]}`, `400 ERR_NGROK_214 [rules.0.id]`),
		r(group+`{"rules":[{"text":"allow GET /"}]}`, `400 ERR_NGROK_214 [rules.0.text]`),
		r(group+`{"rules":["allow GET /","allow GET v1"]}`, `400 ERR_INVALID_VALUE [rules.1] rule "allow GET v1"`),
		r(group+`{"rules":[{"effect":"allow","methods":["get"],"path":"/"}]}`, `400 ERR_INVALID_VALUE [rules.0] method "get": methods are written in upper case`),
		r(group+`{"rules":[null]}`, `400 ERR_INVALID_VALUE [rules.0]`),
		r(group+`{"rules":[""]}`, `400 ERR_INVALID_VALUE [rules.0] effect ""`),
		r(rules+`""`, `400 ERR_INVALID_VALUE effect ""`),
		r(rules+`"allow GET"`, `400 ERR_INVALID_VALUE rule "allow GET"`),
		r(rules+`"permit GET /"`, `400 ERR_INVALID_VALUE rule "permit GET /": effect "permit"`),
		r(rules+`{}`, `400 ERR_INVALID_VALUE effect ""`),
		r(`POST /permission_groups/group_1/rules`, `400 ERR_INVALID_VALUE effect ""`),
		r(rules+`{"effect":"deny","methods":["*"],"path":"v1"}`, `400 ERR_INVALID_VALUE`),
		r(rules+`{"effect":"deny","methods":["*"],"path":"/","when":"user.nam == 'a'"}`, `400 ERR_INVALID_VALUE condition "user.nam == 'a'": at character 5: undefined field 'nam'`),
		r(rules+`{"effect":"deny","methods":["*"],"path":"/","when":true}`, `400 ERR_INVALID_VALUE [when] must not be a JSON boolean`),
		r(rules+`{"effect":"deny","methods":["*"],"path":"/","host":7}`, `400 ERR_INVALID_VALUE [host] must not be a JSON number`),
		r(rules+`"allow GET /x" "allow GET /y"`, `400 ERR_NGROK_213`),

		// Nothing of all that changed anything but the time that was set and taken away.
		r(`GET /service_users/service_1`, `200 {"name":"a","etag":"\"3\""}`),
		r(`GET /service_users`, `200 {"service_users":[{"name":"a"}]}`),
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{"id":"token_1","etag":"\"1\""}]}`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"g","etag":"\"1\"","rules":[{"id":"rule_1"}]}]}`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[]}`),

		// What is fine.
		r(user+` {"name" :"b"} `, `200 {"name":"b"}`, "Content-Type: application/json; charset=utf-8"),
		r(user+`{"name":"c"}`, `200 {"name":"c"}`, "Content-Type: Application/JSON"),
		r(user+`{"name":"\ud83d\ude00"}`, `200 {"name":"😀"}`),
		r(user+`{"name":"<script>&{{7}}{http.request.host}"}`, `200 {"name":"<script>&{{7}}{http.request.host}"}`),
		r(user+strings.Repeat(" ", maxBody-12)+`{"name":"d"}`, `200 {"name":"d"}`),
		r(`PUT /permission_groups/group_1/members/service_1 {}`, `204`),
		r(`PUT /permission_groups/group_1/members/service_1`, `204`, "Content-Type: text/plain"),
		r(token+`{"metadata":"{\"a\":\u0031}\n"}`, `200 {"metadata":"{\"a\":1}\n"}`),
	)
}

// The parameters of lists: each at most once, each with a value that counts.
func TestStrictQuery(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a","teams":["x"]}`)
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /"]}`)
	for uri, prefix := range map[string]string{
		"/service_users": "service", "/service_users/service_1/tokens": "token", "/permission_groups": "group", "/permission_groups/group_1/members": "service",
		"/bot_users": "service", "/api_keys": "token",
	} {
		other := map[string]string{"service": "group_1", "token": "service_1", "group": "token_1"}[prefix]
		for query, want := range map[string]string{
			"": "200", "?": "200", "&": "404", "?&": "200", "?limit=1": "200", "?limit=100": "200", "?limit=%31": "200", "?%6cimit=1": "200",
			"?before_id=" + prefix + "_0": "200", "?limit=1&before_id=" + prefix + "_1": "200", "?limit=1&&": "200",
			"?limit=0": "400 ERR_NGROK_233 [limit] must lie between 1 and 100", "?limit=101": "400 ERR_NGROK_233 [limit]", "?limit=-1": "400 ERR_NGROK_233 [limit]", "?limit=1000000": "400 ERR_NGROK_233 [limit]",
			"?limit=abc": "400 ERR_NGROK_244 [limit] is not a number", "?limit=1e2": "400 ERR_NGROK_244 [limit]", "?limit=1.0": "400 ERR_NGROK_244 [limit]", "?limit=0x10": "400 ERR_NGROK_244 [limit]", "?limit=1_0": "400 ERR_NGROK_244 [limit]",
			"?limit=": "400 ERR_NGROK_230 [limit] is empty", "?limit": "400 ERR_NGROK_230 [limit]", "?limit=+5": "400 ERR_NGROK_244 [limit]", "?limit=%2B5": "400 ERR_NGROK_244 [limit]", "?limit=%205": "400 ERR_NGROK_244 [limit]",
			"?limit=007": "400 ERR_NGROK_244 [limit]", "?limit=99999999999999999999": "400 ERR_NGROK_244 [limit]", "?limit=%D9%A1": "400 ERR_NGROK_244 [limit]", "?limit=null": "400 ERR_NGROK_244 [limit]",
			"?limit=1&limit=2": "400 ERR_NGROK_232 [limit] appears in the query more than once", "?limit=1&limit=1": "400 ERR_NGROK_232 [limit]",
			"?before_id=" + other: "400 ERR_NGROK_227 [before_id] is not an id that begins with " + prefix + "_", "?before_id=x": "400 ERR_NGROK_227 [before_id]", "?before_id=" + prefix + "_": "400 ERR_NGROK_227 [before_id]",
			"?before_id=" + prefix + "_1x": "400 ERR_NGROK_227 [before_id]", "?before_id=%00": "400 ERR_NGROK_227 [before_id]", "?before_id=": "400 ERR_NGROK_230 [before_id] is empty", "?before_id=" + strings.Repeat("x", 8<<10): "400 ERR_NGROK_227 [before_id]",
			"?before_id='%20OR%201=1%20--": "400 ERR_NGROK_227 [before_id]",
			"?Limit=1":                     "400 ERR_NGROK_231 [Limit] there is no such query parameter", "?page=2": "400 ERR_NGROK_231 [page]", "?limit[]=1": "400 ERR_NGROK_231 [limit[]]", "?=1": "400 ERR_NGROK_231", "?x": "400 ERR_NGROK_231 [x]", "?operation_id=x": "400 ERR_NGROK_231",
			"?<script>": "400 ERR_NGROK_231 [<script>]", "?%ff=1": "400 ERR_NGROK_231 [\ufffd]",
			"?limit=%": "400 ERR_NGROK_230 the query is malformed", "?limit=%zz": "400 ERR_NGROK_230", "?limit=1;before_id=x": "400 ERR_NGROK_230", "?%=1": "400 ERR_NGROK_230",
		} {
			s.run(r("GET "+uri+query, want))
			if !strings.HasPrefix(want, "200") {
				s.run(r("HEAD "+uri+query, want[:3]))
			}
		}
	}
	s.run(
		r(`GET /service_users?name=a`, `200 {"service_users":[{"name":"a"}]}`),
		r(`GET /service_users?name=A`, `200 {"service_users":[]}`),
		r(`GET /service_users?name=%25`, `200 {"service_users":[]}`),
		r(`GET /service_users?name=%00`, `200 {"service_users":[]}`),
		r(`GET /service_users?name=`+url.QueryEscape(`a' OR ''='`), `200 {"service_users":[]}`),
		r(`GET /service_users?name=`, `400 ERR_NGROK_230 [name] is empty; leave it out or give it a value`),
		r(`GET /permission_groups?name=`, `400 ERR_NGROK_230 [name]`),
		r(`GET /permission_groups?name=g`, `200 {"permission_groups":[{"name":"g"}]}`),
		r(`GET /service_users/service_1/tokens?name=a`, `400 ERR_NGROK_231 [name]`),
		r(`GET /permission_groups/group_1/rules?limit=1`, `400 ERR_NGROK_231 [limit]`),
		r(`GET /service_users/service_1?x=1`, `400 ERR_NGROK_231 [x]`),
		r(`DELETE /service_users/service_1?force=1`, `400 ERR_NGROK_231 [force]`),
		r(`DELETE /service_users/service_1?unless_used=24h`, `400 ERR_NGROK_231 [unless_used]`),
		r(`DELETE /permission_groups/group_1/rules/rule_1?x`, `400 ERR_NGROK_231 [x]`),
		r(`GET /service_users`, `200 {"service_users":[{"id":"service_1"}]}`),
	)
}

// If-Match on every update and delete of an object that has an ETag.
func TestIfMatch(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	s.must(`POST /permission_groups {"name":"g"}`)
	s.must(`POST /bot_users {"name":"b","create_token":true}`)
	for _, object := range []struct{ uri, field string }{
		{"/service_users/service_1", "description"}, {"/service_users/service_1/tokens/token_1", "description"}, {"/permission_groups/group_1", "description"},
		{"/bot_users/service_2", "description"}, {"/api_keys/token_2", "description"},
	} {
		update := func(v int) string { return fmt.Sprintf(`PATCH %s {%q:"%d"}`, object.uri, object.field, v) }
		s.run(
			r(update(1), `200 {"etag":"\"2\""}`, `If-Match: "1"`),
			r(update(2), `200 {"etag":"\"3\""}`, `If-Match: *`),
			r(update(3), `200 {"etag":"\"4\""}`),
			r(update(4), `412 ERR_CHANGED it was changed since it was read`, `If-Match: "3"`),
			r(update(4), `412 ERR_CHANGED it was changed since it was read`, `If-Match: "5"`),
			r(update(3), `412 ERR_CHANGED it was changed since it was read`, `If-Match: "1"`), // though it would change nothing
			r(`PATCH `+object.uri+` {}`, `412 ERR_CHANGED`, `If-Match: "1"`),
			r(`PATCH `+object.uri+` {}`, `200 {"etag":"\"4\""}`, `If-Match: "4"`),
		)
		for _, garbage := range []string{`4`, `W/"4"`, `"4`, `4"`, `""4""`, `"04"`, `"+4"`, `" 4"`, `"-4"`, `"0"`, `""`, `"x"`, `"4","4"`, `"3", "4"`, `"*"`, `* ` + `x`, `"99999999999999999999"`, `x`, ``} {
			s.run(
				r(update(5), `412 ERR_CHANGED If-Match must be the ETag of an earlier answer`, "If-Match: "+garbage),
				r(`GET `+object.uri, `200 {"etag":"\"4\""}`, "If-Match: "+garbage), // it guards changes
			)
		}
		s.run(r(update(5), `412 ERR_CHANGED If-Match must be`, `If-Match: "4"`, `If-Match: "3"`))
		if got, want := s.do(update(6), `If-Match: "4"`).header.Get("ETag"), `"5"`; got != want {
			t.Errorf("ETag after an update of %s: got %s, want %s", object.uri, got, want)
		}
	}
	s.run(
		r(`PATCH /service_users/service_0 {}`, `404 ERR_NOT_FOUND`, `If-Match: "1"`),
		r(`DELETE /service_users/service_1`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`DELETE /service_users/service_1`, `412 ERR_CHANGED`, `If-Match: x`),
		r(`DELETE /service_users/service_1`, `204`, `If-Match: "5"`),
		r(`DELETE /api_keys/token_2`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`DELETE /api_keys/token_2`, `204`, `If-Match: "5"`),
		r(`DELETE /bot_users/service_2`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`DELETE /bot_users/service_2`, `204`, `If-Match: "5"`),
		r(`DELETE /permission_groups/group_1`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`DELETE /permission_groups/group_1`, `204`, `If-Match: "5"`),
	)
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90d": 90 * day, "1d": day, "0d": 0, "1d12h": 36 * time.Hour, "1d1h1m1s1ms": day + time.Hour + time.Minute + time.Second + time.Millisecond, "36h": 36 * time.Hour,
		"1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "0": 0, "0s": 0, "300ms": 300 * time.Millisecond, "+1h": time.Hour, "65535d": 65535 * day, "007d": 7 * day,
		"+1d": day, "1.5d": 36 * time.Hour, "1d2d": 3 * day, "12h1d": 36 * time.Hour, "65536d": 65536 * day, // as Caddy reads them
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "d", "90", "90D", "1 d", " 1d", "1d ", "1d 2h", "-1d", "-1h", "1d-1h", "1d-25h", "1,5d", "1e3d", "0x10d", "1_0d", "1dd", "1d0", "dd", "d1h", "1day", "1days", "2w", "1y",
		"106752d", "99999999999d", "65535d2000000h", "9999999999999h", "65535d2562047h47m16.854775807s", "١d", "1d\x00", "NaN", "infinity", "90d\n",
	} {
		if got, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q is not a duration such as", text)) {
			t.Errorf("%q: got %v, %v, want an error that quotes it", text, got, err)
		}
	}
}
