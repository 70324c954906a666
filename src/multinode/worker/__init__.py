"""The worker: a supervisor, which talks to the control plane, and a child, in which the user's function runs."""
