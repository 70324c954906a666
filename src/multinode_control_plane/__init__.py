"""The control plane: REST API, scheduler, store and runners. ``docs/architecture.md`` has the picture."""

__version__ = "2.0.0"
