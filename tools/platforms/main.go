// Command platforms checks the types of the packages of a module for other platforms. It finds what a
// build there would find, without compiling: "go vet" would compile every dependency once more for each platform.
//
//	go run -C tools ./platforms ..
package main

import (
	"fmt"
	"os"

	"golang.org/x/tools/go/packages"
)

func main() {
	failed := false
	for _, goos := range []string{"windows", "darwin"} {
		list, err := packages.Load(&packages.Config{
			Mode: packages.NeedName | packages.NeedFiles | packages.NeedImports | packages.NeedDeps | packages.NeedTypes | packages.NeedSyntax | packages.NeedTypesInfo,
			Dir:  os.Args[1],
			Env:  append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0"),
		}, "./...")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("%s: %d packages\n", goos, len(list))
		failed = packages.PrintErrors(list) > 0 || failed
	}
	if failed {
		os.Exit(1)
	}
}
