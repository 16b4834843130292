"""What `python src/benchmark.py` measures: vitlab and its peers, in one process, in turns."""
