// Command document prints the OpenAPI document that the admin API serves.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func main() {
	w := httptest.NewRecorder()
	admin.New(nil, nil, nil).Serve(w, httptest.NewRequest(http.MethodGet, "/service_users/openapi.json", nil), store.Local)
	if w.Code != http.StatusOK {
		log.Fatalf("got %d %s", w.Code, w.Body)
	}
	fmt.Print(w.Body)
}
