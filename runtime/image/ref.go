package image

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"worknode/fault"
)

// Names are parsed here and not by distribution/reference, whose patterns cost every process of ours 0.4 MB at start;
// a test holds the two against each other.
// Source: distribution reference/reference.go (the grammar); Docker's defaults for registry, namespace and tag.
const (
	defaultRegistry = "docker.io"
	maxName         = 255 // bytes of repository
	maxTag          = 128 // bytes
)

// normal spells a reference out: registry, repository, and a tag or a digest (which wins over a tag).
// Errors: Invalid.
func normal(ref string) (string, error) {
	repo, rest, err := repository(ref)
	if err != nil {
		return "", fault.New(fault.Invalid, "image name %q: %w", ref, err)
	}
	return repo + rest, nil
}

// digested names the repository of a full tag by a manifest digest.
func digested(tag string, manifest digest.Digest) (string, error) {
	repo, _, err := repository(tag)
	if err != nil {
		return "", fault.New(fault.Invalid, "image name %q: %w", tag, err)
	}
	return repo + "@" + manifest.String(), nil
}

// repository splits a reference into its full repository and ":tag" or "@digest".
func repository(ref string) (repo, rest string, err error) {
	name, sum, hasSum := strings.Cut(ref, "@")
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
		if !validTag(tag) {
			return "", "", fault.New(fault.Invalid, "tag %q: 1 to %d letters, digits, dots, dashes and underscores", tag, maxTag)
		}
	}
	if hasSum {
		if err := digest.Digest(sum).Validate(); err != nil {
			return "", "", fault.New(fault.Invalid, "digest %q: %w", sum, err)
		}
		rest = "@" + sum
	} else {
		if tag == "" {
			tag = "latest"
		}
		rest = ":" + tag
	}
	if len(ref) == 64 && strings.Trim(ref, "0123456789abcdef") == "" {
		return "", "", fault.New(fault.Invalid, "an image id is no name")
	}
	registry, path := splitRegistry(name)
	// The grammar takes a first part that no host can have, such as a_b.c, for a repository's, and so do others.
	if !validRegistry(registry) && !validPart(registry) {
		return "", "", fault.New(fault.Invalid, "registry %q is no host name", registry)
	}
	if len(path) > maxName {
		return "", "", fault.New(fault.Invalid, "repository of %d bytes, at most %d", len(path), maxName)
	}
	for part := range strings.SplitSeq(path, "/") {
		if !validPart(part) {
			return "", "", fault.New(fault.Invalid, "part %q: lower-case letters and digits, single dots, one or two underscores or dashes between them", part)
		}
	}
	return registry + "/" + path, rest, nil
}

// splitRegistry finds the registry: a first part that could not be a repository's.
func splitRegistry(name string) (registry, path string) {
	first, rest, found := strings.Cut(name, "/")
	if !found || !strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first {
		registry, path = defaultRegistry, name
	} else {
		registry, path = first, rest
	}
	if registry == "index.docker.io" {
		registry = defaultRegistry
	}
	if registry == defaultRegistry && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return registry, path
}

func validRegistry(s string) bool {
	host := s
	if strings.HasPrefix(s, "[") { // IPv6
		end := strings.IndexByte(s, ']')
		if end < 2 || strings.Trim(s[1:end], "0123456789abcdefABCDEF:") != "" {
			return false
		}
		if host = s[end+1:]; host != "" && host[0] != ':' {
			return false
		}
		host = "v6" + host
	}
	host, port, hasPort := strings.Cut(host, ":")
	if hasPort && (port == "" || strings.Trim(port, "0123456789") != "") {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, func(r rune) bool { return r != '-' && !alnum(r) }) {
			return false
		}
	}
	return true
}

// validPart checks one part of a repository: runs of lower-case letters and digits, parted by ".", "_", "__" or dashes.
func validPart(s string) bool {
	for {
		run := len(s) - len(strings.TrimLeft(s, "0123456789abcdefghijklmnopqrstuvwxyz"))
		if run == 0 {
			return false
		}
		if s = s[run:]; s == "" {
			return true
		}
		switch dashes := len(s) - len(strings.TrimLeft(s, "-")); {
		case dashes > 0:
			s = s[dashes:]
		case strings.HasPrefix(s, "__"):
			s = s[2:]
		case s[0] == '.' || s[0] == '_':
			s = s[1:]
		default:
			return false
		}
	}
}

func validTag(s string) bool {
	return s != "" && len(s) <= maxTag && s[0] != '.' && s[0] != '-' &&
		!strings.ContainsFunc(s, func(r rune) bool { return r != '_' && r != '.' && r != '-' && !alnum(r) })
}

func alnum(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}
