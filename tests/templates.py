"""The compiled templates of the pages, which every web server would compile for itself: 0.2 s of CPU time each."""

from __future__ import annotations

from functools import cache

from monitor.web import pages


def share_templates() -> None:
    """Compile them now for all web servers of this process and of its forks that have no path before their pages."""
    environment = pages._environment
    if not hasattr(environment, "cache_info"):
        pages._environment = cache(environment)
    templates = pages._environment("")
    for name in templates.list_templates():
        templates.get_template(name)
