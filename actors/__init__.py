"""The only package that imports Ray's core: thin remote wrappers around the pipeline's plain classes."""
