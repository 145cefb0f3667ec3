package access

import (
	"strings"
	"testing"
)

func TestNearestWord(t *testing.T) {
	known := strings.Fields("name display_name description active role teams labels allowed_ips permission_groups expires_at create_token token_ttl DELETE GET")
	for word, want := range map[string]string{
		"name": "name", "nmae": "name", "Name": "name", "displayName": "display_name", "display-name": "display_name", "displya_name": "display_name",
		"team": "teams", "lables": "labels", "allowedips": "allowed_ips", "ips": "allowed_ips", "groups": "permission_groups", "expires": "expires_at",
		"ttl": "token_ttl", "DELTE": "DELETE", "delete": "DELETE", "GTE": "GET", "roles": "role", "descripton": "description",
		"": "", "-": "", "_": "", "frobnicate": "", "xyz": "", "owner": "", strings.Repeat("name", 100): "", "nam\x00e": "name",
	} {
		if got := NearestWord(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
	if got := NearestWord("name", nil); got != "" {
		t.Errorf("nothing is known: got %q", got)
	}
}
