def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the long variants")
