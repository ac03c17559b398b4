"""The status page: what a person sees of a running service. Files that a browser takes as they are."""
