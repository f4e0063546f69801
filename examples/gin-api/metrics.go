package main

import (
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	requests = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total",
		Help: "Requests by route, method and status code.",
	}, []string{"path", "method", "code"})

	duration = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_request_duration_seconds",
		Help:    "Time to answer, by route and method.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .2, .3, .5, .75, 1, 2.5, 5, 10},
	}, []string{"path", "method"})

	_ = promauto.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit},
	}, func() float64 { return 1 })
)

// measure counts users' requests; health and metrics are not among them.
func measure(c *gin.Context) {
	began := time.Now()
	c.Next()
	path, method := c.FullPath(), c.Request.Method
	requests.WithLabelValues(path, method, strconv.Itoa(c.Writer.Status())).Inc()
	duration.WithLabelValues(path, method).Observe(time.Since(began).Seconds())
}
