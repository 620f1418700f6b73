"""Tables of pages, made by trying: which architectures are served, and what each method needs, is and costs."""
