// Command app is the workload of the black-box tests: one static program that does on demand what containers do.
//
//	app serve [PORT]          HTTP: / the host name, /ready 503 while /tmp/notready exists, /file?path= a file's content
//	app udp PORT              answers every datagram with the host name
//	app lines N [PER_SECOND]  writes "line 1" to "line N"
//	app eat MIB               touches that much memory, then waits
//	app exit CODE [SECONDS]   ends, after a while
//	app grpc [PORT]           answers gRPC health checks; NOT_SERVING while /tmp/notready exists
//	app ask URL               prints what it answers
//	app dial NETWORK ADDRESS  prints what comes back for "hello" (udp), or that the connection stands (tcp)
//	app api PATH              prints what the API server answers to the pod's service account
//	app lookup NAME           prints its addresses, in order
//	app wait                  until SIGTERM
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch arg(1, "wait") {
	case "serve":
		serve(ctx, arg(2, "8080"))
	case "udp":
		udp(ctx, arg(2, "8080"))
	case "lines":
		lines(ctx, number(arg(2, "10")), number(arg(3, "0")))
	case "eat":
		eat(number(arg(2, "1")))
		<-ctx.Done()
	case "exit":
		select {
		case <-time.After(time.Duration(number(arg(3, "0"))) * time.Second):
		case <-ctx.Done():
		}
		os.Exit(number(arg(2, "0")))
	case "grpc":
		health(ctx, arg(2, "8080"))
	case "ask", "dial", "lookup", "api":
		within, end := context.WithTimeout(ctx, 10*time.Second)
		defer end()
		answer, err := client(within, os.Args[1], os.Args[2:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(answer)
	default:
		fmt.Println("waiting")
		<-ctx.Done()
	}
}

func arg(i int, otherwise string) string {
	if i < len(os.Args) {
		return os.Args[i]
	}
	return otherwise
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(64)
	}
	return n
}

func serve(ctx context.Context, port string) {
	host, _ := os.Hostname()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, host) })
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat("/tmp/notready"); err == nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, r.URL.Query().Get("path")) })
	server := &http.Server{Addr: ":" + port, Handler: mux}
	context.AfterFunc(ctx, func() { server.Shutdown(context.Background()) })
	fmt.Println("serving on", port)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func udp(ctx context.Context, port string) {
	host, _ := os.Hostname()
	conn, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	fmt.Println("serving datagrams on", port)
	buf := make([]byte, 1500)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		conn.WriteTo([]byte(host), from)
	}
}

func lines(ctx context.Context, n, perSecond int) {
	out := bufio.NewWriterSize(os.Stdout, 0)
	var tick <-chan time.Time
	if perSecond > 0 {
		tick = time.NewTicker(10 * time.Millisecond).C
	}
	for i := 1; i <= n; i++ {
		fmt.Fprintf(out, "line %d\n", i)
		out.Flush()
		if perSecond > 0 && i%max(perSecond/100, 1) == 0 {
			select {
			case <-tick:
			case <-ctx.Done():
				return
			}
		}
	}
}

func eat(mib int) {
	all := make([][]byte, 0, mib)
	for i := 0; i < mib; i++ {
		b := make([]byte, 1<<20)
		for j := 0; j < len(b); j += 4096 {
			b[j] = 1
		}
		all = append(all, b)
	}
	fmt.Println("ate", len(all), "MiB")
}
