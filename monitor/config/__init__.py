"""The configuration: one frozen, typed tree, read once and passed on by value."""

from monitor.config.errors import ConfigError
from monitor.config.loading import load_config
from monitor.config.schema import Config

__all__ = ["Config", "ConfigError", "load_config"]
