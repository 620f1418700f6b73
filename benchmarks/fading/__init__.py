"""A generated conversation about pictures, a small model that can hold it, and its exam."""
