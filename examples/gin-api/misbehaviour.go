package main

import (
	"fmt"
	"log"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
)

// misbehaviour is what the environment asks the service to do wrong. All of it is off by default.
//
//	FAIL_RATE     share of users' requests that answer 500, 0 to 1
//	SLOW_RATE     share of users' requests that are slow, 0 to 1
//	SLOW_BY       how slow, for example 400ms
//	START_DELAY   time before the port is opened
//	DIE_AFTER     time from the first user's request to exit code 3
//	UNREADY       any value: /health never turns ready
//	BURN          any value: from the first user's request on, one core is kept busy
type misbehaviour struct {
	failRate   float64
	slowRate   float64
	slowBy     time.Duration
	startDelay time.Duration
	dieAfter   time.Duration
	unready    bool
	burn       bool
	once       sync.Once
}

func misbehaviourFromEnv() (*misbehaviour, error) {
	m := &misbehaviour{unready: os.Getenv("UNREADY") != "", burn: os.Getenv("BURN") != ""}
	for name, target := range map[string]*float64{"FAIL_RATE": &m.failRate, "SLOW_RATE": &m.slowRate} {
		if text := os.Getenv(name); text != "" {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil || !(value >= 0 && value <= 1) {
				return nil, fmt.Errorf("%s: %q is not a share from 0 to 1", name, text)
			}
			*target = value
		}
	}
	durations := map[string]*time.Duration{"SLOW_BY": &m.slowBy, "START_DELAY": &m.startDelay, "DIE_AFTER": &m.dieAfter}
	for name, target := range durations {
		if text := os.Getenv(name); text != "" {
			value, err := time.ParseDuration(text)
			if err != nil || value < 0 {
				return nil, fmt.Errorf("%s: %q is not a duration", name, text)
			}
			*target = value
		}
	}
	return m, nil
}

func (m *misbehaviour) apply(c *gin.Context) {
	m.once.Do(m.begin)
	if rand.Float64() < m.slowRate {
		time.Sleep(m.slowBy)
	}
	if rand.Float64() < m.failRate {
		c.AbortWithStatusJSON(http.StatusInternalServerError, gin.H{"error": "planned failure"})
	}
}

// begin starts what goes wrong by itself, once there are users.
func (m *misbehaviour) begin() {
	if m.dieAfter > 0 {
		time.AfterFunc(m.dieAfter, func() {
			log.Print("fatal: the demo's planned death")
			os.Exit(3)
		})
	}
	if m.burn {
		go func() {
			for {
			}
		}()
	}
}
