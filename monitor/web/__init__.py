"""The daemon's pages: health for orchestrators, metrics for Prometheus, state for people and scripts."""
