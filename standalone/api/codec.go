package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"worknode/standalone/store"
)

// format is how an answer is encoded.
type format int

const (
	formatJSON format = iota
	formatProto
	formatYAML
	formatTable // meta.k8s.io/v1 Table, as JSON
)

const (
	typeJSON  = "application/json"
	typeProto = "application/vnd.kubernetes.protobuf"
	typeYAML  = "application/yaml"
)

// negotiate picks the first format of the Accept header that the server speaks.
func negotiate(req *http.Request) (format, error) {
	accept := req.Header.Get("Accept")
	if accept == "" {
		return formatJSON, nil
	}
	for _, clause := range strings.Split(accept, ",") {
		kind, params, err := mime.ParseMediaType(strings.TrimSpace(clause))
		if err != nil {
			continue
		}
		as := params["as"]
		switch {
		case as == "Table" && kind == typeJSON && params["v"] == "v1":
			return formatTable, nil
		case as != "":
			continue
		case kind == typeJSON, kind == "*/*", kind == "application/*":
			return formatJSON, nil
		case kind == typeProto:
			return formatProto, nil
		case kind == typeYAML:
			return formatYAML, nil
		}
	}
	return 0, notAcceptable()
}

func notAcceptable() error {
	return apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", nullGR, "",
		"only the following media types are accepted: "+typeJSON+", "+typeYAML+", "+typeProto, 0, false)
}

// protoMagic opens every protobuf body of the API; a runtime.Unknown with type and message follows.
var protoMagic = []byte{'k', '8', 's', 0}

// envelope wraps a protobuf message as the API sends it.
func envelope(dst []byte, apiVersion, kind string, message []byte) []byte {
	dst = append(dst, protoMagic...)
	var meta []byte
	meta = appendField(meta, 1, []byte(apiVersion))
	meta = appendField(meta, 2, []byte(kind))
	dst = appendField(dst, 1, meta)
	dst = appendField(dst, 2, message)
	dst = appendField(dst, 3, nil) // contentEncoding and contentType: required by old decoders
	return appendField(dst, 4, nil)
}

// appendField appends a length-delimited protobuf field.
func appendField(dst []byte, number int, value []byte) []byte {
	dst = append(dst, byte(number<<3|2))
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// maxBody is the largest request that is read; upstream's bound for what is stored is 1.5 MiB, for requests 3.
const maxBody = 3 << 20

func readBody(req *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBody+1))
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("read request body: %v", err))
	}
	if len(body) > maxBody {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	}
	return body, nil
}

// contentType of a request's body; JSON if it names none.
func contentType(req *http.Request) (string, error) {
	header := req.Header.Get("Content-Type")
	if header == "" {
		return typeJSON, nil
	}
	kind, _, err := mime.ParseMediaType(header)
	if err != nil {
		return "", unsupportedMedia(header)
	}
	return kind, nil
}

func unsupportedMedia(got string, allowed ...string) error {
	if len(allowed) == 0 {
		allowed = []string{typeJSON, typeYAML, typeProto}
	}
	return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", nullGR, "",
		fmt.Sprintf("the body of the request was in an unknown format - accepted media types include: %s (got %s)", strings.Join(allowed, ", "), got), 0, false)
}

// strictness is what happens to fields that the API does not know.
type strictness int

const (
	warn strictness = iota
	strict
	ignore
)

func fieldValidation(value string) (strictness, error) {
	switch value {
	case "", "Warn":
		return warn, nil
	case "Strict":
		return strict, nil
	case "Ignore":
		return ignore, nil
	}
	return 0, apierrors.NewBadRequest(fmt.Sprintf("fieldValidation: Unsupported value: %q: supported values: \"Ignore\", \"Strict\", \"Warn\"", value))
}

// typed is what a body must decode into.
type typed interface {
	Unmarshal([]byte) error
}

// decode reads a body of one of the API's types into out. apiVersion and kind say what it must be.
// An empty apiVersion allows any. The strings are complaints about unknown and duplicate fields; with strict they are an error instead.
func decode(contentType string, body []byte, apiVersion, kind string, out typed, how strictness) ([]string, error) {
	switch contentType {
	case typeProto:
		return nil, decodeProto(body, apiVersion, kind, out)
	case typeYAML:
		var err error
		convert := yaml.YAMLToJSON
		if how == strict {
			convert = yaml.YAMLToJSONStrict
		}
		if body, err = convert(body); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error converting YAML to JSON: %v", err))
		}
	case typeJSON:
	default:
		return nil, unsupportedMedia(contentType)
	}
	var is struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(body, &is); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("couldn't get version/kind; json parse error: %v", err))
	}
	if err := matchType(is.APIVersion, is.Kind, apiVersion, kind); err != nil {
		return nil, err
	}
	if how == ignore {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, out); err != nil {
			return nil, unusable(apiVersion, kind, err)
		}
		return nil, nil
	}
	complaints, err := kjson.UnmarshalStrict(body, out)
	if err != nil {
		return nil, unusable(apiVersion, kind, err)
	}
	if len(complaints) > 0 && how == strict {
		return nil, unusable(apiVersion, kind, runtime.NewStrictDecodingError(complaints))
	}
	return texts(complaints), nil
}

func texts(list []error) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.Error()
	}
	return out
}

func matchType(gotVersion, gotKind, apiVersion, kind string) error {
	if gotKind != "" && gotKind != kind {
		return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): got %s", kind, gotKind))
	}
	if gotVersion != "" && apiVersion != "" && gotVersion != apiVersion {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", gotVersion, apiVersion))
	}
	return nil
}

func unusable(apiVersion, kind string, err error) error {
	version := apiVersion[strings.LastIndex(apiVersion, "/")+1:]
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", kind, version, kind, err))
}

func decodeProto(body []byte, apiVersion, kind string, out typed) error {
	if len(body) < 4 || string(body[:4]) != string(protoMagic) {
		return apierrors.NewBadRequest("the body says that it is Kubernetes protobuf but does not begin as one")
	}
	var u runtime.Unknown
	if err := u.Unmarshal(body[4:]); err != nil {
		return unusable(apiVersion, kind, err)
	}
	if err := matchType(u.APIVersion, u.Kind, apiVersion, kind); err != nil {
		return err
	}
	if err := out.Unmarshal(u.Raw); err != nil {
		return unusable(apiVersion, kind, err)
	}
	return nil
}

// writeItem answers with one object.
func (s *Server) writeItem(w http.ResponseWriter, r *request, code int, item *store.Item) error {
	f, err := negotiate(r.Request)
	if err != nil {
		return err
	}
	var body []byte
	kind := typeJSON
	switch f {
	case formatProto:
		kind, body = typeProto, envelope(nil, item.Resource.APIVersion(), item.Resource.Kind, item.Proto())
	case formatYAML:
		kind = typeYAML
		if body, err = yaml.JSONToYAML(item.JSON()); err != nil {
			return err
		}
	case formatTable:
		rows, err := s.table(r, []*store.Item{item}, item.RV, true)
		if err != nil {
			return err
		}
		body = rows
	default:
		body = item.JSON()
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(code)
	_, _ = w.Write(body)
	return nil
}

// message is a type of the API that is not stored: Status, options, reviews.
type message interface {
	Marshal() ([]byte, error)
}

// writeMeta answers with a message in the client's format, JSON if that is none that we know.
func writeMeta(w http.ResponseWriter, req *http.Request, code int, m message, apiVersion, kind string) {
	if f, err := negotiate(req); err == nil && f == formatProto {
		if raw, err := m.Marshal(); err == nil {
			w.Header().Set("Content-Type", typeProto)
			w.WriteHeader(code)
			_, _ = w.Write(envelope(nil, apiVersion, kind, raw))
			return
		}
	}
	writeJSON(w, code, m)
}
