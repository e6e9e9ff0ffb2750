"""Speed, measured: ratios to bare matrix products, all taken in one run."""
