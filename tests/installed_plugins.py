"""Run once plugins are installed (``python -m tests.installed_plugins``): each is found, imports, and conforms."""

import sys

from tokenflex import registry
from tokenflex.checkpoint import KINDS
from tokenflex.testing import check_component

PLUGINS = {"tokenflex-matching", "tokenflex-resampling", "tokenflex-selection", "tokenflex-template", "tokenflex-vir"}


def main() -> int:
    """Print n of m for every part of every plugin; 1 if one is missing, broken or doesn't conform."""
    found, wrong = set(), []
    for kind in KINDS.values():
        for name in kind.names():
            listing = kind.listing(name)
            if listing.provider == registry.BUILT_IN:
                continue
            found.add(listing.provider)
            if listing.state != "ok":
                wrong.append(f"{name}: {listing.cause}")
                continue
            report = check_component(kind.get(name).Config())
            wrong += [] if report.ok else [str(report)]
            print(f"{listing.provider:22} {kind.kind:7} {name:20} {str(report).splitlines()[0]}")
    wrong += [f"{name} isn't installed" for name in sorted(PLUGINS - found)]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
