// Package openapi tests the OpenAPI document of the admin API with programs that are not ours: two
// validators, two linters, and a client that a generator makes of it.
//
//	go generate . && go test .
//	npm ci && npm run lint
package openapi

//go:generate mkdir -p client
//go:generate go tool oapi-codegen -config client.yaml ../../admin/openapi.json
