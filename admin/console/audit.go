package console

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// auditFilters are the parameters of the trail that the page passes on to the API.
var auditFilters = []string{"actor", "action", "resource_id", "since", "until", "before_id"}

// auditPage is the data of the audit trail.
type auditPage struct {
	Actions []string // the kinds of records
	List    admin.AuditEventList
	Events  []auditEvent
	Check   *admin.AuditReport // nil unless the page was asked to verify the chain
}

// auditEvent is a record with its change: the values that the resource lost and got.
type auditEvent struct {
	admin.AuditEvent
	Lost, Got []string
}

func showAudit(p *page) error {
	data := auditPage{Actions: store.AuditActions}
	query := p.query(auditFilters...)
	query.Set("names", "true")
	query.Set("limit", "50")
	if err := p.get("/audit_events?"+query.Encode(), &data.List); err != nil {
		return p.form("audit", "Audit trail", data, err)
	}
	groups, err := p.groupNames()
	if err != nil {
		return err
	}
	for _, e := range data.List.AuditEvents {
		was, is := inWords(e.Before, groups), inWords(e.After, groups)
		data.Events = append(data.Events, auditEvent{e, without(was, is), without(is, was)})
	}
	if p.Input.Get("verify") != "" {
		data.Check = new(admin.AuditReport)
		if err := p.get("/audit_events/verify", data.Check); err != nil {
			return err
		}
	}
	return p.show("audit", "Audit trail", data)
}

// unchanging are the fields of records that say nothing about a change.
var unchanging = []string{"id", "service_user_id", "version", "updated_at", "created_at", "created_by"}

// inWords returns a line for each value in the record of a resource, such as "labels env: dev". names
// has the names of permission groups by id.
func inWords(record json.RawMessage, names map[string]string) (lines []string) {
	var add func(field string, value any)
	add = func(field string, value any) {
		switch v := value.(type) {
		case nil:
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				if field == "labels" || !slices.Contains(unchanging, key) {
					add(strings.TrimSpace(field+" "+strings.ReplaceAll(key, "_", " ")), v[key])
				}
			}
		case []any:
			for _, element := range v {
				add(field, element)
			}
		case bool:
			add(field, map[bool]string{true: "on", false: "off"}[v])
		case string:
			if t, err := time.Parse(time.RFC3339, v); err == nil {
				v = of(t, "").UTC
			}
			lines = append(lines, strings.TrimSuffix(field, " text")+": "+cmp.Or(names[v], v))
		default: // a number
			text, _ := json.Marshal(v)
			add(field, string(text))
		}
	}
	var value any
	_ = json.Unmarshal(record, &value) // VerifyAudit finds a record that was damaged
	add("", value)
	return lines
}

// without returns the elements of list that are not in other: the first ones, if there are many.
func without(list, other []string) []string {
	const most = 10
	others := setOf(other)
	list = slices.DeleteFunc(slices.Clone(list), func(text string) bool { return others[text] })
	if len(list) > most {
		return append(list[:most], fmt.Sprintf("… and %d more", len(list)-most))
	}
	return list
}
