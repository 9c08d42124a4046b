"""jaxdfl against what else one would use, on equal work. See README.md beside this file."""
