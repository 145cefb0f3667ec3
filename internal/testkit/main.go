package testkit

import (
	"flag"
	"runtime"
	"strconv"
)

// Prepare readies a test binary whose tests mostly wait, for other processes or for a poll: their files are in
// memory, and four parallel tests for each processor run at once, if -parallel does not say another number. Call it
// first in TestMain.
func Prepare() {
	inMemory()
	_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
}
