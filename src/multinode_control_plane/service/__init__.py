"""The use cases, each one function that runs in one transaction: ``(tx or connection, …) -> answer``.

They check, change rows by compare-and-set, and say whom to wake. They never wait, and know nothing of HTTP, of runners
or of the event loop.
"""
