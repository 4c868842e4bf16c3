package proxy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/test/bed"
)

// A scene is a file of testdata: objects, then what becomes of packets, then perhaps other objects, and so on.
//
//	runs base nodetector              the configurations it is for (default: base)
//	address 1.2.3.4                   the node has this address while the scene runs
//	service ns/name LoadBalancer ip 172.30.0.1 lb 1.2.3.4 eTP Local port http 80/tcp node 3001
//	slice ns/name port http 8080/tcp at 10.180.0.1 here at 10.180.1.1 terminating
//	delete slice ns/name
//	pod to it: 10.0.0.2 -> 172.30.0.1:80 = 10.180.0.1:8080 10.180.1.1:8080 | nodetector: refused
//
// A line that begins with white space goes on with the line before. A name of - is an empty one. After | an outcome is
// for the configurations or the proxy named. Everything is tested over IPv4 and, with the twins of all addresses, over
// IPv6 in the same run, as the Services are of both families.
type scene struct {
	name    string
	configs []string
	steps   []step
}

// step is changes, and the packets that tell whether they are in force.
type step struct {
	put, gone []runtime.Object
	addresses []netip.Addr
	probes    []probe
}

type probe struct {
	name   string
	packet bed.Packet
	want   bed.Outcome
	other  map[string]bed.Outcome // by configuration, or by contestant
}

// outcome is what this proxy should do with this configuration.
func (p probe) outcome(contestant, config string) bed.Outcome {
	for _, key := range []string{contestant, config} {
		if o, ok := p.other[key]; ok {
			return o
		}
	}
	return p.want
}

func scenes(t testing.TB) []*scene {
	t.Helper()
	files, err := filepath.Glob("testdata/*.scene")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenes: %v", err)
	}
	var out []*scene
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseScene(strings.TrimSuffix(filepath.Base(f), ".scene"), string(text))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out = append(out, s)
	}
	return out
}

func parseScene(name, text string) (*scene, error) {
	s := &scene{name: name, configs: []string{"base"}, steps: []step{{}}}
	for _, line := range logical(text) {
		if err := s.line(line.text); err != nil {
			return nil, fmt.Errorf("line %d: %w", line.number, err)
		}
	}
	return s, nil
}

type numbered struct {
	number int
	text   string
}

// logical joins the lines that go on and leaves out comments.
func logical(text string) (out []numbered) {
	for i, l := range strings.Split(text, "\n") {
		switch {
		case strings.TrimSpace(l) == "", strings.HasPrefix(strings.TrimSpace(l), "#"):
		case len(out) > 0 && (l[0] == ' ' || l[0] == '\t'):
			out[len(out)-1].text += " " + strings.TrimSpace(l)
		default:
			out = append(out, numbered{i + 1, strings.TrimSpace(l)})
		}
	}
	return out
}

func (s *scene) line(l string) (err error) {
	if name, rest, ok := strings.Cut(l, ": "); ok && strings.Contains(rest, "->") {
		p, err := parseProbe(name, rest)
		last := &s.steps[len(s.steps)-1]
		last.probes = append(last.probes, p)
		return err
	}
	if last := s.steps[len(s.steps)-1]; len(last.probes) > 0 {
		s.steps = append(s.steps, step{})
	}
	last := &s.steps[len(s.steps)-1]
	w := words{strings.Fields(l)}
	switch verb := w.next(); verb {
	case "runs":
		s.configs = w.list
	case "address":
		for len(w.list) > 0 {
			last.addresses = append(last.addresses, w.addr(&err))
		}
	case "service":
		var o *corev1.Service
		o, err = parseService(&w)
		last.put = append(last.put, o)
	case "slice":
		var both []runtime.Object
		both, err = parseSlice(&w)
		last.put = append(last.put, both...)
	case "delete":
		switch what, key := w.next(), w.next(); what {
		case "service":
			last.gone = append(last.gone, &corev1.Service{ObjectMeta: named(key)})
		case "slice":
			last.gone = append(last.gone, &discoveryv1.EndpointSlice{ObjectMeta: named(key + "-4")}, &discoveryv1.EndpointSlice{ObjectMeta: named(key + "-6")})
		default:
			return fmt.Errorf("delete %s", what)
		}
	default:
		return fmt.Errorf("%q begins no line", verb)
	}
	return err
}

// words are read one by one; a missing word is empty and will not parse.
type words struct{ list []string }

func (w *words) next() string {
	if len(w.list) == 0 {
		return ""
	}
	first := w.list[0]
	w.list = w.list[1:]
	return first
}

func (w *words) peek() string {
	if len(w.list) == 0 {
		return ""
	}
	return w.list[0]
}

// take consumes the next word if it is this one.
func (w *words) take(word string) bool {
	if w.peek() != word {
		return false
	}
	w.next()
	return true
}

func (w *words) addr(err *error) netip.Addr {
	a, e := netip.ParseAddr(w.next())
	if e != nil && *err == nil {
		*err = e
	}
	return a
}

func (w *words) number(err *error) int32 {
	n, e := strconv.ParseInt(w.next(), 10, 32)
	if e != nil && *err == nil {
		*err = e
	}
	return int32(n)
}

func named(key string) metav1.ObjectMeta {
	ns, name, _ := strings.Cut(key, "/")
	return metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{}}
}

func name(word string) string {
	if word == "-" {
		return ""
	}
	return word
}

// portOf reads 80/tcp.
func portOf(word string) (int32, corev1.Protocol, error) {
	number, proto, ok := strings.Cut(word, "/")
	n, err := strconv.ParseInt(number, 10, 32)
	if err == nil && !ok {
		err = fmt.Errorf("port %q has no protocol", word)
	}
	return int32(n), corev1.Protocol(strings.ToUpper(proto)), err
}

func parseService(w *words) (*corev1.Service, error) {
	var err error
	both := corev1.IPFamilyPolicyRequireDualStack
	s := &corev1.Service{ObjectMeta: named(w.next())}
	s.Spec.Type, s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = corev1.ServiceTypeClusterIP, &both, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	twins := func(a netip.Addr) []string { return []string{a.String(), bed.Twin(a).String()} }
	for len(w.list) > 0 && err == nil {
		switch word := w.next(); word {
		case "LoadBalancer", "NodePort", "ClusterIP":
			s.Spec.Type = corev1.ServiceType(word)
		case "ip":
			a := w.addr(&err)
			s.Spec.ClusterIP, s.Spec.ClusterIPs = a.String(), twins(a)
		case "headless":
			s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		case "external":
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, twins(w.addr(&err))...)
		case "lb":
			var mode *corev1.LoadBalancerIPMode
			for _, a := range twins(w.addr(&err)) {
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
			}
			for _, m := range []corev1.LoadBalancerIPMode{corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP} {
				if w.take(string(m)) {
					mode = &m
				}
			}
			for i := range 2 {
				s.Status.LoadBalancer.Ingress[len(s.Status.LoadBalancer.Ingress)-1-i].IPMode = mode
			}
		case "range":
			p, e := netip.ParsePrefix(w.next())
			if e != nil {
				return nil, e
			}
			// White space round a range is ignored: https://issues.k8s.io/ has had it both ways.
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, " "+p.String(), bed.TwinPrefix(p).String())
		case "eTP":
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(w.next())
		case "iTP":
			p := corev1.ServiceInternalTrafficPolicy(w.next())
			s.Spec.InternalTrafficPolicy = &p
		case "affinity":
			n := w.number(&err)
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &n}}
		case "health":
			s.Spec.HealthCheckNodePort = w.number(&err)
		case "label":
			k, v, _ := strings.Cut(w.next(), "=")
			s.Labels[k] = v
		case "port":
			p := corev1.ServicePort{Name: name(w.next())}
			if p.Port, p.Protocol, err = portOf(w.next()); err == nil && w.take("node") {
				p.NodePort = w.number(&err)
			}
			s.Spec.Ports = append(s.Spec.Ports, p)
		default:
			return nil, fmt.Errorf("service: what is %q?", word)
		}
	}
	return s, err
}

// parseSlice makes the slices of both families. Their names end with the family; "part X" tells several apart.
func parseSlice(w *words) ([]runtime.Object, error) {
	var err error
	m := named(w.next())
	m.Labels[discoveryv1.LabelServiceName] = m.Name
	var ports []discoveryv1.EndpointPort
	var four, six []discoveryv1.Endpoint
	for len(w.list) > 0 && err == nil {
		switch word := w.next(); word {
		case "part":
			m.Name += "-" + w.next()
		case "label":
			k, v, _ := strings.Cut(w.next(), "=")
			m.Labels[k] = v
		case "port":
			n := name(w.next())
			number, proto, e := portOf(w.next())
			err = e
			ports = append(ports, discoveryv1.EndpointPort{Name: &n, Port: &number, Protocol: &proto})
		case "at":
			a := w.addr(&err)
			e := parseEndpoint(w)
			e.Addresses = []string{a.String()}
			four = append(four, e)
			e.Addresses = []string{bed.Twin(a).String()}
			six = append(six, e)
		default:
			return nil, fmt.Errorf("slice: what is %q?", word)
		}
	}
	meta6 := *m.DeepCopy()
	m.Name += "-4"
	meta6.Name += "-6"
	return []runtime.Object{
		&discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: four},
		&discoveryv1.EndpointSlice{ObjectMeta: meta6, AddressType: discoveryv1.AddressTypeIPv6, Ports: ports, Endpoints: six},
	}, err
}

// parseEndpoint reads the words after an address. The node follows from the address; "here" and "remote" say otherwise.
func parseEndpoint(w *words) discoveryv1.Endpoint {
	node := "other-node"
	e := discoveryv1.Endpoint{NodeName: &node}
	conditions := func(ready, serving, terminating bool) {
		e.Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	for {
		switch {
		case w.take("here"):
			node = bed.NodeName
		case w.take("unready"):
			conditions(false, false, false)
		case w.take("ready"):
			conditions(true, true, false)
		case w.take("terminating"): // and still serving
			conditions(false, true, true)
		case w.take("ending"): // and serving no more
			conditions(false, false, true)
		case w.take("zones"):
			e.Hints = orNew(e.Hints)
			for _, z := range strings.Split(w.next(), ",") {
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
			}
		case w.take("nodes"):
			e.Hints = orNew(e.Hints)
			for _, n := range strings.Split(w.next(), ",") {
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
			}
		default:
			return e
		}
	}
}

func orNew(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil {
		return &discoveryv1.EndpointHints{}
	}
	return h
}

// parseProbe reads FROM -> TO = OUTCOME | KEY: OUTCOME ...
func parseProbe(name, text string) (probe, error) {
	p := probe{name: name, other: map[string]bed.Outcome{}}
	question, outcomes, ok := strings.Cut(text, "=")
	from, to, ok2 := strings.Cut(question, "->")
	if !ok || !ok2 {
		return p, fmt.Errorf("a packet is FROM -> TO = OUTCOME, not %q", text)
	}
	to, proto, _ := strings.Cut(strings.TrimSpace(to), "/")
	if p.packet.Proto = proto; proto == "" {
		p.packet.Proto = "tcp"
	}
	var err error
	if p.packet.From, err = netip.ParseAddr(strings.TrimSpace(from)); err != nil {
		return p, err
	}
	if p.packet.To, err = netip.ParseAddrPort(to); err != nil {
		return p, err
	}
	for i, alternative := range strings.Split(outcomes, "|") {
		if i == 0 {
			if p.want, err = parseOutcome(alternative, p.packet); err != nil {
				return p, err
			}
			continue
		}
		keys, text, _ := strings.Cut(alternative, ":")
		o, err := parseOutcome(text, p.packet)
		if err != nil {
			return p, err
		}
		for _, k := range strings.Split(keys, ",") {
			p.other[strings.TrimSpace(k)] = o
		}
	}
	return p, nil
}

func parseOutcome(text string, p bed.Packet) (o bed.Outcome, err error) {
	for _, w := range strings.Fields(text) {
		switch w {
		case "refused":
			o.Refused = true
		case "dropped":
			o.Dropped = true
		case "untouched": // by the proxy: what has the address itself answers
			o.Reached, o.AnySource = []netip.AddrPort{p.To}, true
		case "masq":
			o.Masquerade = true
		case "anysource":
			o.AnySource = true
		case "sticky":
			o.Sticky = true
		default:
			a, e := netip.ParseAddrPort(w)
			if e != nil {
				return o, fmt.Errorf("outcome %q: %w", text, e)
			}
			o.Reached = append(o.Reached, a)
		}
	}
	if !o.Refused && !o.Dropped && len(o.Reached) == 0 {
		return o, fmt.Errorf("outcome %q says nothing", text)
	}
	return o, nil
}

// A scene that does not parse, or has no packets, proves nothing.
func TestScenesSaySomething(t *testing.T) {
	for _, s := range scenes(t) {
		for i, st := range s.steps {
			if len(st.probes) == 0 {
				t.Errorf("%s: step %d asks nothing", s.name, i+1)
			}
		}
		for _, c := range s.configs {
			if !slices.ContainsFunc(configs, func(one config) bool { return one.name == c }) {
				t.Errorf("%s: there is no configuration %q", s.name, c)
			}
		}
	}
}
