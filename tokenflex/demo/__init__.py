"""``tokenflex demo``: a page on which one model is asked about images, and its choices of visual tokens are seen."""
