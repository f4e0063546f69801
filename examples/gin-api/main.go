// Command gin-api is a small service that behaves as a release orchestrator wants a service to behave:
// it tells when it is ready, counts its requests, and finishes what it has when it is told to stop.
//
// For demos and tests it can be told, by its environment, to misbehave: see misbehaviour.go.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand"
	"net/http"
	"os"
	"os/signal"
	"strconv"
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

	late := func(c *gin.Context) {
		if stopping.Load() {
			log.Printf("asked after SIGTERM: %s", c.FullPath())
		}
	}
	users := engine.Group("/", late, identify, measure, faults.apply)
	users.GET("/ping", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"message": "pong"}) })
	users.POST("/echo", func(c *gin.Context) {
		body, err := c.GetRawData() // whole: Go reads no more of it once it has begun to answer
		if err != nil {
			c.JSON(http.StatusBadRequest, gin.H{"error": err.Error()})
			return
		}
		c.Data(http.StatusOK, c.ContentType(), body)
	})
	users.GET("/version", func(c *gin.Context) {
		c.JSON(http.StatusOK, gin.H{"version": version, "commit": commit, "release": os.Getenv("RELEASE")})
	})
	users.GET("/events", func(c *gin.Context) {
		c.Header("Content-Type", "text/event-stream")
		c.Header("X-Accel-Buffering", "no") // nginx passes each event on at once
		stream(c, func(n int) []byte { return []byte(fmt.Sprintf("id: %d\ndata: tick\n\n", n)) })
	})
	users.GET("/download", func(c *gin.Context) {
		part := bytes.Repeat([]byte("x"), 64*1024)
		stream(c, func(int) []byte { return part })
	})
	return engine
}

// stream sends as many parts as the query asks for, one every 50 ms.
func stream(c *gin.Context, part func(n int) []byte) {
	parts, err := strconv.Atoi(c.DefaultQuery("parts", "20"))
	if err != nil || parts < 1 {
		c.JSON(http.StatusBadRequest, gin.H{"error": "parts: a number from 1 on"})
		return
	}
	for n := 1; n <= parts; n++ {
		if _, err := c.Writer.Write(part(n)); err != nil {
			return
		}
		c.Writer.Flush()
		time.Sleep(50 * time.Millisecond)
	}
}

// identify tells which release answered, so that a client can count what each one did.
func identify(c *gin.Context) {
	c.Header("X-Release", os.Getenv("RELEASE"))
	c.Header("X-Version", version)
}
