"""Where the Docker engine is, a connection to it, and what registries say through it: what the command line, which builds, and the
control plane, which runs, share."""
