"""placeholder"""
def write_report(directory, metrics):
    pass
