"""A Docker engine in memory, as far as images go, with a registry beside it."""

from dataclasses import replace

from multinode_control_plane.runners.docker_engine import (
    EngineError,
    EngineFacts,
    ImageState,
    NotInEngine,
)


class FakeEngine:
    """``images`` by id; ``registry`` by ``repository@sha256:…``; ``used`` are ids that a container has."""

    facts = EngineFacts(
        "unix:///fake.sock", "20.10", "linux/amd64", 2, 4096, root_dir="", is_desktop=False
    )

    def __init__(self):
        self.held = {}
        self.registry = {}
        self.used = set()
        self.pulls = []
        self.registry_error = None
        self.expired_keys = set()

    def add(self, image_id, labels, size_bytes=1000, **more):
        self.held[image_id] = ImageState(image_id, labels, size_bytes, **more)

    async def do(self, act, *args, **options):
        """As the runner calls it, without a thread."""
        return act(*args, **options)

    def image(self, name):
        if name not in self.held:
            raise NotInEngine(f"The image {name} could not be looked at: No such image.")
        return self.held[name]

    def images(self, label, *, is_dangling=False):
        name, _, value = label.partition("=")
        found = {item.image_id: item for item in self.held.values()}
        return [
            item
            for item in found.values()
            if item.labels.get(name) == value and not (is_dangling and item.tags)
        ]

    def pull(self, image, registry):
        self.pulls.append((image, registry.username, registry.key))
        if registry.key in self.expired_keys:
            raise EngineError("denied: Your authorization token has expired.")
        if self.registry_error is not None:
            raise EngineError(self.registry_error)
        if image not in self.registry:
            raise NotInEngine(f"The image {image} could not be pulled: manifest unknown.")
        self.held[image] = replace(self.registry[image])

    def remove_image(self, name):
        if name not in self.held:
            return
        if self.image(name).image_id in self.used:
            raise EngineError("a container uses it")
        gone = self.image(name).image_id
        self.held = {key: item for key, item in self.held.items() if item.image_id != gone}
