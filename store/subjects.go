package store

// indexSubjects returns a statement that fills audit_subjects from the records of the audit trail
// that have the number from or a higher one.
func indexSubjects(from string) string {
	return `
	INSERT INTO audit_subjects (resource_id, seq)` + subjects(from) + `
	ON CONFLICT DO NOTHING` // rows may be left of a trail that was cut
}

// subjects returns a query for the rows of audit_subjects. It reads only the states in the records, so
// that it gives the same result for new records, for those of earlier versions and after a restore.
//
// A list in both states of a record, such as the groups of a service user, concerns the ids that are
// in one of them only. A list in one state, such as the members of a deleted group, concerns all. A
// tombstone counts as a state without lists.
func subjects(from string) string {
	return `
	SELECT id.value, seq
	FROM (SELECT seq, before AS state FROM audit_events UNION ALL SELECT seq, after FROM audit_events),
		json_each('["permission_groups","permissions","members","members_by_condition","of",
			"service_user_id"]') field,
		json_each(CASE WHEN NOT json_valid(state) THEN '{}'
			WHEN json_extract(state, '$.deleted_at') <> '' THEN '{}' ELSE state END, '$.' || field.value) id
	WHERE seq >= ` + from + ` AND id.type = 'text'
	GROUP BY id.value, seq, field.value HAVING COUNT(*) = 1 OR field.value = 'service_user_id'`
}
