package store

import (
	"encoding/json"
	"slices"
)

// subjectFields are the fields of a state in the audit trail that have ids of further resources.
var subjectFields = []string{
	"permission_groups", "permissions", "members", "members_by_condition", "of", "service_user_id",
}

// subjects returns the further resources that a record concerns, each once, for audit_subjects. It reads
// only the states in the record, so that it gives the same result for new records, for those of earlier
// versions and after a restore.
//
// A list in both states of a record, such as the groups of a service user, concerns the ids that are
// in one of them only. A list in one state, such as the members of a deleted group, concerns all. A
// tombstone counts as a state without lists.
func (e *AuditEvent) subjects() (ids []string) {
	times := make(map[[2]string]int) // by field and id
	for _, text := range []json.RawMessage{e.Before, e.After} {
		var state map[string]any
		if json.Unmarshal(text, &state) != nil || state["deleted_at"] != nil && state["deleted_at"] != "" {
			continue
		}
		for _, field := range subjectFields {
			list, ok := state[field].([]any)
			if !ok {
				list = []any{state[field]}
			}
			for _, v := range list {
				if id, ok := v.(string); ok {
					times[[2]string{field, id}]++
				}
			}
		}
	}
	for of, n := range times {
		if n == 1 || of[0] == "service_user_id" {
			ids = append(ids, of[1])
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
