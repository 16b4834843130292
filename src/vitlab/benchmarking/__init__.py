"""What `python src/benchmark.py` measures, and how: vitlab beside its peers, in one process, in turns."""
