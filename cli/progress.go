package cli

import (
	"fmt"
	"sync/atomic"
	"time"
)

// progressEvery is the time between two updates of the line of progress.
const progressEvery = 250 * time.Millisecond

// counter counts long work. As an io.Writer it counts bytes.
type counter struct{ atomic.Int64 }

func (n *counter) Write(p []byte) (int, error) {
	n.Add(int64(len(p)))
	return len(p), nil
}

// progress shows long work on a terminal: the work, its count in the given unit, and its time. The
// line goes to the standard error. It appears only if the work takes a moment, and end removes it.
// Nothing else may be printed before end. Where the standard error is not a terminal, progress shows
// nothing.
func (c *cli) progress(work, unit string) (count *counter, end func()) {
	count = new(counter)
	if !c.terminal {
		return count, func() {}
	}
	begun, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		width := 0
		for {
			select {
			case <-stop:
				if width > 0 {
					fmt.Fprintf(c.stderr, "\r%*s\r", width, "")
				}
				return
			case <-tick.C:
				line := fmt.Sprintf("%s: %d s", work, int(time.Since(begun).Seconds()))
				switch n := count.Load(); {
				case n > 0 && unit == "MB":
					line += fmt.Sprintf(", %.1f MB", float64(n)/1e6)
				case n > 0:
					line += fmt.Sprintf(", %d %s", n, unit)
				}
				fmt.Fprintf(c.stderr, "\r%-*s", width, line)
				width = max(width, len(line))
			}
		}
	}()
	return count, func() {
		close(stop)
		<-stopped
	}
}
