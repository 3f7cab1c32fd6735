"""The only package that imports Ray's core: thin remote shells around the pipeline's plain classes."""
