"""Where the Docker engine is, and a connection to it: what the command line, which builds, and the control plane, which runs, share."""
