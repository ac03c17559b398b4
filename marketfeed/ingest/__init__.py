"""From frames to commits, and how fresh what was committed is."""
