package admin

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// Every kind of change of many, chosen by ids, by a filter or by users.
func TestBulk(t *testing.T) {
	s := serve(t, store.Options{})
	const bulk = `POST /service_users/bulk `
	s.run(
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/{x}"]}`, `201 {"id":"group_1"}`),
		// A dry run shows no ids and no tokens, since the create makes others.
		r(bulk+`{"do":"create","users":[{"name":"a","token_ttl":"90d"},{"name":"b","teams":["ops"],"create_token":false}],"dry_run":true}`,
			`200 {"do":"create","dry_run":true,"changed":2,"unchanged":0,"service_users":[{"id":"","name":"a","changed":true,"before":null,"after":{"id":"","uri":"","name":"a"}},{"name":"b","after":{"teams":["ops"]}}]}`),
		r(`GET /service_users`, `200 {"service_users":[]}`),
		r(bulk+`{"do":"create","users":[{"name":"a","token_ttl":"90d","owner":"jane@example.com"},{"name":"b","teams":["ops"],"create_token":false},{"name":"c","permission_groups":["group_1"],"labels":{"env":"prod","tier":"1"}}]}`,
			`200 {"dry_run":false,"changed":3,"service_users":[{"id":"service_1","name":"a","token_id":"token_1","token":"csu_1"},{"id":"service_2","name":"b"},{"id":"service_3","after":{"permission_groups":["group_1"]},"token_id":"token_2","token":"csu_2"}]}`),
		r(bulk+`{"do":"create","users":[{"name":"d"}]}`, `200 {"service_users":[{"id":"service_4","name":"d"}]}`, `Ngrok-Version: 2`),
		r(`GET /service_users/service_4/tokens`, `200 {"tokens":[]}`),

		r(bulk+`{"do":"deactivate","ids":["service_1","service_2"],"dry_run":true}`, `200 {"dry_run":true,"changed":2,"service_users":[{"id":"service_1","before":{"active":true},"after":{"active":false}},{"id":"service_2"}]}`),
		r(`GET /service_users?status=inactive`, `200 {"service_users":[]}`),
		// The obstacle to a login is that of each state, also in a dry run.
		r(bulk+`{"do":"deactivate","ids":["service_1"],"dry_run":true}`, `200 {"service_users":[{"before":{"obstacle":null},"after":{"obstacle":"the service user is deactivated"}}]}`),
		r(bulk+`{"do":"create","users":[{"name":"e"},{"name":"f","create_token":false}],"dry_run":true}`, `200 {"service_users":[{"after":{"obstacle":null}},{"after":{"obstacle":"the service user has no token"}}]}`),
		r(bulk+`{"do":"deactivate","ids":["service_1","service_2"]}`, `200 {"do":"deactivate","dry_run":false,"changed":2,"unchanged":0,"service_users":[{"before":{"obstacle":null},"after":{"obstacle":"the service user is deactivated"}},{}]}`),
		r(bulk+`{"do":"deactivate","filter":"obj.name < 'd'"}`, `200 {"changed":1,"unchanged":2}`),
		r(bulk+`{"do":"reactivate","filter":"!obj.active"}`, `200 {"changed":3}`),
		r(bulk+`{"do":"reactivate","filter":"!obj.active"}`, `200 {"changed":0,"unchanged":0,"service_users":[]}`),

		// An update sets fields, and adds and removes entries; labels merge.
		r(bulk+`{"do":"update","ids":["service_1","service_3"],"set":{"owner":"ops@example.com","labels":{"tier":"2","env":null}},"add":{"teams":["finance"],"allowed_ips":["10.0.0.1","10.1.0.0/16"]}}`,
			`200 {"changed":2,"service_users":[{"after":{"owner":"ops@example.com","labels":{"tier":"2"},"teams":["finance"],"allowed_ips":["10.0.0.1/32","10.1.0.0/16"]}},{"after":{"labels":{"tier":"2"},"permission_groups":["group_1"]}}]}`),
		r(bulk+`{"do":"update","ids":["service_1","service_2"],"remove":{"teams":["finance"],"allowed_ips":["10.0.0.1"]},"add":{"permission_groups":["group_1"]}}`,
			`200 {"service_users":[{"after":{"teams":[],"allowed_ips":["10.1.0.0/16"],"permission_groups":["group_1"]}},{"after":{"teams":["ops"],"permission_groups":["group_1"]}}]}`),
		r(bulk+`{"do":"update","ids":["service_1","service_2","service_3"],"set":{"teams":["x","y","z"]},"remove":{"teams":["x"]},"add":{"teams":["w"]}}`,
			`200 {"service_users":[{"after":{"teams":["w","y","z"]}},{"after":{"teams":["w","y","z"]}},{"after":{"teams":["w","y","z"]}}]}`),
		r(bulk+`{"do":"update","filter":"true","set":{"expires_at":"2030-01-31T12:00:00Z","labels":null}}`, `200 {"changed":4}`),
		r(`GET /service_users/service_3`, `200 {"labels":{},"teams":["w","y","z"]}`),

		r(bulk+`{"do":"remove_from_group","filter":"obj.name < 'c'","permission_group":"group_1"}`, `200 {"changed":2}`),
		r(`GET /service_users/service_1`, `200 {"permission_groups":[]}`),
		r(bulk+`{"do":"add_to_group","ids":["service_1","service_3"],"permission_group":"group_1"}`, `200 {"changed":1,"unchanged":1}`),

		r(bulk+`{"do":"delete","filter":"obj.name < 'd'"}`, `200 {"changed":3}`),
		r(bulk+`{"do":"delete","ids":["service_4"],"dry_run":true}`, `200 {"service_users":[{"name":"d","before":{"name":"d"},"after":null}]}`),
		r(bulk+`{"do":"delete","filter":"obj.name < 'd'"}`, `200 {"changed":0,"service_users":[]}`),
		r(bulk+`{"do":"undelete","filter":"obj.name == 'a'"}`, `200 {"changed":1,"service_users":[{"name":"a","before":{"active":false},"after":{"active":false}}]}`),
		r(bulk+`{"do":"undelete","ids":["service_2"]}`, `200 {"changed":1}`),
		r(`GET /service_users?sort=name`, `200 {"service_users":[{"name":"a"},{"name":"b"},{"name":"d"}]}`),
	)
	// The audit trail connects the records of a bulk by its operation id.
	got := s.do(bulk + `{"do":"update","ids":["service_1","service_2"],"set":{"description":"x"}}`)
	operation := got.header.Get(OperationHeader)
	s.run(r(`GET /audit_events?limit=3`, fmt.Sprintf(`200 {"audit_events":[{"operation_id":%q,"resource_id":"service_2"},{"operation_id":%[1]q,"resource_id":"service_1"},{}]}`, operation)))
	if events := s.do(`GET /audit_events?limit=3`); strings.Count(events.text, operation) != 2 {
		t.Errorf("got %s, want two records of %s", events.text, operation)
	}
}

// The obstacles before and after a change, also of a dry run, which no directory in force has.
func TestBulkObstacles(t *testing.T) {
	s := serve(t, store.Options{})
	const bulk = `POST /service_users/bulk `
	for _, dry := range []string{`true`, `false`} {
		end := `,"dry_run":` + dry + `}`
		s.run(r(bulk+`{"do":"create","users":[{"name":"a"},{"name":"b","create_token":false}]`+end,
			`200 {"service_users":[{"after":{"obstacle":null}},{"after":{"obstacle":"the service user has no token"}}]}`))
	}
	for _, row := range []struct{ do, before, after string }{
		{"deactivate", `{"obstacle":null}`, `{"obstacle":"the service user is deactivated"}`},
		{"reactivate", `{"obstacle":"the service user is deactivated"}`, `{"obstacle":null}`},
		{"delete", `{"obstacle":null}`, `null`},
		{"undelete", `{"obstacle":"the service user is deleted"}`, `{"obstacle":"the service user is deactivated"}`},
	} {
		for _, dry := range []string{`true`, `false`} {
			s.run(r(bulk+`{"do":"`+row.do+`","ids":["service_1"],"dry_run":`+dry+`}`,
				`200 {"service_users":[{"before":`+row.before+`,"after":`+row.after+`}]}`))
		}
	}
}

// Requests that say too much, too little, or something else than they mean.
func TestBulkMistakes(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_1"}`),
		r(`POST /service_users {"name":"a","create_token":false}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"b"}`, `201 {"id":"service_2","token_id":"token_1"}`),
	)
	const bulk = `POST /service_users/bulk `
	const choose = `choose the service users by one of ids, filter and users`
	many := func(what string) string { return strings.TrimSuffix(strings.Repeat(what+",", 1001), ",") }
	s.run(
		r(bulk+`{}`, `400 ERR_INVALID_VALUE [do] "" is none of create, update, `),
		r(bulk+`{"do":"delete"}`, `400 ERR_INVALID_VALUE `+choose),
		r(bulk+`{"do":"delete","ids":[]}`, `400 ERR_INVALID_VALUE `+choose),
		r(bulk+`{"do":"delete","filter":""}`, `400 ERR_INVALID_VALUE `+choose),
		r(bulk+`{"do":"create","users":[]}`, `400 ERR_INVALID_VALUE `+choose),
		r(bulk+`{"do":"delete","ids":["service_1"],"filter":"true"}`, `400 ERR_INVALID_VALUE `+choose),
		r(bulk+`{"do":"destroy","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [do] "destroy" is none of create, update, `),
		r(bulk+`{"ids":["service_1"]}`, `400 ERR_INVALID_VALUE [do] "" is none of`),
		r(bulk+`{"do":"create","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [ids] goes only with "do": update, `),
		r(bulk+`{"do":"create","filter":"true"}`, `400 ERR_INVALID_VALUE [filter] goes only with "do": update, `),
		r(bulk+`{"do":"delete","users":[{"name":"x"}]}`, `400 ERR_INVALID_VALUE [users] goes only with "do": create`),
		r(bulk+`{"do":"delete","ids":["service_1"],"set":{}}`, `400 ERR_INVALID_VALUE [set] goes only with "do": update`),
		r(bulk+`{"do":"delete","ids":["service_1"],"add":{}}`, `400 ERR_INVALID_VALUE [add]`),
		r(bulk+`{"do":"delete","ids":["service_1"],"remove":{}}`, `400 ERR_INVALID_VALUE [remove]`),
		r(bulk+`{"do":"delete","ids":["service_1"],"permission_group":"group_1"}`, `400 ERR_INVALID_VALUE [permission_group] goes only with "do": add_to_group, remove_from_group`),
		r(bulk+`{"do":"deactivate","ids":["service_1"],"unless_used_within":"1h"}`, `400 ERR_INVALID_VALUE [unless_used_within] goes only with`),
		r(bulk+`{"do":"delete","ids":["service_1"],"unless_used_within":"soon"}`, `400 ERR_INVALID_VALUE [unless_used_within] "soon" is not a duration`),
		r(bulk+`{"do":"update","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [set] an update needs`),
		r(bulk+`{"do":"update","filter":"false","set":{"expires_at":"soon"}}`, `400 ERR_INVALID_VALUE [set.expires_at] "soon" is not a time`),
		r(bulk+`{"do":"update","filter":"false","remove":{"allowed_ips":["somewhere"]}}`, `400 ERR_INVALID_VALUE [remove.allowed_ips] "somewhere" is neither`),
		r(bulk+`{"do":"deactivate","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [Idempotency-Key] works only where a token is issued; leave it out`, `Idempotency-Key: a`),
		r(bulk+`{"do":"reactivate","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [Idempotency-Key] works only where`, `Idempotency-Key: a`),
		r(bulk+`{"do":"delete","filter":"false"}`, `400 ERR_INVALID_VALUE [Idempotency-Key] works only where`, `Idempotency-Key: a`),
		r(bulk+`{"do":"delete","ids":["service_0"],"dry_run":true}`, `400 ERR_INVALID_VALUE [Idempotency-Key] works only where`, `Idempotency-Key: a`),
		r(bulk+`{"do":"update","ids":["service_1"],"set":{"colour":"red"}}`, `400 ERR_NGROK_214 [set.colour]`),
		r(bulk+`{"do":"update","ids":["service_1"],"set":{"name":"b"}}`, `409 ERR_CONFLICT [service_1.name] "b" is taken`),
		r(bulk+`{"do":"update","ids":["service_1"],"set":{"role":"king"}}`, `400 ERR_INVALID_VALUE [service_1.role] "king" is none of`),
		r(bulk+`{"do":"add_to_group","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [permission_group] must be the id`),
		r(bulk+`{"do":"add_to_group","ids":["service_1"],"permission_group":"readers"}`, `400 ERR_INVALID_VALUE [permission_group] must be the id`),
		r(bulk+`{"do":"add_to_group","ids":["service_1"],"permission_group":"group_0"}`, `404 ERR_NOT_FOUND there is no permission group`),
		r(bulk+`{"do":"delete","ids":["service_1","b"]}`, `400 ERR_INVALID_VALUE [ids.1] "b" is not an id that begins with service_; `),
		r(bulk+`{"do":"delete","ids":["service_1","service_2","service_1"]}`, `400 ERR_INVALID_VALUE [ids.2] service_1 is in the list twice`),
		r(bulk+`{"do":"delete","ids":["service_1","service_0"]}`, `404 ERR_NOT_FOUND [service_0] there is no service user`),
		r(bulk+`{"do":"undelete","ids":["service_1"]}`, `409 ERR_CONFLICT [service_1] the service user is not deleted`),
		r(bulk+`{"do":"delete","filter":"obj.nmae == 'a'"}`, `400 invalid_cel_expression [filter] obj has no "nmae"; did you mean name? (at character 4)`),
		r(bulk+`{"do":"delete","ids":[`+many(`"service_1"`)+`]}`, `400 ERR_INVALID_VALUE more than 1000 service users are too many for one request`),
		r(bulk+`{"do":"create","users":[`+many(`{"name":"x"}`)+`]}`, `400 ERR_INVALID_VALUE more than 1000 service users are too many`),
		r(bulk+`{"do":"create","users":[{"name":"x"},{"name":"b"}]}`, `409 ERR_CONFLICT [users.1.name] "b" is taken`),
		r(bulk+`{"do":"create","users":[{"name":"x"},{"name":""}]}`, `400 ERR_INVALID_VALUE [users.1.name] must not be empty`),
		r(bulk+`{"do":"create","users":[{"name":"x","expires_at":"soon"}]}`, `400 ERR_INVALID_VALUE [users.0.expires_at] "soon"`),
		r(bulk+`{"do":"create","users":[{"name":"x"},{"name":"y","token_ttl":"soon"}]}`, `400 ERR_INVALID_VALUE [users.1.token_ttl] "soon"`),
		r(bulk+`{"do":"create","users":[{"name":"x","active":null}]}`, `400 ERR_INVALID_VALUE [users.0.active] must be true or false`),
		r(bulk+`{"do":"delete","ids":["service_1"],"dry_run":"yes"}`, `400 ERR_INVALID_VALUE [dry_run]`),
		r(bulk+`{"do":"create","users":[{"name":"x"}],"x":"`+strings.Repeat("y", maxBulkBody)+`"}`, `413 ERR_BODY_TOO_LARGE the body is larger than 8388608 bytes`),
		r(bulk+`{"do":"delete","ids":["service_1"]}`, `412 ERR_CHANGED this operation compares no versions`, `If-Match: "7"`),
		r(`GET /service_users?sort=name`, `200 {"service_users":[{"name":"a","etag":"\"1\""},{"name":"b","etag":"\"1\""}]}`),
	)
}

// A filter that finds too many is an error, and a body of 1,000 service users may be large.
func TestBulkOfThousand(t *testing.T) {
	t.Parallel()
	s := serve(t, store.Options{})
	var users []string
	for i := range 1000 {
		users = append(users, fmt.Sprintf(`{"name":"u%d","create_token":false,"description":%q}`, i, strings.Repeat("d", 1900)))
	}
	const bulk = `POST /service_users/bulk `
	s.run(
		r(bulk+`{"do":"create","users":[`+strings.Join(users, ",")+`]}`, `200 {"changed":1000}`),
		r(bulk+`{"do":"deactivate","filter":"true","dry_run":true}`, `200 {"changed":1000}`),
		r(`POST /service_users {"name":"one more"}`, `201`),
		r(bulk+`{"do":"deactivate","filter":"true"}`, `400 ERR_INVALID_VALUE more than 1000 service users are too many for one request; choose fewer`),
		r(`GET /service_users?status=inactive`, `200 {"service_users":[]}`),
		// A list of more than 1000 is counted, too.
		r(`POST /permission_groups {"name":"all","member_condition":"true","rules":["allow GET /v1"]}`, `201 {"id":"group_1"}`),
		r(`GET /permission_groups/group_1/members?limit=1&total_count=true`, `200 {"members":[{"name":"one more"}],"total_count":1001}`),
		r(`GET /service_users/who_can?method=GET&url=/v1&limit=1&total_count=true`, `200 {"service_users":[{"name":"one more"}],"cannot_log_in":[{}],"total_count":1001}`),
	)
}

// A body of too many service users is refused while it is read: each "{}" would take a hundred times
// its size.
func TestBulkMemory(t *testing.T) {
	s := serve(t, store.Options{})
	body := `{"do":"create","users":[` + strings.Repeat(`{},`, 2<<20) + `{}]}`
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.run(r(`POST /service_users/bulk `+body, `400 ERR_INVALID_VALUE more than 1000 service users are too many`))
	runtime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 200 {
		t.Errorf("a body of %d MiB took %d MiB of memory", len(body)>>20, took)
	}
}

// A bulk does not allow every address to a service user by taking its last one away.
func TestBulkOpensNothing(t *testing.T) {
	s := serve(t, store.Options{})
	const bulk = `POST /service_users/bulk {"do":"update","filter":"true",`
	const refused = `400 ERR_INVALID_VALUE [service_1.allowed_ips] no address would be left, which allows every address; leave the service user out, or set allowed_ips to []`
	s.run(
		r(`POST /service_users {"name":"a","allowed_ips":["10.0.0.1"]}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"b","allowed_ips":["10.0.0.1","10.0.0.2"]}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"c"}`, `201 {"id":"service_3"}`),
		r(bulk+`"remove":{"allowed_ips":["10.0.0.1"]}}`, refused),
		r(bulk+`"remove":{"allowed_ips":["10.0.0.1"]},"dry_run":true}`, refused),
		r(bulk+`"set":{"owner":"x","allowed_ips":null}}`, strings.Replace(refused, `service_1`, `service_2`, 1)),
		r(bulk+`"set":{"allowed_ips":["10.0.0.3/32"]},"remove":{"allowed_ips":["10.0.0.3"]}}`, strings.Replace(refused, `service_1`, `service_2`, 1)),
		r(`GET /service_users/service_2`, `200 {"owner":"","allowed_ips":["10.0.0.1/32","10.0.0.2/32"]}`),
		r(bulk+`"remove":{"allowed_ips":["10.0.0.1"]},"add":{"allowed_ips":["10.0.0.9"]}}`, `200 {"changed":3}`),
		r(bulk+`"remove":{"allowed_ips":["10.0.0.7"]}}`, `200 {"changed":0}`),
		r(bulk+`"set":{"allowed_ips":[]}}`, `200 {"changed":3,"service_users":[{"after":{"allowed_ips":[]}},{},{"after":{"allowed_ips":[]}}]}`),
		r(bulk+`"set":{"allowed_ips":null}}`, `200 {"changed":0}`),
	)
}

// A bulk of a manager has the limits of its single changes, and says nothing about service users outside
// of its scope.
func TestBulkOfManager(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"writers"}`, `201 {"id":"group_2"}`),
		r(`POST /service_users {"name":"manager","role":"manager","teams":["finance"],"permission_groups":["group_1"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"a","teams":["finance"]}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"outsider","teams":["hr"],"alias":"old-login"}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"writer","teams":["finance"],"permission_groups":["group_2"]}`, `201 {"id":"service_4"}`),
	)
	p, why := s.login("service_1", "csu_1")
	by, err := s.api.ServiceUserActor(p)
	if why != access.Granted || err != nil {
		t.Fatalf("got %s, %v, want an actor", why, err)
	}
	s.by = by
	const bulk = `POST /service_users/bulk `
	s.run(
		r(bulk+`{"do":"deactivate","ids":["service_2","service_3"]}`, `404 ERR_NOT_FOUND [service_3] there is no service user`),
		r(bulk+`{"do":"deactivate","ids":["service_2","service_1"]}`, `403 ERR_NGROK_4111 [service_1] a manager cannot change itself`),
		r(bulk+`{"do":"deactivate","filter":"obj.name == 'outsider'"}`, `200 {"changed":0,"service_users":[]}`),
		r(bulk+`{"do":"deactivate","filter":"obj.name != 'manager'"}`, `403 ERR_NGROK_4111 [service_4.permission_groups] a manager reaches only`),
		r(bulk+`{"do":"update","ids":["service_2"],"set":{"role":"admin"}}`, `403 ERR_NGROK_4111 [service_2.role]`),
		r(bulk+`{"do":"add_to_group","ids":["service_2"],"permission_group":"group_2"}`, `404 ERR_NOT_FOUND there is no permission group`),
		r(bulk+`{"do":"add_to_group","ids":["service_2"],"permission_group":"group_1","dry_run":true}`, `200 {"changed":1}`),
		r(bulk+`{"do":"create","users":[{"name":"x","teams":["finance"]},{"name":"y","teams":["hr"]}]}`, `403 ERR_NGROK_4111 [users.1.teams]`),
		r(bulk+`{"do":"create","users":[{"name":"x","teams":["finance"]},{"name":"y","teams":["finance"]}],"dry_run":true}`, `200 {"changed":2}`),
		r(bulk+`{"do":"undelete","ids":["service_2"]}`, `403 ERR_NGROK_4111 [service_2] only an admin`),
		// A name that is taken outside of its scope.
		r(bulk+`{"do":"create","users":[{"name":"x","teams":["finance"]},{"name":"Outsider","teams":["finance"]}],"dry_run":true}`, `409 ERR_CONFLICT [users.1.name] "Outsider" is taken`),
		r(`POST /service_users {"name":"outsider","teams":["finance"]}`, `409 ERR_NGROK_4112 [name] "outsider" is taken`),
		r(`PATCH /service_users/service_2 {"alias":"old-login"}`, `409 ERR_CONFLICT [alias] "old-login" is taken`),
		r(bulk+`{"do":"deactivate","ids":["service_2"]}`, `200 {"changed":1}`),
	)
	// The trail of a service user has the attempts on it, and that of the manager its looks for names.
	s.by = store.Actor{Name: "human:admin"}
	s.run(
		r(`POST /service_users {"name":"outsider"}`, `409 ERR_NGROK_4112 [name] "outsider" is taken`), // an admin learns nothing by this
		r(`GET /audit_events?actor=service_1&action=refused&limit=3`, `200 {"audit_events":[
			{"resource_id":"service_2","after":{"operation":"PATCH /service_users/{id}","status":409}},
			{"resource_id":"","after":{"operation":"POST /service_users","status":409,"code":"ERR_NGROK_4112"}},
			{"resource_id":"","after":{"operation":"POST /service_users/bulk","status":409}}]}`),
		r(`GET /audit_events?limit=1&action=refused`, `200 {"audit_events":[{"actor":"service_1"}]}`),
	)
	s.run(r(`GET /audit_events?resource_id=service_4&action=refused`, `200 {"audit_events":[{"resource_id":"service_4","after":{"operation":"POST /service_users/bulk","status":403}}]}`))
}
