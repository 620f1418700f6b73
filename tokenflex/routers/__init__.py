"""Built-in routers; look them up by name with ``tokenflex.routers`` of the package's front door."""
