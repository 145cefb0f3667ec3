//go:build linux

package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		figures []float64
		want    quartiles
	}{
		{[]float64{7}, quartiles{7, 7, 7}},
		{[]float64{3, 1}, quartiles{1.5, 2, 2.5}},
		{[]float64{5, 1, 4, 2, 3}, quartiles{2, 3, 4}},
		{[]float64{4, 1, 3, 2}, quartiles{1.75, 2.5, 3.25}},
	} {
		given := slices.Clone(test.figures)
		if got := spread(test.figures); got != test.want {
			t.Errorf("spread(%v): got %v, want %v", given, got, test.want)
		}
		if !slices.Equal(test.figures, given) {
			t.Errorf("spread(%v) has changed its argument to %v", given, test.figures)
		}
	}
	if got := spread(nil); !math.IsNaN(got.median) {
		t.Errorf("spread of nothing: got %v, want NaN", got)
	}
}

func TestRatios(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, test := range []struct{ figures, of, want []float64 }{
		{[]float64{1, 9}, []float64{2, 3}, []float64{0.5, 3}},
		{[]float64{1, 9, 5}, []float64{2, 3}, []float64{0.5, 3}},
		{[]float64{0, 4, nan, 4, 1}, []float64{2, 0, 2, nan, 4}, []float64{0.25}},
		{[]float64{inf, 1, 2}, []float64{1, inf, 4}, []float64{0.5}},
	} {
		if got := ratios(test.figures, test.of); !slices.Equal(got, test.want) {
			t.Errorf("ratios(%v, %v): got %v, want %v", test.figures, test.of, got, test.want)
		}
	}
}

func TestParseWrk(t *testing.T) {
	const text = `Running 1s test @ http://127.0.0.1:9000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.90ms    1.24ms  15.05ms   72.35%
    Req/Sec    17.41k     1.13k   19.02k    54.55%
  Latency Distribution
     50%  812.00us
     75%    2.51ms
     90%    3.42ms
     99%    1.02s 
  19057 requests in 1.10s, 2.49MB read
`
	for _, test := range []struct {
		name, more string
		want       answers
	}{
		{"all well", "", answers{requests: 19057, rate: 17325.01}},
		{"refused", "  Non-2xx or 3xx responses: 19000\n", answers{requests: 19057, rate: 17325.01, refused: 19000}},
		{"broken", "  Socket errors: connect 1, read 20, write 300, timeout 4000\n", answers{requests: 19057, rate: 17325.01, broken: 4321}},
	} {
		test.want.p50, test.want.p99 = 812*time.Microsecond, 1020*time.Millisecond
		got, err := parseWrk(text + test.more + "Requests/sec:  17325.01\nTransfer/sec:      2.26MB\n")
		if err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v", test.name, got, err, test.want)
		}
	}
	if _, err := parseWrk("unable to connect to 127.0.0.1:1 Connection refused\n"); err == nil {
		t.Error("got no error of a wrk that has not run")
	}
}

func TestReadRequest(t *testing.T) {
	const size = 64 // of the buffer
	long := strings.Replace(request("/"+strings.Repeat("a", 100)), "GET", "POST", 1)
	in := bufio.NewReaderSize(strings.NewReader(
		strings.Replace(long, "\r\n\r\n", "\r\nContent-Length: 70\r\n\r\n"+strings.Repeat("\r\n", 35), 1)+
			// the line is as long as the buffer but for its end
			"GET /"+strings.Repeat("b", size-len("GET /"))+"\r\n\r\n"+
			request("/?bytes=7")+request("/?head=1")), size)
	for i, want := range []string{"", "", "bytes=7", "head=1"} {
		query, head, err := readRequest(in)
		if err != nil || query != want {
			t.Errorf("request %d: got query %q, %v, want %q", i+1, query, err, want)
		}
		if lines := strings.TrimSuffix(request("/?head=1"), "\r\n"); want == "head=1" && string(head) != lines {
			t.Errorf("got head %q, want %q", head, lines)
		}
	}
	if _, _, err := readRequest(in); err == nil {
		t.Error("got a fifth request out of four")
	}
}

func TestParse(t *testing.T) {
	for protocol, want := range map[string]string{https1: "https://127.0.0.1:9/v1/7?bytes=1", h2c: "http://127.0.0.1:9/v1/7?bytes=1"} {
		r, err := parse(request("/v1/7?bytes=1", "Content-Length: 5"), protocol, "127.0.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		if got := r.URL.String(); got != want || r.Host != "api.example.com" || r.ContentLength != 5 || r.RequestURI != "" {
			t.Errorf("%s: got %s of %s with %d bytes, want %s of api.example.com with 5", protocol, got, r.Host, r.ContentLength, want)
		}
	}
	if _, err := parse("GET /", https1, "127.0.0.1:9"); err == nil {
		t.Error("got no error of half a request")
	}
}

func TestParseLoad(t *testing.T) {
	got, err := parseLoad("100 50.5 2000000 9000000 3 4\n")
	if want := (answers{requests: 100, rate: 50.5, p50: 2 * time.Millisecond, p99: 9 * time.Millisecond, refused: 3, broken: 4}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseLoad("100\n"); err == nil {
		t.Error("got no error of a load without figures")
	}
}

func TestReplaceTable(t *testing.T) {
	got, err := replaceTable("a\n<!-- bench: x -->\n\nold\n\n<!-- bench end -->\nz\n", "x", "| new |\n")
	if want := "a\n<!-- bench: x -->\n\n| new |\n\n<!-- bench end -->\nz\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, table := range tables {
		page, err := os.ReadFile("../" + table.file)
		if err == nil {
			_, err = replaceTable(string(page), table.name, "")
		}
		if err != nil {
			t.Errorf("%s: %v", table.file, err)
		}
	}
}

// TestSummary reads the tables of a run with one turn of a few subjects.
func TestSummary(t *testing.T) {
	b := &bench{about: "One run."}
	turn := func(s *section, name, against string, rate, cpu, p99 float64) *subject {
		t := s.add(name, against, 200, nil)
		t.turns = map[string][]float64{"rate": {rate}, "cpu": {cpu}, "p99": {p99}}
		return t
	}
	same, protocols, flood := b.section("same", ""), b.section("protocols", ""), b.section("flood", "")
	turn(same, "bare reverse_proxy", "", 1000, 8, 4)
	turn(same, "with 3 `header_up`", "bare reverse_proxy", 950, 9, 4)
	turn(same, "plugin", "bare reverse_proxy", 900, 10, 6)
	turn(protocols, "HTTP/2, 1 KiB: bare reverse_proxy", "", 100, 2, 8)
	turn(protocols, "HTTP/2, 1 KiB: plugin", "HTTP/2, 1 KiB: bare reverse_proxy", 95, 3, 16)
	turn(protocols, "HTTP/2, 1 KiB: "+lean, "HTTP/2, 1 KiB: bare reverse_proxy", 120, 1, 4)
	turn(flood, "plugin", "", 40, 0, 7).turns["rate alone"] = []float64{50}
	var got []string
	for _, table := range tables {
		got = append(got, table.text(b))
	}
	const head = "| | requests a second | CPU of a request | p99 |\n|---|---|---|---|\n"
	const peers = "One run.\n\n" + head + "| Caddy's `reverse_proxy`, no check | 1.00 | 1.00 | 1.00 |\n%s| **this plugin** | 0.900 | 1.25 | 1.50 |\n"
	want := []string{
		fmt.Sprintf(peers, ""), fmt.Sprintf(peers, "| the same, with three `header_up` | 0.950 | 1.12 | 1.00 |\n"),
		"| | `reverse_proxy`: requests a second | CPU | p99 | `service_users_proxy`: requests a second | CPU | p99 |\n|---|---|---|---|---|---|---|\n" +
			"| HTTP/2, 1 KiB | 0.950 | 1.50 | 2.00 | 1.20 | 0.500 | 0.500 |\n",
		"| | good requests a second | p99, ms |\n|---|---|---|\n| plugin | 0.800 | 7.00 |\n",
	}
	for i, table := range tables {
		if got[i] != want[i] {
			t.Errorf("%s of %s: got\n%s\nwant\n%s", table.name, table.file, got[i], want[i])
		}
	}
	if got := chart("", b.peersRows()).Rows; len(got) != 3 || !got[2].Marked || got[2].Name != "this plugin" {
		t.Errorf("got bars %v, want three, the last one marked", got)
	}
}

func TestDigits(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0", 12345.6: "12346", 99.94: "99.9", 1.2345: "1.23", 0.98765: "0.988", 0.00123: "0.00123", math.NaN(): "–",
	} {
		if got := digits(f); got != want {
			t.Errorf("digits(%v): got %s, want %s", f, got, want)
		}
	}
}

// BenchmarkOpen opens and loads stores of growing size, to measure the cost of a start.
func BenchmarkOpen(b *testing.B) {
	for _, users := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("users=%d", users), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "s.db")
			if _, err := makeStore(b.Context(), path, users); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				s, err := store.Open(b.Context(), path, store.Options{})
				if err != nil {
					b.Fatal(err)
				}
				if got := s.Directory().Len(); got != users {
					b.Fatalf("got %d service users, want %d", got, users)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
