import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    """Marks the tests of this folder, which alone imports their libraries."""
    if not item.config.getoption("--full"):
        item.add_marker(pytest.mark.skip("models of other libraries need --full"))
    # Warnings of other libraries are theirs; those of jaxsparse are errors.
    item.add_marker(pytest.mark.filterwarnings("ignore"))
    item.add_marker(pytest.mark.filterwarnings("error:::jaxsparse"))
