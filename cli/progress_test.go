package cli

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Progress is one line on a terminal, a few times a second, and gone at the end; elsewhere it is
// nothing.
func TestProgress(t *testing.T) {
	for _, row := range []struct {
		terminal bool
		unit     string
		count    int64
		takes    time.Duration
		want     string // the line at the end, without the spaces behind it
	}{
		{true, "found", 12, 3100 * time.Millisecond, "finding: 3 s, 12 found"},
		{true, "MB", 12_340_000, 61 * time.Second, "finding: 61 s, 12.3 MB"},
		{true, "MB", 0, time.Second + time.Millisecond, "finding: 1 s"},
		{true, "found", 12, 10 * time.Millisecond, ""}, // quick work shows nothing
		{false, "found", 12, time.Minute, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			c := &cli{stderr: &out, terminal: row.terminal}
			count, end := c.progress("finding", row.unit)
			count.Add(row.count)
			time.Sleep(row.takes)
			end()
			shown := strings.Split(out.String(), "\r")
			if row.want == "" {
				if out.Len() > 0 {
					t.Errorf("%+v: got %q, want nothing", row, out.String())
				}
				return
			}
			// "\rLINE" for each update, then "\r   \r".
			if most := int(row.takes/time.Second)*4 + 5; len(shown) > most {
				t.Errorf("%+v: got %d updates, want at most %d", row, len(shown), most)
			}
			last, blank := shown[len(shown)-3], shown[len(shown)-2]
			if strings.TrimRight(last, " ") != row.want || len(blank) < len(row.want) || strings.TrimSpace(blank) != "" || shown[len(shown)-1] != "" {
				t.Errorf("%+v: got %q, want the line and then its removal", row, shown[len(shown)-3:])
			}
			if strings.Contains(out.String(), "\n") {
				t.Errorf("%+v: got a line break", row)
			}
		})
	}
}
