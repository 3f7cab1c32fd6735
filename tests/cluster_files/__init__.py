"""What a cluster is made of: the files in cluster/, the Dockerfile and the lock, against schemas that refuse typos."""
