"""Side-by-side runs. Each prints a table and writes its figures as JSON below benchmarks/results."""
