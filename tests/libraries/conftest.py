import pytest


def pytest_ignore_collect(collection_path, config):
    """Without `--full`, leaves these tests out, and their libraries unimported."""
    if collection_path.suffix == ".py" and not config.getoption("--full"):
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    """Warnings of other libraries are theirs; those of jaxsparse are errors."""
    item.add_marker(pytest.mark.filterwarnings("ignore"))
    item.add_marker(pytest.mark.filterwarnings("error:::jaxsparse"))
