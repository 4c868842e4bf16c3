package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"worknode/fault"
)

// endpoint is one place that serves a registry's images, as configured.
type endpoint struct {
	url        url.URL // up to and without "/NAME/manifests/…"
	mirror     bool    // not the registry itself
	pull       bool    // serves content by digest
	resolve    bool    // may be asked what a tag means
	skipVerify bool
	mayBePlain bool // a registry on this machine: http is tried when the port does not speak TLS
	ca         []string
	pairs      [][2]string // client certificate, key
	header     http.Header
	dial       time.Duration // zero: our own
	file       string        // hosts.toml that a person would edit, whether it exists or not
}

const (
	maxHostsFile = 1 << 20 // bytes of hosts.toml
	maxHosts     = 64      // mirrors in one file
)

// hostFile is hosts.toml. Unknown keys are other programs'. Source: containerd docs/hosts.md.
type hostFile struct {
	hostKeys
	Server string              `toml:"server"`
	Host   map[string]hostKeys `toml:"host"`
}

type hostKeys struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // file or files
	Client       any            `toml:"client"` // file, files, or pairs of certificate and key
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // string or strings
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// endpoints finds the places that serve a registry: what the first folder has that knows the registry, or _default.
func endpoints(dirs []string, registry string) ([]endpoint, error) {
	file := ""
	for _, root := range dirs {
		if file == "" {
			file = filepath.Join(root, registry, "hosts.toml") // for hints
		}
		for _, dir := range hostDirs(root, registry) {
			if st, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
				continue
			} else if err != nil {
				return nil, fmt.Errorf("registry configuration: %w", err)
			}
			return readDir(dir, registry)
		}
	}
	return []endpoint{itself(registry, file)}, nil
}

// hostDirs are the folders in which a registry may be configured, the most special first: a colon may be spelled with
// underscores, as some file systems have no colons.
func hostDirs(root, registry string) []string {
	var out []string
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		out = append(out, filepath.Join(root, registry[:i]+"_"+registry[i+1:]+"_"))
	}
	return append(out, filepath.Join(root, registry), filepath.Join(root, "_default"))
}

func readDir(dir, registry string) ([]endpoint, error) {
	file := filepath.Join(dir, "hosts.toml")
	st, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return readCertificates(dir, registry)
	}
	var data []byte
	if err == nil && st.Size() > maxHostsFile {
		err = fmt.Errorf("%d bytes, at most %d are read", st.Size(), maxHostsFile)
	}
	if err == nil {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "registry configuration %s: %w", file, err)
	}
	list, err := parseHosts(data, dir, registry)
	if err != nil {
		return nil, fault.New(fault.Invalid, "registry configuration %s: %w", file, err)
	}
	return list, nil
}

// readCertificates reads a folder in Docker's layout: authorities in *.crt, client pairs in NAME.cert and NAME.key.
// Source: Docker docs, "Verify repository client with certificates".
func readCertificates(dir, registry string) ([]endpoint, error) {
	e := itself(registry, filepath.Join(dir, "hosts.toml"))
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	for _, f := range list {
		name := filepath.Join(dir, f.Name())
		switch filepath.Ext(name) {
		case ".crt":
			e.ca = append(e.ca, name)
		case ".cert":
			e.pairs = append(e.pairs, [2]string{name, strings.TrimSuffix(name, ".cert") + ".key"})
		}
	}
	return []endpoint{e}, nil
}

// itself is the registry without any configuration.
func itself(registry, file string) endpoint {
	e := endpoint{url: url.URL{Scheme: "https", Host: registry, Path: "/v2"}, pull: true, resolve: true, file: file}
	switch {
	case registry == "docker.io":
		e.url.Host = "registry-1.docker.io"
	case loopback(registry):
		// The connection does not leave the machine. Source: containerd docs/hosts.md, "localhost".
		e.skipVerify, e.mayBePlain = true, true
	}
	return e
}

// parseHosts reads hosts.toml: hosts in the file's order, then the server. dir is what file names in it are relative to.
func parseHosts(data []byte, dir, registry string) ([]endpoint, error) {
	var f hostFile
	if err := toml.Unmarshal(data, &f); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, column := at.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", row, column, err)
		}
		return nil, err
	}
	if len(f.Host) > maxHosts {
		return nil, fmt.Errorf("%d hosts, at most %d are asked", len(f.Host), maxHosts)
	}
	file := filepath.Join(dir, "hosts.toml")
	var out []endpoint
	for _, name := range hostOrder(data, f.Host) {
		e := endpoint{mirror: true, file: file}
		if err := e.address(name, f.Host[name].OverridePath); err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		if err := e.fill(f.Host[name], dir); err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		out = append(out, e)
	}
	e := itself(registry, file)
	if f.Server != "" {
		e.skipVerify, e.mayBePlain = false, false
		if err := e.address(f.Server, f.OverridePath); err != nil {
			return nil, fmt.Errorf("server %q: %w", f.Server, err)
		}
	}
	if err := e.fill(f.hostKeys, dir); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return append(out, e), nil
}

// hostOrder lists the host tables as they stand in the file, which a map forgets.
func hostOrder(data []byte, hosts map[string]hostKeys) []string {
	var out []string
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.KeyValue {
			continue
		}
		key := e.Key()
		if !key.Next() || string(key.Node().Data) != "host" || !key.Next() {
			continue
		}
		name := string(key.Node().Data)
		if _, ok := hosts[name]; ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	var rest []string // inline tables
	for name := range hosts {
		if !slices.Contains(out, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(out, rest...)
}

// address takes "https://host[:port][/path]" or a bare host. The API lies under /v2 unless override says that the path is
// the API's root already.
func (e *endpoint) address(s string, override bool) error {
	if !strings.Contains(s, "://") {
		e.mayBePlain = loopback(strings.Split(s, "/")[0])
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("not of the form https://host[:port][/path]")
	}
	p := path.Clean("/" + u.Path)
	if !override && p != "/v2" && !strings.HasSuffix(p, "/v2") {
		p = path.Join(p, "v2")
	}
	e.url = url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(p, "/")}
	return nil
}

func (e *endpoint) fill(k hostKeys, dir string) error {
	e.pull, e.resolve = len(k.Capabilities) == 0, len(k.Capabilities) == 0
	for _, c := range k.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			e.pull = true
		case "resolve":
			e.resolve = true
		case "push", "referrers": // not our trade
		default:
			return fmt.Errorf("capabilities: %q is none of pull, resolve, push", c)
		}
	}
	e.skipVerify = e.skipVerify || k.SkipVerify
	ca, err := texts(k.CA)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	for _, f := range ca {
		e.ca = append(e.ca, within(dir, f))
	}
	if e.pairs, err = pairs(k.Client, dir); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	e.header = http.Header{}
	for name, value := range k.Header {
		list, err := texts(value)
		if err != nil {
			return fmt.Errorf("header %q: %w", name, err)
		}
		e.header[http.CanonicalHeaderKey(name)] = list
	}
	if k.DialTimeout != "" {
		if e.dial, err = time.ParseDuration(k.DialTimeout); err != nil || e.dial <= 0 {
			return fmt.Errorf("dial_timeout %q: not a time such as \"3s\"", k.DialTimeout)
		}
	}
	return nil
}

// texts takes a string, a list of strings, or nothing.
func texts(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%v: a string or a list of strings is expected", e)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%v: a string or a list of strings is expected", v)
}

// pairs takes "file", ["file", …] (certificate and key in one) or [["certificate", "key"], …].
func pairs(v any, dir string) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out [][2]string
	for _, e := range list {
		files, err := texts(e)
		if err != nil {
			return nil, err
		}
		switch len(files) {
		case 0:
		case 1:
			out = append(out, [2]string{within(dir, files[0]), within(dir, files[0])})
		case 2:
			key := files[1]
			if key == "" {
				key = files[0]
			}
			out = append(out, [2]string{within(dir, files[0]), within(dir, key)})
		default:
			return nil, fmt.Errorf("%v: a certificate and a key are expected", files)
		}
	}
	return out, nil
}

func within(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

// loopback says whether host[:port] is this machine by name or number.
func loopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && ip.IsLoopback()
}
