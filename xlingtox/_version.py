"""The version of this package, for `__init__` and for results; it imports nothing of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("xlingtox")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
