package bed

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// auditPolicy writes one line per request, when it is answered; a watch also when it begins.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [admin, "system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"]
- level: None
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
`

// Request is one request that the API server answered.
type Request struct {
	User, Agent, Verb, URI string
	Code                   int
	Stage                  string // ResponseStarted (of a watch), ResponseComplete or Panic
	Time                   time.Time
	Reason                 string // of a denial
}

func (r Request) String() string {
	return fmt.Sprintf("%d %s %s by %s (%s)%s", r.Code, r.Verb, r.URI, r.User, r.Agent, r.Reason)
}

// Requests are those that is accepts, in order, from the API server's audit log. Administrators and the control plane's
// own components are not in it.
func (c *Cluster) Requests(is func(Request) bool) ([]Request, error) {
	f, err := os.Open(c.Dir + "/audit.log")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Request
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct {
			Verb, RequestURI, UserAgent, Stage string
			User                               struct{ Username string }
			ResponseStatus                     struct {
				Code    int
				Message string
			}
			StageTimestamp time.Time
			Annotations    map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the last line may be half written
		}
		r := Request{User: e.User.Username, Agent: e.UserAgent, Verb: e.Verb, URI: e.RequestURI, Code: e.ResponseStatus.Code, Stage: e.Stage, Time: e.StageTimestamp}
		if Denied(r) {
			r.Reason = ": " + cmp.Or(e.ResponseStatus.Message, e.Annotations["authorization.k8s.io/reason"])
		}
		if is(r) {
			out = append(out, r)
		}
	}
	return out, lines.Err()
}

// Denied says that the API server refused the request to somebody whom it knows.
func Denied(r Request) bool { return r.Code == 403 || r.Code == 401 }

// By says that the request was a node's, its proxy's too.
func (n *Node) By(r Request) bool {
	return r.User == "system:node:"+n.Name || r.User == "system:kube-proxy" && strings.Contains(r.Agent, "proxy")
}
