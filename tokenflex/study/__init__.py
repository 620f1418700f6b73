"""The study on pretrained weights: fine detail for reading, few tokens for scenes, by the question alone."""
