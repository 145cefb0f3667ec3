// Package openapi tests the OpenAPI document of the admin API with programs that
// are not ours: two validators, and a client that a generator makes of it.
//
//	go generate . && go test .
package openapi

//go:generate sh -c "go run ./document >openapi.json && mkdir -p client"
//go:generate go tool oapi-codegen -config client.yaml openapi.json
