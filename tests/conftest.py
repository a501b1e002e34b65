"""Order of test files: that of their names, so that the simulator of a device begins early, beside others."""


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False
