//go:build linux

package main

import "time"

type picture struct{}

func (p *picture) add(nodes, users int, name string, everywhere []time.Duration) {}
func (p *picture) write(file string) error                                       { return nil }
