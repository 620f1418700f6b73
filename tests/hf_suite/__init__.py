"""transformers' own tests of models, run on `FlexModel`: ``python -m tests.hf_suite``; see docs/clients.md.

Its parts, none of which holds a line of transformers' tests: ``sources`` gets them, ``cases`` points them at a model,
``one`` runs them for one model, ``table`` compares host and FlexModel.
"""
