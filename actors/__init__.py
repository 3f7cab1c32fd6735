"""All use of Ray's core, except the reference of a bench: thin remote wrappers around the pipeline's plain classes."""
