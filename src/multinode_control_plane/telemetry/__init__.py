"""Looking in: what the control plane says about itself to Prometheus. It changes nothing, and nothing waits for it."""
