import pytest
from tests.contract import endings


@pytest.fixture(params=endings.ENDINGS, ids=lambda name: name or "as it says")
def ending(request):
    """See ``endings``."""
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test whose stage has an ending of its own."""
    stage = pyfuncitem.funcargs.get("stage")
    if stage is None or not stage.ending:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    endings.run(stage, lambda: pyfuncitem.obj(**arguments))
    return True
