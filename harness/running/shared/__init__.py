"""One run shared among processes, GPUs, machines: who judges which problems, and one record of it all. Imports no torch."""
