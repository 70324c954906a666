"""REST under ``/v1``: who may ask, what is asked, which use case answers. No state of its own.

The routes stand as data in `routes`; bodies and answers are the classes of `multinode.wire`, which checks them.
Plain Starlette rather than FastAPI: the same classes must be checked by the SDK on Python 3.8, where pydantic is not
wanted, and a second definition of them would be needed; it also saves half a millisecond a request and 25 MiB.
"""
