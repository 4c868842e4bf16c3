// Command worknode turns a Linux machine into a Kubernetes worker node.
package main

import (
	"fmt"

	"worknode/version"
)

func main() {
	fmt.Println("worknode", version.Build, "for Kubernetes", version.Kubernetes)
}
