"""The ``tokenflex`` command: one module per sub-command."""
