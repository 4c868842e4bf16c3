package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"worknode/fault"
	"worknode/kernel/island"
	"worknode/kernel/netns"
	"worknode/proxy"
	"worknode/proxy/config"
	"worknode/standalone/place"
	"worknode/version"
)

// proxyCommand is `worknode proxy`; its flags are kube-proxy's. Called by that name, the binary is this command alone (see
// main), and passes over what it does not know in a configuration file, as kube-proxy does.
func proxyCommand(name string) *cobra.Command {
	flags := &config.Flags{Lenient: name == "kube-proxy"}
	o := proxy.Options{Verbose: setVerbosity}
	var dns string
	c := &cobra.Command{
		Use: name, Short: "Run the service proxy, or look at the one that runs", SilenceErrors: true, SilenceUsage: true,
		Version: version.Kubernetes,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fault.New(fault.Invalid, "%q is no subcommand of %s, and it takes no arguments (its tools are dump, trace and doctor)", args[0], name)
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			daemon("proxy")
			return runProxy(c, flags, &o, dns)
		},
	}
	c.SetVersionTemplate("Kubernetes {{.Version}}\n")
	flags.Add(c.Flags())
	f := c.Flags()
	f.StringVar(&dns, "dns-address", "", "answer names of Services there, ADDRESS:PORT; for a node without a cluster")
	f.StringVar(&o.DNS.Domain, "dns-domain", "cluster.local", "domain of those names")
	f.StringVar(&o.DNS.ResolvConf, "dns-resolv-conf", "", "file that lists the resolvers for other names; empty: there are none")
	for _, flag := range []string{"dns-address", "dns-domain", "dns-resolv-conf"} {
		f.Lookup(flag).Hidden = true
	}
	c.AddCommand(dumpCommand(), traceCommand(), doctorCommand())
	return c
}

func runProxy(c *cobra.Command, flags *config.Flags, o *proxy.Options, dns string) (err error) {
	if flags.Cleanup {
		return proxy.Cleanup(c.Context())
	}
	if o.Config, err = flags.Load(); err != nil {
		return err
	}
	if flags.WriteTo != "" {
		return o.Config.Write(flags.WriteTo)
	}
	o.Log = func(l config.Logging) {
		_, _ = setVerbosity(strconv.FormatUint(uint64(l.Verbosity), 10)) // a number is always taken
		log("proxy", l.Format, &verbosity)
	}
	if flags.Init {
		o.Log(o.Config.Logging)
		return proxy.Init(o.Config)
	}
	if dns != "" {
		if o.DNS.Address, err = netip.ParseAddrPort(dns); err != nil {
			return fault.New(fault.Invalid, "--dns-address %s: want ADDRESS:PORT", dns)
		}
	}
	o.Master = flags.Master
	o.Flags = map[string]string{}
	c.Flags().VisitAll(func(f *pflag.Flag) { o.Flags[f.Name] = f.Value.String() })
	if flags.File != "" {
		reload := make(chan *config.Loaded)
		o.Reload = reload
		go func() { // ends with the process
			err := flags.Follow(c.Context(), func(l *config.Loaded) { reload <- l })
			if err != nil {
				slog.Warn("the configuration file is not watched: changes need a restart", "err", err)
			}
		}()
	}
	return proxy.Run(c.Context(), *o)
}

// verbosity is what --v comes to; it may change while the process runs.
var verbosity slog.LevelVar

// setVerbosity takes klog's numbers: from 4 on, everything.
func setVerbosity(text string) (string, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return "", fmt.Errorf("failed set klog.logging.verbosity %s: want a whole number", text)
	}
	level := slog.LevelInfo
	if n >= 4 {
		level = slog.LevelDebug
	}
	verbosity.Set(level)
	return "successfully set klog.logging.verbosity to " + text, nil
}

// where adds the flags that say which node's proxy is meant, and how to print; inside runs fn there.
func where(c *cobra.Command) (inside func(fn func() error) error, print func(v any, text func(io.Writer)) error) {
	var root, output string
	c.Flags().StringVar(&root, "root", os.Getenv("WORKNODE_ROOT"), "the standalone node whose state lives below this folder; its network namespace is entered")
	c.Flags().StringVarP(&output, "output", "o", "", "json, or text for people (default)")
	inside = func(fn func() error) error {
		at, err := place.At(root)
		if err != nil {
			return err
		}
		if !netns.Pinned(island.Path(at.Netns())) {
			return fn() // not an isolated node: here
		}
		return netns.Do(island.Path(at.Netns()), fn)
	}
	print = func(v any, text func(io.Writer)) error {
		switch output {
		case "json":
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			return e.Encode(v)
		case "", "text":
			text(os.Stdout)
			return nil
		}
		return fault.New(fault.Invalid, "-o %s: want json or text", output)
	}
	return inside, print
}

func dumpCommand() *cobra.Command {
	c := &cobra.Command{Use: "dump", Short: "Show what the kernel has of Services, from the proxy that runs", Args: cobra.NoArgs}
	inside, print := where(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var d *proxy.Dump
		err := inside(func() (err error) { d, err = proxy.AskDump(c.Context()); return err })
		if err != nil {
			return err
		}
		return print(d, func(w io.Writer) { writeDump(w, d) })
	}
	return c
}

func writeDump(to io.Writer, d *proxy.Dump) {
	complete := "everything that the API has told is in the kernel"
	if !d.Complete {
		complete = "changes are not in the kernel yet"
	}
	fmt.Fprintf(to, "node %s, last commit %s, %s\nnode ports answer on %v\n\n", d.Node, d.Since.Format("15:04:05.000"), complete, append(d.NodePortIP, d.Loopback...))
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tPORT\tREACHED AT\tENDPOINTS\tNOTES")
	for _, s := range d.Services {
		for _, p := range s.Ports {
			name := s.Namespace + "/" + s.Name
			if p.Name != "" {
				name += ":" + p.Name
			}
			fmt.Fprintf(w, "%s\t%d/%s\t%s\t%s\t%s\n", name, p.Port, p.Protocol, strings.Join(reached(p), " "), endpoints(p), strings.Join(notes(p), ", "))
		}
	}
	w.Flush()
	for _, t := range d.Troubles {
		fmt.Fprintf(to, "\n%s %s/%s: %s: %s\n", t.Kind, t.Namespace, t.Name, t.Reason, t.Message)
	}
}

func reached(p proxy.DumpedPort) (all []string) {
	if p.ClusterIP.IsValid() {
		all = append(all, p.ClusterIP.String())
	}
	for _, a := range p.External {
		all = append(all, a.String())
	}
	if p.NodePort != 0 {
		all = append(all, "nodes:"+strconv.Itoa(int(p.NodePort)))
	}
	return all
}

// endpoints lists a few and counts the rest: a terminal is no place for a thousand.
func endpoints(p proxy.DumpedPort) string {
	list := p.Endpoints
	if p.Internal == "Local" && p.Outside == "Local" {
		list = p.Local
	}
	const few = 4
	var out []string
	for _, e := range list[:min(few, len(list))] {
		out = append(out, e.String())
	}
	if more := len(list) - few; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

func notes(p proxy.DumpedPort) (all []string) {
	if p.Internal == "Local" {
		all = append(all, fmt.Sprintf("inside: %d of this node", len(p.Local)))
	}
	if p.Outside == "Local" && (p.NodePort != 0 || len(p.External) > 0) {
		all = append(all, fmt.Sprintf("outside: %d of this node", len(p.Local)))
	}
	if p.Affinity != "" {
		all = append(all, "affinity "+p.Affinity)
	}
	if len(p.Sources) > 0 {
		all = append(all, fmt.Sprintf("load balancer only from %v", p.Sources))
	}
	return all
}

func traceCommand() *cobra.Command {
	var device string
	c := &cobra.Command{
		Use: "trace CLIENT ADDRESS:PORT[/PROTOCOL]", Short: "Show which rule decides a connection, by the model that the kernel was given",
		Example: "  worknode proxy trace 10.88.0.5 10.96.0.1:443\n  worknode proxy trace 192.0.2.9 192.0.2.1:30053/udp",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fault.New(fault.Invalid, "trace wants a client and a destination (for example: worknode proxy trace 10.88.0.5 10.96.0.1:443)")
			}
			return nil
		},
	}
	inside, print := where(c)
	c.Flags().StringVar(&device, "device", "", "device that the connection comes by (default: the one behind which the client is)")
	c.RunE = func(c *cobra.Command, args []string) error {
		var t *proxy.Traced
		err := inside(func() (err error) { t, err = proxy.AskTrace(c.Context(), args[0], args[1], device); return err })
		if err != nil {
			return err
		}
		return print(t, func(w io.Writer) { writeTrace(w, t) })
	}
	return c
}

func writeTrace(w io.Writer, t *proxy.Traced) {
	from := t.Client.String()
	if t.Device != "" {
		from += " by " + t.Device
	} else {
		from += ", on this node,"
	}
	service := ""
	if t.Service != "" {
		service = " (" + strings.TrimSuffix(t.Service, ":") + ")"
	}
	fmt.Fprintf(w, "%s to %s/%s%s: %s\n  %s\n", from, t.To, t.Protocol, service, t.Fate, t.Why)
	for _, target := range t.Targets {
		sees := "sees the client's address"
		if target.Masquerade {
			sees = "sees this node's address"
		}
		fmt.Fprintf(w, "  → %s  %s\n", target.Endpoint, sees)
	}
	if t.Sticky {
		fmt.Fprintln(w, "  the choice is remembered for the client")
	}
	if len(t.Steps) > 0 {
		fmt.Fprintln(w, "decided by:")
	}
	for _, s := range t.Steps {
		fmt.Fprintln(w, "  "+s)
	}
}

func doctorCommand() *cobra.Command {
	c := &cobra.Command{Use: "doctor", Short: "Look for what keeps Services from working on this machine", Args: cobra.NoArgs}
	inside, print := where(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var all []proxy.Finding
		if err := inside(func() error { all = proxy.Examine(c.Context()); return nil }); err != nil {
			return err
		}
		err := print(all, func(w io.Writer) {
			for _, f := range all {
				fmt.Fprintf(w, "%-8s %s: %s\n", f.State, f.About, f.Says)
				if f.Remedy != "" {
					fmt.Fprintf(w, "         remedy: %s\n", f.Remedy)
				}
			}
		})
		if err == nil && proxy.Worst(all) == proxy.Bad {
			err = fault.New(fault.Denied, "Services do not work as they should; see what is bad above")
		}
		return err
	}
	return c
}
