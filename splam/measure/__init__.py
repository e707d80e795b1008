"""What the tables and figures say, measured: FID, CLIP score, delta(t, k), latency, and the rows of every system."""
