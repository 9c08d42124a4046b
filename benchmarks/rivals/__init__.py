"""The rivals, each in a file of its own: `run(folder of the workload, turn, **options) -> Result`."""
