"""All that tables and figures show: FID, CLIP score, delta(t, k), latency, and the rows of every system."""
