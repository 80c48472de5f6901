"""How long the harnesses look: seconds in `make test`, minutes in `make test-all`."""

from hypothesis import HealthCheck, settings

QUIET = dict(
    deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("short", max_examples=60, derandomize=True, **QUIET)
settings.register_profile("long", max_examples=5000, **QUIET)


def pytest_configure(config):
    """`-m ""` is `make test-all`: slow tests, too."""
    settings.load_profile("short" if config.option.markexpr else "long")
