package main

import (
	"os"
	"strings"
)

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "worknode"
	}
	return strings.ToLower(name)
}
