"""Escalation: answer at a coarse level, and at finer ones where the language model is unsure (docs/escalate.md).

``settings``     `Escalate`: what a caller asks for, and what calibration found
``climbing``     ``generate`` with it: pass after pass until every row has settled
``rungs``        the levels that a row's images are tried at
``passes``       one pass of the language model over some rows; ``prefixes``: the text tokens that needn't be read again
``watching``     how sure a pass is, read off its scores
``calibrating``  the threshold that keeps a promise; ``fingerprint``: what it holds for
``held``         what a model keeps of it
"""
