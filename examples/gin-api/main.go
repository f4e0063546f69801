// Command gin-api is a small service that behaves as a release orchestrator wants a service to behave:
// it tells when it is ready, counts its requests, and finishes what it has when it is told to stop.
//
// For demos and tests it can be told, by its environment, to misbehave: see misbehaviour.go.
package main

import (
	"context"
	"errors"
	"log"
	"math/rand"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Set by -ldflags "-X main.version=... -X main.commit=...".
var (
	version = "dev"
	commit  = "unknown"
)

const (
	unreadyFor = time.Second      // between SIGTERM and the end of new connections: time for a balancer to see it
	drainFor   = 25 * time.Second // for the requests that are under way
)

func main() {
	rand.Seed(time.Now().UnixNano()) // go 1.19 starts every process with the same sequence otherwise
	gin.SetMode(gin.ReleaseMode)
	faults, err := misbehaviourFromEnv()
	if err != nil {
		log.Fatal(err)
	}
	time.Sleep(faults.startDelay)

	var stopping atomic.Bool
	server := &http.Server{
		Addr:              ":" + port(),
		Handler:           router(faults, &stopping),
		ReadHeaderTimeout: 5 * time.Second,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		stopping.Store(true)
		time.Sleep(unreadyFor)
		ctx, cancel := context.WithTimeout(context.Background(), drainFor)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.Printf("shutdown: %v", err)
		}
	}()
	log.Printf("gin-api %s (%s) listens on %s", version, commit, server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-done
}

func port() string {
	if p := os.Getenv("PORT"); p != "" {
		return p
	}
	return "8080"
}

func router(faults *misbehaviour, stopping *atomic.Bool) http.Handler {
	engine := gin.New()
	engine.Use(gin.Recovery())

	engine.GET("/health", func(c *gin.Context) {
		if stopping.Load() || faults.unready {
			c.JSON(http.StatusServiceUnavailable, gin.H{"status": "unready"})
			return
		}
		c.JSON(http.StatusOK, gin.H{"status": "ok"})
	})
	engine.GET("/metrics", gin.WrapH(promhttp.Handler()))

	users := engine.Group("/", identify, measure, faults.apply)
	users.GET("/ping", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"message": "pong"}) })
	users.POST("/echo", func(c *gin.Context) {
		c.DataFromReader(http.StatusOK, c.Request.ContentLength, c.ContentType(), c.Request.Body, nil)
	})
	users.GET("/version", func(c *gin.Context) {
		c.JSON(http.StatusOK, gin.H{"version": version, "commit": commit, "release": os.Getenv("RELEASE")})
	})
	return engine
}

// identify tells which release answered, so that a client can count what each one did.
func identify(c *gin.Context) {
	c.Header("X-Release", os.Getenv("RELEASE"))
	c.Header("X-Version", version)
}
