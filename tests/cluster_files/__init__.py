"""The files in cluster/, the Dockerfile and the lock, checked against schemas that refuse typos."""
