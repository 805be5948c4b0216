"""Claims about alphasweep, one file a module; speed is measured in benchmarks/."""
