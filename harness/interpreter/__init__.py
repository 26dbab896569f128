"""An interpreter of PTX: runs compiled SM100 kernels on a CPU, with the memory and the asynchronous units that they need.

Start with README.md. Only the candidate `flashinfer-cutedsl-cpu` and the race hunt may import this package.
"""
