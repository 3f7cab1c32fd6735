PREFIX="report"
def run(config, store, executor):
    return {}
