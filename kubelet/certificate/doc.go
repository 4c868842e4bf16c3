// Package certificate gets and renews the X.509 certificates of a node from the cluster: the client certificate by which
// the kubelet is known to the API server, and the one that it serves with. A request is made, someone approves it, the
// cluster's signer issues; then whoever uses the certificate is told.
//
// Read first: keeper.go (one certificate's life), plan.go (when, pure), request.go (asking the API server), store.go (files),
// bootstrap.go (the first one).
// Source: Kubernetes docs, TLS bootstrapping; certificates.k8s.io/v1; file names as upstream's kubelet has them.
package certificate
