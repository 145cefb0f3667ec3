package console

import (
	"cmp"
	"encoding/csv"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// bulkVerb is a change that the list offers for many service users.
type bulkVerb struct {
	Do, Label, Button string
	Text              string // the effect, in a sentence
	Undo              string // the change that takes this one back, or ""
	Grouped           bool   // the change needs a permission group
	Danger            bool
}

var bulkVerbs = []bulkVerb{
	{Do: "deactivate", Label: "Deactivate", Button: "Deactivate them", Danger: true, Undo: "reactivate",
		Text: "Their tokens are refused from the next request on, until you reactivate them."},
	{Do: "reactivate", Label: "Reactivate", Button: "Reactivate them", Undo: "deactivate",
		Text: "Their tokens work again, unless they have ended or were revoked."},
	{Do: "add_to_group", Label: "Add to a group", Button: "Add them", Undo: "remove_from_group",
		Grouped: true, Text: "They may do what the rules of the group allow."},
	{Do: "remove_from_group", Label: "Remove from a group", Button: "Remove them", Undo: "add_to_group",
		Grouped: true, Text: "They lose the rights that only this group gives. Members by its condition stay members."},
	{Do: "rotate", Label: "Rotate the tokens", Button: "Rotate their tokens",
		Text: "A new token replaces each token that works; the old ones end after the grace."},
	{Do: "delete", Label: "Delete", Button: "Delete them", Danger: true, Undo: "undelete",
		Text: "Their tokens are refused from the next request on. An admin can undelete them for some time."},
	{Do: "undelete", Label: "Undelete", Button: "Undelete them",
		Text: "They come back with their groups and tokens. They are inactive until you reactivate them."},
}

// bulkPage is the preview of a change of many service users, or its result.
type bulkPage struct {
	Verb   bulkVerb
	Groups map[string]string
	Result admin.BulkResult
	Back   string // the address of the list
}

// bulk shows the effect of a change of the ticked service users, and makes it after the second
// question.
func bulk(p *page) (err error) {
	form := p.Input
	i := slices.IndexFunc(bulkVerbs, func(v bulkVerb) bool { return v.Do == form.Get("do") })
	if i < 0 || len(form["id"]) == 0 {
		return fieldError("do", "tick at least one service user, and choose a change; go back to the list")
	}
	data := bulkPage{Verb: bulkVerbs[i], Back: strings.Replace(p.Here(), "/bulk", "", 1)}
	in := admin.BulkInput{Do: data.Verb.Do, IDs: form["id"], DryRun: form.Get("sure") == ""}
	if data.Verb.Grouped {
		in.PermissionGroup = form.Get("group")
		if data.Groups, err = p.groupNames(); err != nil {
			return err
		}
		if in.PermissionGroup == "" { // the preview asks for it
			return p.show("bulk", data.Verb.Label, data)
		}
	}
	rotate := in.Do == "rotate"
	if rotate {
		in.Grace = cmp.Or(form.Get("grace"), "24h")
	}
	if in.DryRun {
		form.Set("key", store.NewOperationID())
	}
	if rotate && !in.DryRun {
		err = p.postNew("/service_users/bulk", in, &data.Result)
	} else {
		err = p.do(http.MethodPost, "/service_users/bulk", in, &data.Result)
	}
	return p.form("bulk", data.Verb.Label, data, err)
}

// exportUsers answers with the service users of the list as CSV (RFC 4180), all pages of it.
func exportUsers(p *page) error {
	query := p.userQuery()
	h := p.w.Header()
	var out *csv.Writer
	uri := "/service_users?" + query.Encode()
	err := admin.All(p.Context(), p.client, uri, func(list admin.ServiceUserList) admin.Page {
		if out == nil { // the status is 200 only once the first page is there
			h.Set("Content-Type", "text/csv; charset=utf-8")
			h.Set("Content-Disposition", `attachment; filename="service-users.csv"`)
			out = csv.NewWriter(p.w)
			_ = out.Write(exportColumns)
		}
		for _, u := range list.ServiceUsers {
			_ = out.Write(exported(u)) // the browser may be gone
		}
		return list.Page
	})
	if err == nil {
		out.Flush()
	} else if out != nil { // the browser sees that the file is cut
		panic(http.ErrAbortHandler)
	}
	return err
}

var exportColumns = []string{
	"id", "name", "display_name", "owner", "role", "teams", "labels", "permission_groups", "active", "obstacle",
	"last_active_at", "next_token_end", "created_at", "created_by",
}

func exported(u admin.ServiceUser) []string {
	in, obstacle := inputOf(u), ""
	if u.Obstacle != nil {
		obstacle = *u.Obstacle
	}
	at := func(t any) string { return when(t, u.CreatedAt).ISO }
	row := []string{
		u.ID, u.Name, u.DisplayName, u.Owner, string(u.Role), in.Get("teams"), in.Get("labels"),
		strings.Join(u.PermissionGroups, ", "), strconv.FormatBool(u.Active), obstacle,
		at(u.LastActiveAt), at(u.NextTokenEnd), at(u.CreatedAt), u.CreatedBy,
	}
	for i, cell := range row {
		row[i] = admin.CSVCell(cell)
	}
	return row
}
