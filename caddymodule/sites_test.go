package caddymodule

import "testing"

// TestServes: a guard knows the hosts of its sites. A guard in an error route serves none.
func TestServes(t *testing.T) {
	guard := func(host string) string {
		return `{"match":[{"host":["` + host + `"]}],"handle":[{"handler":"service_users"}]}`
	}
	server := layout{
		routes: []string{guard("api.example.com"), guard("*.example.com"), handle(`{"handler":"service_users"}`)},
		errors: []string{handle(`{"handler":"service_users"}`)},
	}
	_, app, err := provisioned(t, t.TempDir(), server.String())
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][]int{
		"api.example.com": {3, 2, 1, 0},
		"any.example.com": {0, 2, 1, 0}, "elsewhere.example": {0, 0, 1, 0},
	} {
		for i, guard := range app.guards {
			if got := guard.serves(host); got != want[i] {
				t.Errorf("guard %d, %s: got %d, want %d", i, host, got, want[i])
			}
		}
	}
}
